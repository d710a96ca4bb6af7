"""probe and bench: that they measure, and what they say about it. No test depends on how fast anything was."""
import json
import os
import xml.etree.ElementTree

import pytest

from command import answer, millrace, refusal

ARITHMETICS = ("int8", "bf16", "f32")
# Bytes of the golden llama in bf16: 3 layers, hidden 64, intermediate 160, 4 heads and 2 KV heads of 16, 640 tokens.
LAYER_WEIGHTS = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 160
HEAD_WEIGHTS = 640 * 64
KV_TOKEN_BYTES = 3 * 2 * 2 * 16 * 2  # layers, keys and values, KV heads, head_dim, bf16


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder of the tests' own, so that the machine is measured once, and not in the tester's."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def probed(cache):
    return answer("probe", XDG_CACHE_HOME=cache)


def profile_files(cache):
    folder = os.path.join(cache, "millrace")
    return [os.path.join(folder, name) for name in os.listdir(folder)]


def check_rate(rate):
    assert rate["best"] >= rate["median"] > 0


def test_probe_measures_every_part(probed):
    assert probed["cpu"] and probed["num_cpus"] >= 1 and probed["memory_buffer_bytes"] > 0
    assert [p["threads"] for p in probed["profiles"]][0] == 1
    for profile in probed["profiles"]:
        for pages in ("small_pages", "huge_pages"):
            check_rate(profile["read_bytes_per_second"][pages])
        for cached in profile["caches"]:
            assert cached["level"] >= 1 and cached["buffer_bytes"] > 0
            check_rate(cached["bytes_per_second"])
        levels = {level["isa"]: level for level in profile["compute"]}
        assert "scalar" in levels and probed["isa"] in levels
        for level in levels.values():
            check_rate(level["f32_operations_per_second"])
            check_rate(level["int8_operations_per_second"])
        assert (profile["barrier_seconds"] > 0) == (profile["threads"] > 1) and profile["stage_seconds"] > 0


def test_probe_keeps_what_it_measured(probed, cache):
    assert profile_files(cache) == [probed["cache_file"]]
    again = answer("probe", XDG_CACHE_HOME=cache)
    assert not again["measured_now"] and len(again["profiles"]) == len(probed["profiles"])
    for kept, measured in zip(again["profiles"], probed["profiles"]):
        assert kept["read_bytes_per_second"]["huge_pages"] == pytest.approx(measured["read_bytes_per_second"]["huge_pages"])
        assert kept["barrier_seconds"] == pytest.approx(measured["barrier_seconds"])
    one = answer("probe", "--threads", 1, XDG_CACHE_HOME=cache)
    assert not one["measured_now"] and [p["threads"] for p in one["profiles"]] == [1]


def test_probe_measures_again_over_a_broken_file(probed, tmp_path):
    folder = tmp_path / "millrace"
    folder.mkdir()
    path = folder / os.path.basename(probed["cache_file"])
    path.write_text('{"cpu": ')
    got = answer("probe", "--threads", 1, XDG_CACHE_HOME=str(tmp_path))
    assert got["measured_now"] and json.loads(path.read_text())["profiles"]


def test_probe_without_a_place_to_keep_it(tmp_path):
    closed = tmp_path / "closed"
    closed.write_text("a file, no folder")
    result = millrace("probe", "--threads", 1, "--json", XDG_CACHE_HOME=str(closed))
    assert json.loads(result.stdout)["cache_file"] == "" and "not kept" in result.stderr


def test_probe_as_text(probed, cache):
    text = millrace("probe", XDG_CACHE_HOME=cache).stdout
    for word in ("4 KB pages", "2 MB pages", "L1, ", "Gop/s", "last-level cache", probed["isa"], probed["cpu"], probed["cache_file"]):
        assert word in text, word


def test_probe_explains_itself():
    text = millrace("probe", "--help").stdout
    assert "Example" in text and "--json" in text and "--refresh" in text
    assert "--threads" in refusal("probe", "--threads", 0)


def test_bench_measures_both_phases(llama, probed, cache):
    got = answer("bench", "step", llama, "--prompt-tokens", 32, "--new-tokens", 8, "--repeat", 2, XDG_CACHE_HOME=cache)
    for phase in ("prefill", "decode"):
        rate = got[f"{phase}_tokens_per_second"]
        assert rate["best"] >= rate["median"] >= rate["worst"] > 0
        assert 0 < got[phase]["mbu"] and 0 < got[phase]["mfu"] and 0 < got[phase]["share_of_bound"]
        assert got[phase]["bound_seconds"] > 0 and got[phase]["seconds_median"] > 0
    machine = got["machine"]
    assert machine["bandwidth_source"] in ("memory", "step", "decode")
    assert machine["bytes_per_second"] >= max(machine["memory_bytes_per_second"], machine["step_bytes_per_second"])
    assert all(machine["operations_per_second"][arithmetic] > 0 for arithmetic in ARITHMETICS)
    assert (got["prompt_tokens"], got["new_tokens"], got["depth"], got["batch"], got["repeat"]) == (32, 8, 0, 1, 2)


def test_bench_counts_bytes_and_operations(llama, probed, cache):
    got = answer("bench", "step", llama, "--prompt-tokens", 12, "--new-tokens", 3, "--depth", 5, "--batch", 2, "--repeat", 1, XDG_CACHE_HOME=cache)
    norms = (2 * 3 + 1) * 64 * 4
    step = 2 * (3 * LAYER_WEIGHTS + HEAD_WEIGHTS) + norms
    assert got["prefill"]["tokens"] == 24 and got["decode"]["tokens"] == 6
    # Prefill is one step of 24 rows, decoding three of 2; every row reads its own row of the embedding.
    assert got["prefill"]["weight_bytes"] == step + 24 * 64 * 2
    assert got["decode"]["weight_bytes"] == 3 * (step + 2 * 64 * 2)
    # Of each sequence all 17 tokens are read and 12 written; decoding reads 6, 7 and 8 and writes one.
    assert got["prefill"]["kv_bytes"] == 2 * (17 + 12) * KV_TOKEN_BYTES
    assert got["decode"]["kv_bytes"] == 2 * (6 + 7 + 8 + 3) * KV_TOKEN_BYTES
    attention = 3 * 4 * 16 * 4  # operations of one row for one key: layers, heads of 16, twice a multiplication and an addition
    assert sum(got["prefill"]["operations"].values()) == 24 * 2 * 3 * LAYER_WEIGHTS + 2 * 2 * HEAD_WEIGHTS + 2 * sum(range(6, 18)) * attention
    assert sum(got["decode"]["operations"].values()) == 6 * 2 * (3 * LAYER_WEIGHTS + HEAD_WEIGHTS) + 2 * (6 + 7 + 8) * attention


def test_bench_without_the_word_step_is_the_same(llama, probed, cache):
    options = ("--prompt-tokens", 8, "--new-tokens", 2, "--repeat", 1)
    short, long = (answer("bench", *word, llama, *options, XDG_CACHE_HOME=cache) for word in ((), ("step",)))
    assert short.keys() == long.keys() and short["decode"].keys() == long["decode"].keys()
    assert short["decode"]["weight_bytes"] == long["decode"]["weight_bytes"]


def test_bench_leaves_a_phase_out(llama, probed, cache):
    got = answer("bench", "step", llama, "--prompt-tokens", 0, "--new-tokens", 2, "--repeat", 1, XDG_CACHE_HOME=cache)
    assert "prefill" not in got and got["prefill_tokens_per_second"]["median"] == 0 < got["decode_tokens_per_second"]["median"]
    assert "decode" in millrace("bench", llama, "--prompt-tokens", 0, "--new-tokens", 2, "--repeat", 1, XDG_CACHE_HOME=cache).stdout


def test_bench_as_text(llama, probed, cache):
    text = millrace("bench", "step", llama, "--prompt-tokens", 16, "--new-tokens", 2, "--repeat", 1, XDG_CACHE_HOME=cache).stdout
    for word in ("prefill", "decode", "tokens/s", "MBU", "MFU", "GB/s"):
        assert word in text, word


def test_bench_refuses(llama, cache):
    assert "MODEL" in refusal("bench")
    assert "context" in refusal("bench", "step", llama, "--depth", 200, "--prompt-tokens", 100, XDG_CACHE_HOME=cache)
    assert "--batch" in refusal("bench", "step", llama, "--batch", 0)


def test_profile_adds_up(llama, probed, cache, tmp_path):
    picture = tmp_path / "profile.svg"
    got = answer("bench", "step", llama, "--prompt-tokens", 16, "--new-tokens", 4, "--repeat", 2, "--profile-svg", picture, XDG_CACHE_HOME=cache)
    for phase in ("prefill", "decode"):
        profile = got[phase]["profile"]
        rows = profile["rows"]
        assert profile["seconds"] == pytest.approx(profile["start_seconds"] + sum(row["busy_seconds"] + row["wait_seconds"] for row in rows))
        assert profile["busy_seconds"] == pytest.approx(sum(row["busy_seconds"] for row in rows))
        assert profile["bound_seconds"] == pytest.approx(sum(row["bound_seconds"] for row in rows))
        assert {"attention", "mlp", "head", "embedding"} <= {row["group"] for row in rows}
        logits, = [row for row in rows if row["name"] == "logits"]
        assert logits["count"] == 1 and logits["weight_bytes"] == 2 * HEAD_WEIGHTS and sum(logits["operations"].values()) == 2 * HEAD_WEIGHTS
    # One chunk of prefill: the whole of it is one step.
    assert sum(row["weight_bytes"] for row in got["prefill"]["profile"]["rows"]) == got["prefill"]["weight_bytes"]
    root = xml.etree.ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg")
    tips = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    for words in ("prefill of 16 tokens", "decode step", "attention, q k v, bound", "head, logits", "waiting", "start of the step"):
        assert any(words in tip for tip in tips), words


def test_profile_as_text(llama, probed, cache):
    options = ("--prompt-tokens", 8, "--new-tokens", 2, "--repeat", 1)
    text = millrace("bench", "step", llama, *options, "--profile", XDG_CACHE_HOME=cache).stdout
    for word in ("prefill of 8 tokens", "decode step", "q k v", "gate and up", "waiting for one another", "start of the step", "of bound"):
        assert word in text, word
    layers = millrace("bench", "step", llama, *options, "--profile-layers", XDG_CACHE_HOME=cache).stdout
    assert "layer 0" in layers and "layer 2" in layers and "layer 0" not in text
    assert "waiting" not in millrace("bench", "step", llama, *options, XDG_CACHE_HOME=cache).stdout


def test_a_picture_escapes_the_models_name(copied_llama, probed, cache, tmp_path):
    strange = copied_llama.with_name("a <b> & \"c\"")
    copied_llama.rename(strange)
    picture = tmp_path / "p.svg"
    millrace("bench", strange, "--prompt-tokens", 4, "--new-tokens", 1, "--repeat", 1, "--profile-svg", picture, XDG_CACHE_HOME=cache)
    assert any("a <b> & \"c\"" in (element.text or "") for element in xml.etree.ElementTree.parse(picture).getroot().iter())
    assert "no/such" in refusal("bench", strange, "--prompt-tokens", 4, "--new-tokens", 1, "--repeat", 1, "--profile-svg", "/no/such/folder.svg", XDG_CACHE_HOME=cache)

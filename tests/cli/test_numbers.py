"""logits and verify: what the network computes."""
import json
import re

import pytest

from command import CHECK_FAILED, ENCODERS, MODELS, answer, millrace, refusal

GOLDEN = json.loads((MODELS / "llama/golden.json").read_text())
DIRECTORIES = sorted(path.name for path in MODELS.iterdir())


def spaced(ids):
    return " ".join(map(str, ids))


@pytest.mark.parametrize("prompt", GOLDEN["prompts"], ids=lambda p: p["name"])
def test_exact_logits_equal_the_reference(llama, prompt):
    position, = answer("logits", llama, "--ids", spaced(prompt["ids"]), "--exact")["positions"]
    want = prompt["last_logits"]
    assert position["position"] == len(prompt["ids"]) - 1
    assert position["first16"] == pytest.approx(want["first16"], abs=1e-3)
    assert dict(position["top20"]) == pytest.approx(dict(want["top20"]), abs=1e-3)
    assert position["l2"] == pytest.approx(want["l2"], rel=1e-4)


def test_all_positions_and_separators(llama):
    ids = GOLDEN["prompts"][1]["ids"]
    positions = answer("logits", llama, "--ids", ",".join(map(str, ids)), "--exact", "--all-positions")["positions"]
    assert [p["position"] for p in positions] == list(range(len(ids)))
    # Causal: the logits after a prefix do not know what follows.
    prefix, = answer("logits", llama, "--ids", spaced(ids[:5]), "--exact")["positions"]
    assert positions[4]["first16"] == pytest.approx(prefix["first16"], abs=1e-5)
    assert "position 4 " in millrace("logits", llama, "--ids", spaced(ids), "--all-positions").stdout


def test_threads_change_no_digit(llama):
    ids = spaced(GOLDEN["prompts"][2]["ids"])
    one, three = (answer("logits", llama, "--ids", ids, "--threads", n) for n in (1, 3))
    assert one == three


def test_every_instruction_set_that_runs_here_agrees(llama):
    want = GOLDEN["prompts"][2]
    for isa in ("scalar", "avx2", "avx2-vnni", "avx512-vnni", "avx512-vnni-bf16", "amx"):
        result = millrace("logits", llama, "--ids", spaced(want["ids"]), "--json", "--exact", status={0, 2}, MILLRACE_ISA=isa)
        if result.returncode == 2:
            assert "cannot run" in result.stderr
            continue
        position, = json.loads(result.stdout)["positions"]
        assert position["first16"] == pytest.approx(want["last_logits"]["first16"], abs=1e-3), isa


@pytest.mark.parametrize("ids, named", [("1 2 x", '"x"'), ("", "no token"), ("-1", '"-1"'), ("99999999999999999999", "99999999999999999999"), ("1 640", "640")])
def test_bad_ids_are_named(llama, ids, named):
    assert named in refusal("logits", llama, "--ids", ids)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_every_golden_passes(name):
    got = answer("verify", MODELS / name, "--reference", MODELS / name / "golden.json")
    assert got["passed"] and len(got["prompts"]) == 3
    for prompt in got["prompts"]:
        assert prompt["exact"]["logit_difference"] <= 1e-3 and prompt["exact"]["greedy_equal"] == prompt["exact"]["greedy_total"] == 24


@pytest.mark.parametrize("name", sorted(path.name for path in ENCODERS.iterdir()))
def test_every_golden_encoder_passes(name):
    got = answer("verify", ENCODERS / name, "--reference", ENCODERS / name / "golden.json")
    assert got["passed"] and len(got["texts"]) >= 2
    for text in got["texts"]:
        assert text["exact"]["difference"] <= 1e-4 and text["fast"]["cosine"] > 0.999


def test_a_reference_of_the_other_kind_is_named(llama):
    bert = ENCODERS / "bert"
    assert "the model is an encoder" in refusal("verify", bert, "--reference", MODELS / "llama/golden.json")
    assert "the model is a decoder" in refusal("verify", llama, "--reference", bert / "golden.json")


def test_encoders_write_no_text():
    bert = ENCODERS / "bert"
    for command in (["generate", bert, "--prompt", "Once"], ["logits", bert, "--ids", "2 3"]):
        message = refusal(*command)
        assert "is an encoder that makes embeddings of 64 numbers (bert family), expected a decoder" in message


# vLLM's names of a type are taken, and called what the type is called here.
@pytest.mark.parametrize("name, dtype", [("f32", "f32"), ("bf16", "bf16"), ("auto", "bf16"), ("int8", "int8"),
                                         ("fp8-e4m3", "fp8-e4m3"), ("fp8", "fp8-e4m3"), ("fp8_e4m3", "fp8-e4m3"), ("int4", "int4")])
def test_every_kv_dtype_passes(llama, name, dtype):
    got = answer("verify", llama, "--reference", MODELS / "llama/golden.json", "--kv-cache-dtype", name)
    assert got["passed"] and got["kv_cache_dtype"] == dtype


def test_a_gguf_file_equals_the_directory_it_was_made_from(qwen2_gguf, qwen2_golden):
    assert answer("verify", qwen2_gguf, "--reference", qwen2_golden)["passed"]


def test_text_output(llama):
    text = millrace("verify", llama, "--reference", MODELS / "llama/golden.json").stdout
    assert "len70" in text and "24/24" in text and "\npassed: " in text


def changed(tmp_path, change):
    reference = json.loads((MODELS / "llama/golden.json").read_text())
    change(reference["prompts"][1])
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(reference))
    return path


def difference(text):
    return float(re.search(r"difference ([\d.]+)", text).group(1))


def test_a_changed_logit_fails_with_position_and_size(llama, tmp_path):
    def change(prompt):
        prompt["last_logits"]["first16"][3] += 0.01
    result = millrace("verify", llama, "--reference", changed(tmp_path, change), status=CHECK_FAILED)
    assert "FAILED len17: exact path: position 16: logit of token 3 " in result.stdout
    assert difference(result.stdout) == pytest.approx(0.01, abs=1e-4) and "tolerance 0.001" in result.stdout


def test_a_changed_logprob_fails_with_its_position(llama, tmp_path):
    def change(prompt):
        prompt["prompt_logprobs"][6] -= 0.5
    result = millrace("verify", llama, "--reference", changed(tmp_path, change), "--json", status=CHECK_FAILED)
    got = json.loads(result.stdout)
    assert not got["passed"]
    failure, = got["prompts"][1]["failures"]
    assert "position 6: " in failure and difference(failure) == pytest.approx(0.5, abs=1e-4)
    assert got["prompts"][0]["failures"] == got["prompts"][2]["failures"] == []


def test_a_changed_greedy_token_fails(llama, tmp_path):
    def change(prompt):
        prompt["greedy"][9] = (prompt["greedy"][9] + 1) % 640
    result = millrace("verify", llama, "--reference", changed(tmp_path, change), status=CHECK_FAILED)
    assert "greedy token 9 is" in result.stdout


def test_tolerances_are_the_users(llama, tmp_path):
    def change(prompt):
        prompt["last_logits"]["first16"][3] += 0.01
    path = changed(tmp_path, change)
    millrace("verify", llama, "--reference", path, "--exact-tolerance", 0.02)
    millrace("verify", llama, "--reference", MODELS / "llama/golden.json", "--fast-l2", 1e-9, status=CHECK_FAILED)
    millrace("verify", llama, "--reference", MODELS / "llama/golden.json", "--fast-kl", 1e-12, status=CHECK_FAILED)


@pytest.mark.parametrize("text, named", [
    ("{", "line 1"), ("[]", "no JSON object"), ("{}", '"prompts"'), ('{"prompts": []}', '"prompts"'), ('{"prompts": [{}]}', '"ids"'),
    ('{"kind": "diffusion", "prompts": []}', "diffusion"), ('{"kind": "seq2seq", "prompts": []}', '"results"'), ('{"kind": "encoder", "prompts": []}', '"results"'), ('{"prompts": [{"ids": [1.5], "last_logits": {}}]}', "1.5"),
    ('{"prompts": [{"ids": [99999], "last_logits": {"first16": [0]}}]}', "99999"), ('{"prompts": [{"ids": [1], "last_logits": {"first16": [0]}, "greedy": [99999, 1]}]}', "99999"),
    ('{"prompts": [{"ids": [1], "last_logits": {}}]}', "nothing to compare"),
    ('{"prompts": [{"ids": [], "last_logits": {}}]}', "ids")])
def test_a_broken_reference_is_an_error(llama, tmp_path, text, named):
    path = tmp_path / "broken.json"
    path.write_text(text)
    message = refusal("verify", llama, "--reference", path)
    assert "broken.json" in message and named in message

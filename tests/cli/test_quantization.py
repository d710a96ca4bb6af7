"""--quantization: what the commands make of it. The numbers are judged in millrace/model/quantize_test.cc and tensor/round_to_nearest_test.cc."""
import json
import math

import pytest

from command import CHECK_FAILED, ENCODERS, MODELS, ERROR, answer, millrace, refusal

TYPES = {"int8": ("INT8", 8), "int4": ("INT4_ZP", 4), "nf4": ("CODE4", 4), "fp8": ("F8_E4M3", 8)}
QWEN3 = MODELS / "qwen3"  # stored as F32


@pytest.mark.parametrize("name", TYPES)
def test_inspect_predicts_what_it_takes(name):
    weight_class, bits = TYPES[name]
    plain, got = answer("inspect", QWEN3), answer("inspect", QWEN3, "--quantization", name)
    assert plain["load_time_quantization"] is None and got["load_time_quantization"].startswith(name)
    classes = {c["class"]: c for c in got["quantization"]}
    assert bits <= classes[weight_class]["bits_per_weight"] <= bits + 1.01
    assert sum(c["weights"] for c in classes.values()) == sum(c["weights"] for c in plain["quantization"])
    assert got["memory"]["weights_bytes"] < plain["memory"]["weights_bytes"] / (32 / (bits + 2))
    assert f"quantized while loading: {name}" in millrace("inspect", QWEN3, "-q", name).stdout


def test_the_head_has_eight_bits_and_the_router_stays():
    matrices = answer("inspect", MODELS / "qwen3_moe", "--quantization", "int4", "--explain")["matrices"]
    classes = {m["tensor"]: m["class"] for m in matrices}
    heads = [c for tensor, c in classes.items() if "lm_head" in tensor or "embed_tokens" in tensor]
    routers = [c for tensor, c in classes.items() if tensor.endswith("mlp.gate.weight")]
    assert heads == ["INT8"] and routers and set(routers) == {"BF16"}
    projections = [m for m in matrices if "_proj" in m["tensor"]]
    assert any(".experts." in m["tensor"] and m["class"] == "INT4_ZP" for m in projections)
    assert all(m["class"] == ("BF16" if m["k"] % 32 else "INT4_ZP") for m in projections)


def test_group_size_symmetry_and_exclusions():
    def weights(*args):
        return answer("inspect", QWEN3, "--quantization", "int4", *args)["memory"]["weights_bytes"]

    assert weights("--quantization-group-size", 32, "--quantization-symmetric") < weights("--quantization-group-size", 32) > weights("--quantization-group-size", -1)
    # Each flag takes one pattern, so MODEL may follow.
    got = json.loads(millrace("inspect", "--quantization", "int8", "--quantization-exclude", "lm_head", "--quantization-exclude", "mlp.*", QWEN3, "--json", "--explain").stdout)
    for matrix in got["matrices"]:
        assert (matrix["class"] == "F32") == any(part in matrix["tensor"] for part in ("lm_head", "embed_tokens", ".mlp.")), matrix


def test_what_cannot_be_is_named():
    error = refusal("generate", MODELS / "llama-gptq-int4", "--quantization", "int8", "--prompt", "a")
    assert "already quantized" in error and "gptq" in error and "qweight" in error
    assert "int8" in refusal("inspect", QWEN3, "--quantization", "int5")
    assert "--quantization" in refusal("inspect", QWEN3, "--quantization-group-size", 64)
    assert "96" in refusal("inspect", QWEN3, "--quantization", "int4", "--quantization-group-size", 96)
    assert "lm_heed" in refusal("inspect", QWEN3, "--quantization", "int4", "--quantization-exclude", "lm_heed")
    assert "--quantization" in refusal("tokenize", QWEN3, "--quantization", "int8", "--text", "a")


def test_a_quantized_gguf_is_refused_and_a_plain_one_is_not(qwen2_gguf, qwen2_q8_gguf):
    assert "Q8_0" in refusal("inspect", qwen2_q8_gguf, "--quantization", "int4")
    assert answer("inspect", qwen2_gguf, "--quantization", "int4")["load_time_quantization"].startswith("int4, groups of 128")


@pytest.mark.parametrize("name", TYPES)
def test_every_command_computes_with_it(name, tmp_path):
    quantized = ("--quantization", name)
    logits = answer("logits", QWEN3, "--ids", "1 2 3", *quantized)
    assert logits != answer("logits", QWEN3, "--ids", "1 2 3") and math.isfinite(logits["positions"][-1]["l2"] if "positions" in logits else logits["l2"])
    want = answer("generate", QWEN3, "--prompt", "Hello", "--max-tokens", 8, "--temperature", 0, *quantized)
    assert answer("generate", QWEN3, "--prompt", "Hello", "--max-tokens", 8, "--temperature", 0, *quantized)["text"] == want["text"]
    # The reference is of the plain weights.
    assert millrace("verify", QWEN3, "--reference", QWEN3 / "golden.json", *quantized, status=CHECK_FAILED).stdout
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    against = answer("eval", QWEN3, "--text", text, "--context", 64, "--against", QWEN3, *quantized)["against"]
    assert 0 < against["kl"]["mean"] < 0.5  # not against itself
    millrace("bench", "step", QWEN3, "--prompt-tokens", 8, "--new-tokens", 4, "--repeat", 1, *quantized)


@pytest.mark.parametrize("encoder", ["bert", "modernbert", "xlm-roberta"])
def test_embeddings_in_eight_bits_point_the_same_way(encoder):
    texts = ["a mill race", "The quick brown fox jumps over the lazy dog.", "x"]
    args = [argument for text in texts for argument in ("--text", text)]

    def embeddings(*more):
        return [json.loads(line)["embedding"] for line in millrace("embed", ENCODERS / encoder, *args, "--json", *more).stdout.splitlines()]

    for a, b in zip(embeddings("--exact"), embeddings("--quantization", "int8"), strict=True):
        cosine = sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
        assert 0.995 <= cosine < 1

import json
import os

import pytest

from command import ENCODERS, MODELS, ROOT, SEQ2SEQ, answer, millrace, refusal

ISAS = {"scalar": set(), "avx2": {"avx2", "fma", "f16c", "bmi2"}, "avx2-vnni": {"avx2", "avx_vnni"},
        "avx512-vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
        "avx512-vnni-bf16": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"},
        "amx": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}}


def cpu_flags():
    with open("/proc/cpuinfo") as file:
        return set(next(line for line in file if line.startswith("flags")).split(":")[1].split())


def test_a_hugging_face_directory(llama):
    got = answer("inspect", llama)
    config = json.loads((MODELS / "llama/config.json").read_text())
    assert got["source"] == "huggingface" and got["family"] == "llama"
    assert got["file_bytes"] == os.path.getsize(MODELS / "llama/model.safetensors")
    shapes = got["shapes"]
    for field in ("vocab_size", "hidden_size", "intermediate_size", "head_dim"):
        assert shapes[field] == config[field], field
    assert shapes["num_layers"] == config["num_hidden_layers"]
    assert (shapes["num_heads"], shapes["num_kv_heads"]) == (config["num_attention_heads"], config["num_key_value_heads"])
    assert shapes["position"] == "rope" and shapes["tied_head"] is False
    classes = {c["class"].upper(): c for c in got["quantization"]}
    assert classes.keys() <= {"BF16", "F32"} and classes["BF16"]["bits_per_weight"] == 16
    assert "characters" in got["chat_template"] and not got["tokenizer"].startswith("none")


def test_kv_memory_follows_context_and_dtype(llama):
    half = answer("inspect", llama, "--kv-cache-dtype", "bf16", "--max-model-len", 100)["memory"]
    full = answer("inspect", llama, "--kv-cache-dtype", "f32", "--max-model-len", 200)["memory"]
    # 3 layers, 2 KV heads, 16 wide, keys and values.
    assert half["kv_bytes_per_token"] == 3 * 2 * 16 * 2 * 2 and half["kv_bytes"] == 100 * half["kv_bytes_per_token"]
    assert full["kv_bytes_per_token"] == 2 * half["kv_bytes_per_token"] and full["kv_context"] == 200
    # A byte a value, and for each token and head a scale of its key and one of its value, 4 bytes each.
    for dtype in ("int8", "fp8-e4m3"):
        assert answer("inspect", llama, "--kv-cache-dtype", dtype)["memory"]["kv_bytes_per_token"] == 3 * 2 * (16 * 2 + 2 * 4)
    # Half a byte a value; values are padded to 32 a head.
    assert answer("inspect", llama, "--kv-cache-dtype", "int4")["memory"]["kv_bytes_per_token"] == 3 * 2 * (16 // 2 + 32 // 2 + 2 * 4)


def test_explain_lists_every_tensor_once(llama):
    got = answer("inspect", llama, "--explain")
    data = (MODELS / "llama/model.safetensors").read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    assert sorted(b["tensor"] for b in got["bindings"]) == sorted(name for name in header if name != "__metadata__")
    assert all(b["role"] for b in got["bindings"])
    text = millrace("inspect", llama, "--explain").stdout
    assert "lm_head.weight" in text and "unfused operations" in text


def test_a_gguf_file(qwen2_q8_gguf):
    got = answer("inspect", qwen2_q8_gguf)
    assert got["source"] == "gguf" and got["family"] == "qwen2" and got["file_bytes"] == os.path.getsize(qwen2_q8_gguf)
    q8 = next(c for c in got["quantization"] if c["class"] == "Q8_0")
    assert q8["bits_per_weight"] == 8.5
    assert got["memory"]["weights_bytes"] <= 1.05 * got["file_bytes"]


def test_text_output_names_what_a_user_looks_for(llama):
    text = millrace("inspect", llama).stdout
    for word in ("model", "family", "shapes", "weights", "memory", "tokenizer", "chat template", "instruction set"):
        assert f"\n{word}" in f"\n{text}", word


@pytest.mark.parametrize("isa", ISAS)
def test_a_forced_instruction_set_is_the_one_used(llama, isa):
    if ISAS[isa] <= cpu_flags():
        assert answer("inspect", llama, MILLRACE_ISA=isa)["isa"] == isa
        assert isa in millrace("inspect", llama, MILLRACE_ISA=isa).stdout
    else:
        message = refusal("inspect", llama, MILLRACE_ISA=isa)
        assert "MILLRACE_ISA" in message and isa in message


def test_an_unknown_instruction_set_is_an_error(llama):
    message = refusal("inspect", llama, MILLRACE_ISA="avx1024")
    assert "avx1024" in message and "avx512-vnni" in message


def test_states_take_the_same_room_at_any_length():
    short, long = (answer("inspect", MODELS / "mamba", "--max-model-len", n) for n in (100, 10000))
    group, = short["kv_groups"]
    # 2 layers, 128 channels: 3 inputs of the convolution and 8 states each, in f32.
    assert group == {"layers": 2, "state_bytes": 2 * 128 * (3 + 8) * 4} and short["shapes"]["num_layers_with_state"] == 2
    assert short["memory"]["kv_bytes_per_token"] == 0 and short["memory"]["kv_bytes"] == long["memory"]["kv_bytes"] == 2 * group["state_bytes"]
    mixed = answer("inspect", MODELS / "lfm2")
    assert [("state_bytes" in g) for g in mixed["kv_groups"]] == [True, False] and mixed["shapes"]["num_kv_heads"] == 2


def test_every_golden_model_opens():
    for directory in [*MODELS.iterdir(), *ENCODERS.iterdir(), *SEQ2SEQ.iterdir()]:
        assert answer("inspect", directory)["shapes"]["num_layers"] >= 1, directory.name


def test_families_directory_matches_the_binary():
    """Each built-in family is seen in some golden model, so that docs/models.md says nothing unproven."""
    seen = {answer("inspect", directory)["family"] for directory in [*MODELS.iterdir(), *ENCODERS.iterdir(), *SEQ2SEQ.iterdir()]}
    built_in = {json.loads(path.read_text())["family"] for path in (ROOT / "millrace/model/families").glob("*.json")}
    assert seen == built_in

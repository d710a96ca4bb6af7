"""Files that are missing, damaged or hostile: exit status 2 and a message, never a crash, a hang or a gigabyte of memory."""
import concurrent.futures
import json
import os
import random
import shutil
import subprocess

import pytest

from command import BINARY, DONE, ENCODERS, ERROR, MODELS, environment, millrace, refusal

NUM_PLACES = 200


def test_a_missing_model_is_named(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path / "absent"):
        assert path.name in refusal("inspect", path)


def test_an_empty_directory_says_what_was_looked_for(tmp_path):
    message = refusal("inspect", tmp_path)
    assert "model.safetensors" in message and ".gguf" in message


def test_a_hub_name_offline_says_so():
    message = refusal("inspect", "nobody/nothing", HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nonexistent")
    assert "nobody/nothing" in message


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "notes.gguf"
    path.write_text("These are notes, not a model.\n" * 100)
    assert "GGUF" in refusal("inspect", path) and "notes.gguf" in refusal("inspect", path)


def test_a_pipe_is_no_model_and_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    assert "pipe.gguf: is not a regular file" in refusal("inspect", path)


def test_missing_parts_are_named(copied_llama):
    (copied_llama / "model.safetensors").rename(copied_llama / "weights.bin")
    assert "safetensors" in refusal("inspect", copied_llama)


def test_a_missing_tokenizer_is_an_error_only_for_who_needs_it(copied_llama):
    (copied_llama / "tokenizer.json").unlink()
    assert "tokenizer" in refusal("generate", copied_llama, "--prompt", "a")
    assert "tokenizer" in refusal("tokenize", copied_llama, "--text", "a")
    millrace("logits", copied_llama, "--ids", "1 2 3")


def test_a_shape_that_disagrees_is_named(copied_llama):
    config = json.loads((copied_llama / "config.json").read_text())
    (copied_llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 161}))
    message = refusal("inspect", copied_llama)
    assert "mlp" in message and "161" in message


@pytest.mark.parametrize("field, value", [("num_hidden_layers", 10**9), ("num_hidden_layers", -1), ("hidden_size", 0), ("vocab_size", 2**62), ("num_attention_heads", 0),
                                          ("head_dim", 3), ("rms_norm_eps", "small"), ("num_hidden_layers", None), ("architectures", []), ("rope_theta", 1e400)])
def test_absurd_configurations_are_refused(copied_llama, field, value):
    config = json.loads((copied_llama / "config.json").read_text())
    (copied_llama / "config.json").write_text(json.dumps(config | {field: value}))
    refusal("logits", copied_llama, "--ids", "1")


def damaged(data, choose, header_bytes):
    """`data` with one thing wrong: cut short, a byte changed, or a stretch overwritten; half of the places are in the header."""
    kind = choose.choice(["cut", "byte", "byte", "stretch"])
    if kind == "cut":
        return kind, data[:choose.randrange(len(data))]
    place = choose.randrange(header_bytes) if choose.random() < 0.5 else choose.randrange(len(data))
    changed = bytearray(data)
    if kind == "byte":
        changed[place] ^= choose.randrange(1, 256)
    else:
        stretch = choose.randbytes(choose.randrange(1, 16))
        changed[place:place + len(stretch)] = stretch
    return kind, bytes(changed)


def check_all(attempts):
    """Runs the attempts, two at a time; each is (name, what was done, command)."""
    def attempt(what):
        kind, command = what
        result = millrace(*command, status={DONE, ERROR}, timeout=60)
        # Numbers in the data may be any, so that not every changed byte is an error; a file that ends early always is.
        assert kind != "cut" or result.returncode == ERROR, f"a truncated file was taken for whole: {command}"
        return result.returncode
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(attempt, attempts))


def test_gguf_damaged_at_200_places(qwen2_q8_gguf, tmp_path):
    with open(qwen2_q8_gguf, "rb") as file:
        data = file.read()
    choose = random.Random(20)
    header_bytes = data.index(b"output_norm.weight") + 200
    attempts = []
    for i in range(NUM_PLACES):
        kind, changed = damaged(data, choose, header_bytes)
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(changed)
        attempts.append((kind, ["generate", path, "--prompt", "Hi", "--max-tokens", 2] if i % 4 == 0 else ["logits", path, "--ids", "1 2 3"]))
    statuses = check_all(attempts)
    assert statuses.count(ERROR) > NUM_PLACES / 3


def test_safetensors_directory_damaged_at_200_places(llama, tmp_path):
    choose = random.Random(21)
    attempts = []
    for i in range(NUM_PLACES):
        # Mostly the weights, and the JSON files beside them.
        name = choose.choice(["model.safetensors"] * 4 + ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
        directory = tmp_path / str(i)
        directory.mkdir()
        for file in (MODELS / "llama").iterdir():
            if file.name not in (name, "golden.json"):
                (directory / file.name).symlink_to(file)
        data = (MODELS / "llama" / name).read_bytes()
        header_bytes = 8 + int.from_bytes(data[:8], "little") if name == "model.safetensors" else len(data)
        kind, changed = damaged(data, choose, header_bytes)
        (directory / name).write_bytes(changed)
        # Of the JSON files a cut may leave what is not read: only the weights and the configuration must be whole.
        kind = kind if name in ("model.safetensors", "config.json") else "any"
        command = ["generate", directory, "--prompt", "Hi", "--max-tokens", 2] if "token" in name or "generation" in name else ["logits", directory, "--ids", "1 2 3"]
        attempts.append((kind, command))
    statuses = check_all(attempts)
    assert statuses.count(ERROR) > NUM_PLACES / 3


def test_huge_claims_take_no_memory(tmp_path):
    """Counts and lengths of 2^60 in the first bytes are refused before anything is allocated for them."""
    gguf = tmp_path / "huge.gguf"
    for tensors, entries in ((2**60, 0), (0, 2**60), (2**63, 2**63), (2**32, 2**32)):
        gguf.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + tensors.to_bytes(8, "little") + entries.to_bytes(8, "little") + bytes(64))
        assert "huge.gguf" in refusal("inspect", gguf, timeout=20)
    directory = tmp_path / "model"
    shutil.copytree(MODELS / "llama", directory)
    for claim in (2**60, 2**64 - 1, 1 << 40):
        (directory / "model.safetensors").write_bytes(claim.to_bytes(8, "little") + b"{}" + bytes(100))
        assert "model.safetensors" in refusal("inspect", directory, timeout=20)


def test_invalid_utf8_is_refused(llama):
    text = b"\xff\xfe abc \xc3".decode(errors="surrogateescape")
    assert "not UTF-8 at byte 0" in refusal("tokenize", llama, "--text", text)
    assert "not UTF-8 at byte 0" in refusal("generate", llama, "--prompt", text, "--max-tokens", 2)
    assert "not UTF-8 at byte 1" in refusal("generate", llama, "--prompt", "a" + text, "--max-tokens", 2)


def test_a_lost_answer_is_no_success(llama):
    for command in (["inspect", llama], ["inspect", llama, "--json"], ["tokenize", llama, "--text", "word " * 20_000, "--plain"], ["generate", llama, "--prompt", "a", "--max-tokens", 2],
                    ["logits", llama, "--ids", "1 2"], ["--help"], ["--version"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([BINARY, *map(str, command)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment())
        assert done.returncode == ERROR and "could not be written to standard output" in done.stderr, (command, done)


def test_what_contradicts_itself_is_refused(llama):
    for command in (["generate", llama, "--prompt", "a"], ["run", llama], ["serve", llama, "--port", 0], ["logits", llama, "--ids", "1"], ["embed", ENCODERS / "bert", "--text", "a"],
                    ["eval", llama, "--text", __file__]):
        message = refusal(*command, "--exact", "--kv-cache-dtype", "int8", timeout=30)
        assert "--exact" in message and "--kv-cache-dtype" in message and "int8" in message, command
    millrace("logits", llama, "--ids", "1", "--exact", "--kv-cache-dtype", "f32")


def test_an_unknown_architecture_has_near_names(copied_llama):
    config = json.loads((copied_llama / "config.json").read_text())
    (copied_llama / "config.json").write_text(json.dumps(config | {"architectures": ["Quen3ForCausalLM"]}))
    message = refusal("inspect", copied_llama)
    assert "Quen3ForCausalLM" in message and "Qwen3ForCausalLM" in message and "docs/models.md" in message and len(message) < 500

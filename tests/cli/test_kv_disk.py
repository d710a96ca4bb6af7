"""--kv-disk-dir and --kv-disk-bytes (docs/memory.md)."""
from command import ENCODERS, ERROR, MODELS, SEQ2SEQ, answer, millrace

LLAMA = MODELS / "llama"
PROMPT = "a mill race is a channel of fast water " * 4


def test_the_next_run_reads_what_the_last_one_wrote(tmp_path):
    plain = answer("generate", LLAMA, "--prompt", PROMPT, "--max-tokens", 20, "--temperature", 0)
    for _ in range(2):
        kept = answer("generate", LLAMA, "--prompt", PROMPT, "--max-tokens", 20, "--temperature", 0, "--kv-disk-dir", tmp_path / "kv")
        assert kept["text"] == plain["text"]
    files = list((tmp_path / "kv").glob("*/*.kv"))
    assert files
    # Another type of keys and values has files of its own.
    answer("generate", LLAMA, "--prompt", PROMPT, "--max-tokens", 1, "--kv-disk-dir", tmp_path / "kv", "--kv-cache-dtype", "int8")
    assert len(list((tmp_path / "kv").glob("*/*.kv"))) > len(files)


def refusal(*args):
    return millrace(*args, status=ERROR).stderr


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    folder = tmp_path / "kv"
    assert "--kv-disk-dir" in refusal("serve", LLAMA, "--port", 0, "--kv-disk-bytes", "1GB")
    assert "--kv-disk-dir: a disk tier is a part of the prefix cache, which is off" in refusal(
        "serve", LLAMA, "--port", 0, "--kv-disk-dir", folder, "--no-enable-prefix-caching")
    assert "the disk tier may hold 1000 bytes" in refusal("generate", LLAMA, "--prompt", "a", "--kv-disk-dir", folder, "--kv-disk-bytes", 1000)
    assert "--kv-disk-dir" in (said := refusal("generate", SEQ2SEQ / "t5", "--prompt", "a", "--kv-disk-dir", folder)) and "encoder-decoder" in said
    assert "--kv-disk-dir" in (said := refusal("serve", ENCODERS / "bert", "--port", 0, "--kv-disk-dir", folder)) and "embeddings" in said
    assert not folder.exists()


def test_a_folder_that_cannot_be_used_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    result = millrace("generate", LLAMA, "--prompt", "a", "--max-tokens", 1, "--kv-disk-dir", tmp_path / "file")
    assert "warning: --kv-disk-dir: " in result.stderr and "cached prefixes are not kept on disk" in result.stderr

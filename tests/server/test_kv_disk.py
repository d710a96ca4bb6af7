"""The disk tier of the prefix cache (docs/memory.md): what one process has computed, the next one reads."""
import signal
import time

import pytest
from conftest import BINARY, PATIENCE

pytestmark = pytest.mark.skipif(not BINARY, reason="fake_server has no keys and values to keep (MILLRACE_BINARY)")

PROMPT = list(range(5, 105))  # 3 blocks of 32 tokens, and some


def ask(running, **more):
    answer = running.client(**more).completions.create(model=running.models()["id"], prompt=PROMPT, max_tokens=12, temperature=0, logprobs=3)
    (choice,) = answer.choices
    return choice.text, choice.logprobs.token_logprobs, answer.usage.prompt_tokens_details.cached_tokens


def end(running, how=signal.SIGTERM):
    """Ends the process; what it printed to stderr."""
    running.process.send_signal(how)
    errors = running.process.communicate(timeout=40)[1]
    assert running.process.returncode == (0 if how == signal.SIGTERM else -how)
    return errors


def wait_for_blocks(running, count):
    deadline = time.monotonic() + 20 * PATIENCE
    while running.metrics()["millrace_kv_disk_blocks_written_total"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_prompt_is_cached_in_the_next_process(make_server, tmp_path):
    first = make_server("--kv-disk-dir", tmp_path / "kv", "--kv-disk-bytes", "10MB")
    text, logprobs, cached = ask(first)
    assert cached == 0
    assert "warning" not in end(first)
    second = make_server("--kv-disk-dir", tmp_path / "kv", "--kv-disk-bytes", "10MB")
    assert ask(second) == (text, logprobs, 96)
    metrics = second.metrics()
    assert metrics["millrace_kv_disk_blocks_read_total"] == 3 and metrics["millrace_kv_disk_blocks_rejected_total"] == 0
    assert 0 < metrics["millrace_kv_disk_bytes"] <= 10e6 and metrics["millrace_kv_disk_writing"] == 1
    assert "warning" not in end(second)


def test_a_killed_process_leaves_what_it_had_written(make_server, tmp_path):
    first = make_server("--kv-disk-dir", tmp_path)
    text, logprobs, _ = ask(first)
    wait_for_blocks(first, 3)
    end(first, signal.SIGKILL)
    assert ask(make_server("--kv-disk-dir", tmp_path)) == (text, logprobs, 96)


def test_a_damaged_file_is_a_warning(make_server, tmp_path):
    first = make_server("--kv-disk-dir", tmp_path)
    text, logprobs, _ = ask(first)
    end(first)
    files = list(tmp_path.glob("*/*.kv"))
    assert len(files) == 3
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    second = make_server("--kv-disk-dir", tmp_path)
    assert ask(second) == (text, logprobs, 0)
    errors = end(second)
    assert "warning: --kv-disk-dir: " in errors and "checksum" in errors


def test_keys_share_nothing_whatever_their_lines(make_server, tmp_path):
    cached = []
    for number, lines in enumerate((["first", "second"], ["second", "first"])):
        file = tmp_path / f"keys{number}"
        file.write_text("\n".join(lines))
        running = make_server("--kv-disk-dir", tmp_path / "kv", "--api-key-file", file)
        for key in ["first"] if number == 0 else ["second", "first"]:
            client = running.client()
            client.api_key = key
            answer = client.completions.create(model=client.models.list().data[0].id, prompt=PROMPT, max_tokens=1)
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        end(running)
    assert cached == [0, 0, 96]


def test_two_processes_do_not_share_a_folder_and_both_serve(make_server, tmp_path):
    first = make_server("--kv-disk-dir", tmp_path)
    second = make_server("--kv-disk-dir", tmp_path)
    assert ask(first)[:2] == ask(second)[:2]
    assert "millrace_kv_disk_bytes" in first.metrics() and "millrace_kv_disk_bytes" not in second.metrics()
    assert "another process uses the folder" in end(second)
    end(first)

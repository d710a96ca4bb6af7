"""The packed cache (docs/memory.md), with the demo model: smaller ones are not kept."""
import os
import re
import signal
import subprocess
import time

import pytest

from command import BINARY, answer, environment, millrace
from test_demo_model import DEMO, pytestmark  # noqa: F401: skips where there is no demo model

TOKENS = ["--prompt", "Once upon a time", "--max-tokens", 16, "--temperature", 0]


def packed_files(cache):
    return sorted((cache / "millrace/weights").glob("*.packed")) if (cache / "millrace/weights").exists() else []


def serve_until(cache, condition, *options):
    """Starts the server, waits until the condition holds, stops it, and returns what it printed at its start."""
    process = subprocess.Popen([BINARY, "serve", DEMO, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment(XDG_CACHE_HOME=str(cache)))
    try:
        start = ""
        while "curl" not in start:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            start += line
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, "waited for the cache file"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    return start, errors


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that a server has filled."""
    folder = tmp_path_factory.mktemp("cache")
    start, errors = serve_until(folder, lambda: packed_files(folder))
    assert "from the packed cache" not in start and "warning" not in errors
    return folder


def test_the_next_start_maps_and_says_the_same(cache):
    start, errors = serve_until(cache, lambda: True)
    assert "from the packed cache" in start and "warning" not in errors
    fresh = answer("generate", DEMO, *TOKENS, "--no-weight-cache")
    mapped = answer("generate", DEMO, *TOKENS, XDG_CACHE_HOME=str(cache))
    assert mapped["text"] == fresh["text"]


def test_the_file_is_the_weights_and_little_more(cache):
    (file,) = packed_files(cache)
    weights = answer("inspect", DEMO)["memory"]["weights_bytes"]
    assert weights < file.stat().st_size <= weights + (2 << 20)
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert file.name.startswith(os.path.basename(DEMO).removesuffix(".gguf"))


def test_a_broken_file_is_a_warning_and_is_written_again(cache):
    (file,) = packed_files(cache)
    good = file.read_bytes()
    at = len(good) // 2
    file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
    broken = file.stat().st_ino
    result = millrace("generate", DEMO, *TOKENS, XDG_CACHE_HOME=str(cache))
    assert "warning" in result.stderr and str(file) in result.stderr and "checksum" in result.stderr
    start, _ = serve_until(cache, lambda: file.stat().st_ino != broken and file.read_bytes() == good)
    assert "from the packed cache" not in start
    assert "warning" not in millrace("generate", DEMO, *TOKENS, XDG_CACHE_HOME=str(cache)).stderr


@pytest.mark.parametrize("how", [["--no-weight-cache"], ["--weight-cache-size", "1MB"], "off"])
def test_it_can_be_switched_off(how, tmp_path):
    options, variables = ([], {"MILLRACE_CACHE": how}) if isinstance(how, str) else (how, {})
    millrace("generate", DEMO, *TOKENS, *options, XDG_CACHE_HOME=str(tmp_path), **variables)
    assert not (tmp_path / "millrace").exists() and not packed_files(tmp_path)


def test_a_folder_of_its_own(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = millrace("generate", DEMO, *TOKENS, MILLRACE_CACHE=str(tmp_path / "file/below"))
    assert re.search(r"warning: packed cache: .*file/below", result.stderr)


def test_inspect_predicts_what_the_server_holds(cache):
    memory = answer("inspect", DEMO)["memory"]
    parts = ("weights_bytes", "activations_bytes", "tables_bytes", "program_bytes", "kv_bytes")
    assert memory["total_bytes"] == sum(memory[part] for part in parts)
    start, _ = serve_until(cache, lambda: True)
    assert re.search(r"memory +resident now [\d.]+ MB, [\d.]+ (MB|GB) when the KV cache is full", start)

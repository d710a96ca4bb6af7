"""serve as a user starts it; the API itself is tested in tests/server."""
import re
import signal
import subprocess
import urllib.request

import pytest

from command import BINARY, environment, refusal


@pytest.fixture
def started(llama):
    process = subprocess.Popen([BINARY, "serve", llama, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    lines = [process.stdout.readline() for _ in range(6)]
    yield process, "".join(lines)
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_the_start_up_lines_say_what_runs_and_sigterm_ends_it(started):
    process, text = started
    url = re.search(r"serves llama on (http://127\.0\.0\.1:\d+)", text).group(1)
    assert "instruction set" in text and "resident now" in text and "KV cache" in text and "curl " in text
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        assert b'"llama"' in response.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


def test_an_open_address_needs_a_key(llama):
    assert "key" in refusal("serve", llama, "--host", "0.0.0.0", "--port", 0)


def test_a_taken_port_is_named(started, llama):
    port = re.search(r"127\.0\.0\.1:(\d+)", started[1]).group(1)
    assert port in refusal("serve", llama, "--port", port)

"""serve as a user starts it; the API itself is tested in tests/server."""
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

from command import BINARY, ERROR, answer, environment, refusal


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


def post(url, body):
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=30)


def test_a_model_file_cut_short_while_it_serves_is_named(copied_llama):
    process = subprocess.Popen([BINARY, "serve", copied_llama, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", "".join(process.stdout.readline() for _ in range(6))).group(0)
        (copied_llama / "model.safetensors").write_bytes(b"")  # rows of its embedding are read from the mapped file
        with pytest.raises(OSError):
            post(f"{url}/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 4})
        assert process.wait(timeout=60) == ERROR
        assert f"{copied_llama}/model.safetensors: cannot be read any more" in process.stderr.read()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_end_tokens_that_the_tokenizer_lacks_do_no_harm(copied_llama):
    """Published networks are made for more tokens than their tokenizer has, and generation_config.json may name such an id."""
    path = copied_llama / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < 400}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    path.write_text(json.dumps(tokenizer))
    (copied_llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 500, 639]}))
    result = answer("generate", copied_llama, "--prompt", "Once", "--temperature", 0, "--max-tokens", 5)
    assert result
    process = subprocess.Popen([BINARY, "serve", copied_llama, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", "".join(process.stdout.readline() for _ in range(6))).group(0)
        body = {"prompt": [5, 6, 7], "max_tokens": 4, "min_tokens": 3, "repetition_penalty": 1.2}
        with post(f"{url}/v1/completions", body) as response:
            assert json.loads(response.read())["usage"]["completion_tokens"] >= 3
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{url}/v1/completions", body | {"stop_token_ids": [450]})
        assert "has 450, expected token ids below 400" in refused.value.read().decode()
    finally:
        process.kill()
        process.communicate()


def test_an_open_address_needs_a_key(llama):
    assert "key" in refusal("serve", llama, "--host", "0.0.0.0", "--port", 0)


def test_an_empty_key_does_not_open_the_server(llama):
    assert "MILLRACE_API_KEY is empty" in refusal("serve", llama, "--port", 0, MILLRACE_API_KEY="")


def test_a_taken_port_is_named(started, llama):
    port = re.search(r"127\.0\.0\.1:(\d+)", started[1]).group(1)
    assert port in refusal("serve", llama, "--port", port)

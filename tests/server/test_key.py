import base64
import subprocess
import time

import httpx
import openai
import pytest
from conftest import BINARY, FAKE, MODEL, free_port, user

KEY = "correct horse"
PATHS = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"), ("GET", "/v1/models/x"),
         ("GET", "/metrics"), ("GET", "/v1/engine/stats"), ("GET", "/"), ("GET", "/app.js"), ("GET", "/absent"), ("DELETE", "/absent"), ("OPTIONS", "/v1/models")]


@pytest.fixture(scope="module")
def guarded():
    from conftest import Server
    running = Server(env={"MILLRACE_API_KEY": KEY})
    yield running
    running.stop()


@pytest.mark.parametrize("method,path", PATHS)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", f"bearer {KEY}x", "Basic Og==", KEY])
def test_every_path_needs_the_key(guarded, method, path, authorization):
    headers = {"Authorization": authorization} if authorization else {}
    response = httpx.request(method, f"{guarded.url}{path}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"]
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_health_is_open(guarded):
    assert httpx.get(f"{guarded.url}/health").status_code == 200


def test_the_key_opens(guarded):
    model = guarded.client().models.list().data[0].id
    assert guarded.client().chat.completions.create(model=model, messages=user("Hi"), max_tokens=2).choices
    with pytest.raises(openai.AuthenticationError):
        guarded.client().with_options(api_key="wrong").models.list()


def test_a_browser_may_give_it_as_password(guarded):
    credentials = base64.b64encode(f"me:{KEY}".encode()).decode()
    assert httpx.get(f"{guarded.url}/", headers={"Authorization": f"Basic {credentials}"}).status_code == 200
    assert httpx.get(f"{guarded.url}/").headers["www-authenticate"].startswith("Basic")


def test_the_key_is_not_in_the_command_line(guarded):
    with open(f"/proc/{guarded.pid}/cmdline", "rb") as file:
        assert KEY.encode() not in file.read()


def test_other_machines_need_a_key():
    command = [BINARY, "serve", MODEL] if BINARY else [FAKE, "--tokenizer", MODEL]
    result = subprocess.run([*command, "--host", "0.0.0.0", "--port", str(free_port())], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    for way in ["MILLRACE_API_KEY", "--api-key-file", "--allow-open-without-key"]:
        assert way in result.stderr


def test_with_a_key_any_host_is_answered(guarded):
    headers = {"Authorization": f"Bearer {KEY}", "Host": "llm.example"}
    assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


def test_several_keys_share_the_machine(slow_server):
    """Whoever asks little is not kept waiting by whoever asks much, and nobody finds another's prompts in the cache."""
    running = slow_server(5, "--endless", "--max-num-seqs", 2, env={"MILLRACE_API_KEY": "first\nsecond weight=2"})
    busy, light = (openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) for key in ("first", "second"))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="second weight=2", max_retries=0).models.list()
    streams = [busy.completions.create(model="fake", prompt=f"{i}", max_tokens=40, stream=True) for i in range(40)]
    prompt = list(range(5, 105))
    begun = time.monotonic()
    light.completions.create(model="fake", prompt=prompt, max_tokens=2)
    light_seconds = time.monotonic() - begun
    for stream in streams:
        for _ in stream:
            pass
    assert light_seconds < (time.monotonic() - begun) / 4
    cached = [client.completions.create(model="fake", prompt=prompt, max_tokens=1).usage.prompt_tokens_details.cached_tokens for client in (light, busy, busy)]
    assert cached == [96, 0, 96]

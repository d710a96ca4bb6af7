import base64
import subprocess

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

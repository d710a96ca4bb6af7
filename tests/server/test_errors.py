"""Every bad request: a clear error of OpenAI's shape, and a server unharmed."""
import json
import time

import httpx
import openai
import pytest
from conftest import PATIENCE, user

CHAT = {"messages": user("Hi"), "max_tokens": 2}
TEXT = {"prompt": "Hi", "max_tokens": 2}


def check_error(response, status, param=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    if param:
        assert error["param"].startswith(param), error
        assert param in error["message"]
    return error


def post(server, path, body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


WRONG_FIELDS = [
    (field, value)
    for field, values in {
        "temperature": [-0.1, 100.1, "hot", True, [], {}],
        "top_p": [0, 1.1, -1, "x", 1e-50],
        "top_k": [-2, 0.5, 2**31, "x"],
        "min_p": [-0.1, 1.1],
        "n": [0, 9, 10000, 1.5, "2"],
        "max_tokens": [0, -1, 2**31, 2**63, 10**30, 1.5, "x"],
        "min_tokens": [-1, 3, "x"],
        "seed": [0.5, "x", 2**64],
        "presence_penalty": [-2.1, 2.1],
        "frequency_penalty": [-2.1, 2.1],
        "repetition_penalty": [0, -1, "x"],
        "typical_p": [0, 1.1, "x"],
        "top_n_sigma": [-1.5, 101],
        "xtc_probability": [-0.1, 1.1],
        "xtc_threshold": [-0.1, 1.1],
        "dry_multiplier": [-1, "x"],
        "dry_base": [0.5, 101],
        "dry_allowed_length": [0, 1.5],
        "dry_penalty_last_n": [-2, "x"],
        "dry_sequence_breakers": ["x", [""], [1], ["x" * 257], ["x"] * 65],
        "mirostat": [1, 3, True, "x"],
        "mirostat_tau": [-1, "x"],
        "mirostat_eta": [-0.1, 1.1],
        "allowed_token_ids": [[], [-1], ["x"], 1, [10**9]],
        "bad_words": ["x", [""], ["  "], [1], ["x" * 257], ["x"] * 257],
        "stop": ["", [""], [1], ["x"] * 17, "x" * 257, {}],
        "stop_token_ids": [[-1], ["x"], 1, [10**9], [1] * 65],
        "logit_bias": [[], {"x": 1}, {"-1": 1}, {"1": 101}, {"1": "x"}, {"999999999": 1}, {str(i): 1 for i in range(1025)}],
        "stream": ["yes", 1],
        "stream_options": [{"include_usage": True}, [], {"x": 1}],
        "ignore_eos": ["x"],
        "priority": [2**31, "x"],
        "cache_salt": [1, "x" * 1025],
        "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "json"],
        "logits_processors": [["x"]],
        "guided_json": [{}],
        "prompt_logprobs": [21, -1, 1.5, "x", [1]],
        "temprature": [1],
        "": [1],
    }.items()
    for value in values
]


@pytest.mark.parametrize("field,value", WRONG_FIELDS, ids=lambda v: str(v)[:24])
@pytest.mark.parametrize("path,good", [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)], ids=["chat", "completions"])
def test_wrong_fields(server, path, good, field, value):
    body = {**good, field: value}
    check_error(post(server, path, body), 400, field)


def test_min_tokens_is_held_against_the_default_of_max_tokens(server):
    error = check_error(post(server, "/v1/completions", {"prompt": "Hi", "min_tokens": 50}), 400, "min_tokens")
    assert "16" in error["message"]
    assert post(server, "/v1/completions", {"prompt": "Hi", "min_tokens": 16}).status_code == 200


@pytest.mark.parametrize("field,value", [
    ("temperature", 0), ("temperature", 100), ("top_p", 1e-6), ("top_p", 1), ("top_k", -1), ("top_k", 0), ("top_k", 2**31 - 1), ("min_p", 0), ("min_p", 1), ("n", 1),
    ("n", 8), ("max_tokens", 1), ("max_tokens", 5.0), ("min_tokens", 0), ("min_tokens", 2), ("seed", -(2**63) + 1), ("seed", 2**63 - 1), ("presence_penalty", -2),
    ("presence_penalty", 2), ("repetition_penalty", 0.001), ("stop", []), ("stop", "x" * 256), ("stop", ["x"] * 16), ("logit_bias", {}), ("logit_bias", {"1": -100}),
    ("typical_p", 0.5), ("top_n_sigma", -1), ("top_n_sigma", 1), ("xtc_probability", 1), ("xtc_threshold", 0), ("dry_multiplier", 0.8), ("dry_base", 1),
    ("dry_allowed_length", 1), ("dry_penalty_last_n", -1), ("dry_sequence_breakers", []), ("mirostat", 0), ("mirostat", 2), ("mirostat_tau", 0), ("mirostat_eta", 1),
    ("allowed_token_ids", [1]), ("allowed_token_ids", None), ("bad_words", []), ("bad_words", ["a b"]),
    ("temperature", None), ("stop", None), ("user", "x"), ("response_format", {"type": "text"}), ("stream", None),
], ids=str)
@pytest.mark.parametrize("path,good", [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)], ids=["chat", "completions"])
def test_boundaries_that_are_right(server, path, good, field, value):
    response = post(server, path, {**good, field: value})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("field,value", [
    ("messages", []), ("messages", "Hi"), ("messages", [{}]), ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": 1}]), ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]), ("logprobs", 1), ("top_logprobs", 21), ("top_logprobs", 2),
    ("tools", {}), ("tools", [1]), ("tool_choice", "required"), ("tool_choice", {"type": "function"}), ("functions", [{}]), ("chat_template", "{{ x }}"),
    ("chat_template_kwargs", []), ("continue_final_message", True), ("modalities", ["audio"]), ("prompt", "x"),
], ids=lambda v: str(v)[:24])
def test_wrong_chat_fields(server, field, value):
    check_error(post(server, "/v1/chat/completions", {**CHAT, field: value}), 400, field)


@pytest.mark.parametrize("field,value", [
    ("prompt", []), ("prompt", [[]]), ("prompt", 1), ("prompt", ["a", 1]), ("prompt", [1, "a"]), ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [[1], "a"]), ("prompt", {}),
    ("prompt", ["a"] * 257), ("suffix", "x"), ("logprobs", True), ("logprobs", 21), ("best_of", 9), ("messages", user("x")),
], ids=lambda v: str(v)[:24])
def test_wrong_completion_fields(server, field, value):
    check_error(post(server, "/v1/completions", {**TEXT, field: value}), 400, field)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"x"', b"1", b"{}", b"{}x", b"\xff", b'{"model": "\xff\xfe"}', b'{"model": "\\ud800"}', b"[" * 100_000, b'{"a":' * 50_000,
    b'{"temperature": 1e999}', b'{"temperature": NaN}', b'{"user": "\x00"}', b"\xef\xbb\xbf{}", b"{'a': 1}",
], ids=lambda b: str(b)[:24])
def test_bad_bodies(server, path, body):
    response = httpx.post(f"{server.url}{path}", content=body, headers={"Content-Type": "application/json"})
    check_error(response, 400)


def test_invalid_utf8_is_named(server):
    body = b'{"messages": [{"role": "user", "content": "a\xc3(b"}]}'
    check_error(httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}), 400)
    server.assert_alive()


def test_odd_but_valid_text(server):
    for text in ["\x00", "\x7f\x1b[31m", "\u202e\ufeff", "e\u0301" * 20, "\U0010ffff", "👩‍👩‍👧‍👦", "<|im_start|>"]:
        assert post(server, "/v1/chat/completions", {"messages": user(text), "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("path,body,field", [("/v1/chat/completions", lambda t: {"messages": user(t)}, "messages"),
                                             ("/v1/completions", lambda t: {"prompt": t}, "prompt")], ids=["chat", "completions"])
def test_prompt_longer_than_the_context(server, path, body, field):
    length = server.models()["max_model_len"]
    text = "word " * (4 * length)
    error = check_error(post(server, path, body(text)), 400)
    assert error["param"] == field and error["code"] == "context_length_exceeded"
    count = httpx.post(f"{server.url}/tokenize", json={"prompt": text, "add_special_tokens": path == "/v1/completions"}).json()["count"]
    if path == "/v1/completions":
        assert str(count) in error["message"]
    assert str(length) in error["message"], "both counts are said"


def test_prompt_and_answer_longer_than_the_context(server):
    length = server.models()["max_model_len"]
    error = check_error(post(server, "/v1/completions", {**TEXT, "max_tokens": length}), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded" and str(length) in error["message"]


def test_unknown_model(server, client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="absent", messages=user("Hi"))
    assert raised.value.code == "model_not_found"


def test_template_errors_are_the_clients(server):
    error = check_error(post(server, "/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"messages": []}}), 400, "messages")
    assert error["code"] == "chat_template_error"
    server.assert_alive()


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/absent", 404), ("POST", "/absent", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405), ("DELETE", "/", 405), ("PUT", "/tokenize", 405),
    ("OPTIONS", "/v1/chat/completions", 405), ("PATCH", "/health", 405), ("GET", "/v1/../v1/models", 404), ("GET", "/%2e%2e/etc/passwd", 404), ("GET", "//health", 404),
])
def test_routing(server, method, path, status):
    with server.connect() as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["message"]
    assert (b"\r\nAllow: " in head) == (status == 405)


def test_media_types(server):
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"]:
        response = httpx.post(f"{server.url}/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": content_type})
        check_error(response, 415)
    for content_type in ["application/json", "Application/JSON; charset=utf-8"]:
        assert httpx.post(f"{server.url}/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": content_type}).status_code == 200
    check_error(httpx.post(f"{server.url}/v1/completions", content=b"x", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}), 415)


def test_full_queue_is_429(slow_server):
    running = slow_server(20, "--max-num-seqs", 1, "--max-num-queued-reqs", 2)
    client = running.client()
    streams = []
    begun = time.monotonic()
    with pytest.raises(openai.RateLimitError) as raised:
        for _ in range(8):
            assert time.monotonic() - begun < 10, "a queued stream's headers come at once"
            streams.append(client.completions.create(model="fake", prompt="a", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}))
    assert len(streams) >= 2
    assert raised.value.response.headers["retry-after"]
    assert raised.value.code == "queue_full"
    for stream in streams:
        stream.close()
    running.wait_until_idle()


def test_a_full_queue_counts_prompt_tokens_too(slow_server):
    running = slow_server(20, "--max-num-seqs", 1, "--max-num-queued-tokens", 100)
    client = running.client()
    body = dict(model="fake", max_tokens=500, stream=True, extra_body={"ignore_eos": True})
    streams = [client.completions.create(prompt=[5] * 90, **body)]
    while running.metrics()["millrace_num_requests_running"] == 0:
        time.sleep(0.01)
    streams += [client.completions.create(prompt=[5] * 60, **body), client.completions.create(prompt=[5] * 40, **body)]
    with pytest.raises(openai.RateLimitError) as raised:
        client.completions.create(prompt=[5], **body)
    assert "100 prompt tokens are waiting" in str(raised.value) and raised.value.response.headers["retry-after"]
    for stream in streams:
        stream.close()
    running.wait_until_idle()


def test_a_timeout_ends_the_answer_with_what_there_is(slow_server):
    running = slow_server(20, "--endless", "--max-num-seqs", 1)
    arguments = dict(model="fake", prompt="a", max_tokens=3000, temperature=0)
    begun = time.monotonic()
    choice = running.client().completions.create(**arguments, extra_body={"timeout": 0.5}).choices[0]
    assert choice.finish_reason == "timeout" and 0.4 < time.monotonic() - begun < 5 * PATIENCE
    whole = running.client().completions.create(**arguments | {"max_tokens": 200}).choices[0]
    assert choice.text and whole.text.startswith(choice.text.rstrip("\ufffd"))
    assert running.metrics()['millrace_request_success_total{finished_reason="timeout"}'] == 1
    running.wait_until_idle()


@pytest.mark.parametrize("path", ["org%2Fa%20name", "org/a%20name", "%6Frg%2fa%20name"])
def test_a_model_is_found_under_its_escaped_name(make_server, path):
    running = make_server("--served-model-name", "org/a name")
    response = httpx.get(f"{running.url}/v1/models/{path}")
    assert response.status_code == 200 and response.json()["id"] == "org/a name"
    assert running.client().models.retrieve("org/a name").id == "org/a name"
    assert httpx.get(f"{running.url}/v1/models/").status_code == 404
    for wrong in ["org%252Fa%20name", "org%2Fa+name", "org%2", "%zz", "%ff%00"]:  # decoded once; what is no escape is a name like another
        assert httpx.get(f"{running.url}/v1/models/{wrong}").json()["error"]["code"] == "model_not_found"


def test_priority_is_for_servers_that_allow_it(server, make_server):
    def status(running, priority):
        body = {"prompt": "Hi", "max_tokens": 1, "priority": priority}
        return httpx.post(f"{running.url}/v1/completions", json=body)

    assert status(server, 0).status_code == 200
    for priority in [-1, 1]:
        refused = status(server, priority)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "priority"
        assert "--scheduling-policy" in refused.json()["error"]["message"]
    allowing = make_server("--scheduling-policy", "priority")
    assert [status(allowing, priority).status_code for priority in [-1, 0, 1]] == [200] * 3

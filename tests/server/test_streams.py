"""Clients that come in crowds, leave in the middle, or do not read."""
import json
import os
import random
import socket
import threading
import time

import httpx
import pytest
from conftest import FAKE, PATIENCE, SOAK_SECONDS


def stream_request(prompt="Hi", **fields):
    body = json.dumps({"prompt": prompt, "stream": True, "ignore_eos": True, **fields}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def longest(server):
    return server.models()["max_model_len"] - 16


def test_metrics_reconcile(make_server):
    running = make_server()
    client = running.client()
    model = running.models()["id"]
    total = 0
    for i in range(5):
        total += client.completions.create(model=model, prompt="Hi", max_tokens=7 + i, extra_body={"ignore_eos": True}).usage.completion_tokens
    running.wait_until_idle()
    metrics = running.metrics()
    assert metrics["millrace_generation_tokens_total"] == metrics["vllm:generation_tokens_total"] == total
    assert metrics['vllm:request_success_total{finished_reason="length"}'] == 5
    assert metrics["vllm:time_to_first_token_seconds_count"] == 5
    assert metrics['vllm:time_to_first_token_seconds_bucket{le="+Inf"}'] == 5
    assert metrics['millrace_http_responses_total{route="/v1/completions",status="200"}'] == 5
    stats = httpx.get(f"{running.url}/v1/engine/stats").json()
    assert stats["generation_tokens"] == total and stats["running"] == 0 and stats["kv_groups"][0]["num_used_blocks"] == 0


def test_client_leaving_a_stream_frees_its_blocks(slow_server):
    running = slow_server(10)
    with running.connect() as connection:
        connection.sendall(stream_request(max_tokens=3000, n=2))
        assert b"data: " in connection.recv(65536) + connection.recv(65536)
        assert running.used_blocks() > 0
    left = time.monotonic()
    running.wait_until_idle(2)
    assert time.monotonic() - left < 0.5 * PATIENCE, "within a step or two, not at the end of the answer"
    assert running.metrics()['vllm:request_success_total{finished_reason="abort"}'] == 2


def test_client_leaving_before_the_answer_frees_its_blocks(slow_server):
    running = slow_server(10)
    body = json.dumps({"prompt": "Hi", "max_tokens": 3000, "ignore_eos": True}).encode()
    with running.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        deadline = time.monotonic() + 5
        while running.used_blocks() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.used_blocks() > 0
    running.wait_until_idle(2)


def test_client_that_sent_far_ahead_and_left_frees_its_blocks(slow_server):
    """The end of its input is behind bytes that the server does not read while it answers."""
    running = slow_server(10)
    body = json.dumps({"prompt": "Hi", "max_tokens": 3000, "ignore_eos": True}).encode()
    with running.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1200)
        deadline = time.monotonic() + 5 * PATIENCE
        while running.used_blocks() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.used_blocks() > 0
    left = time.monotonic()
    running.wait_until_idle(5)
    assert time.monotonic() - left < 2 * PATIENCE, "not at the end of the answer"


def test_a_step_may_bring_more_than_a_slow_reader_may_leave(slow_server):
    """What one step writes at once is no sign of a slow client: the echo of a long prompt, eight times."""
    running = slow_server(0, "--max-model-len", 200_000, "--kv-blocks", 40_000)
    prompt = "word " * 60_000
    with running.client().completions.create(model="fake", prompt=prompt, n=8, max_tokens=2, echo=True, stream=True) as stream:
        texts = {}
        for chunk in stream:
            texts[chunk.choices[0].index] = texts.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert len(texts) == 8 and all(text.startswith(prompt) for text in texts.values())


def test_queued_client_leaving_disturbs_nobody(slow_server):
    running = slow_server(5, "--max-num-seqs", 1)
    with running.connect() as first, running.connect() as queued:
        first.sendall(stream_request(max_tokens=100))
        assert first.recv(65536)
        queued.sendall(stream_request(max_tokens=100))
        time.sleep(0.1)
        queued.close()
        answer = b""
        while b"[DONE]" not in answer:
            answer += first.recv(65536)
        assert b'"finish_reason":"length"' in answer
    running.wait_until_idle(2)


def test_client_that_does_not_read_is_given_up(slow_server):
    """Its stream fills the socket, then the write bound; the others do not notice."""
    running = slow_server(0, "--max-model-len", 200_000, "--kv-blocks", 50_000)
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", running.port))
    # With log probabilities every token is a kilobyte or two.
    lazy.sendall(stream_request(max_tokens=150_000, logprobs=20))
    deadline = time.monotonic() + 60
    while running.metrics()['vllm:request_success_total{finished_reason="abort"}'] == 0:
        assert time.monotonic() < deadline, "the request still runs"
        assert httpx.get(f"{running.url}/health", timeout=5 * PATIENCE).status_code == 200
        time.sleep(0.1)
    running.wait_until_idle(5)
    lazy.close()


def test_connection_serves_again_after_a_stream(server):
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(stream_request(max_tokens=5))
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
            assert answer.count(b"HTTP/1.1 200") == 1 and b"data: [DONE]" in answer


def test_crowd_with_random_cancels(server):
    """64 clients at once that leave when they like: no error, no leaked block or thread."""
    def unused_blocks():  # free, or kept only while nobody needs them
        return sum(value for name, value in server.metrics().items() if name.startswith("millrace_kv_blocks") and 'state="used"' not in name)

    server.wait_until_idle()
    num_threads, num_unused_blocks = server.num_threads(), unused_blocks()
    stop_at = time.monotonic() + SOAK_SECONDS
    failures, finished, cancelled = [], [0], [0]
    top = longest(server)

    def client(seed):
        chance = random.Random(seed)
        while time.monotonic() < stop_at and not failures:
            try:
                with server.connect() as connection:
                    prompt = "word " * chance.randrange(1, 20)
                    connection.sendall(stream_request(prompt, max_tokens=chance.randrange(1, min(120, top - 40)), n=chance.choice([1, 1, 1, 2]), seed=seed))
                    leave_after = chance.choice([None, 0, 1, 500, 5000])
                    answer = b""
                    while not answer.endswith(b"0\r\n\r\n"):
                        if leave_after is not None and len(answer) >= leave_after:
                            cancelled[0] += 1
                            break
                        piece = connection.recv(65536)
                        if not piece:
                            failures.append(f"closed after {answer[-200:]}")
                            return
                        answer += piece
                    else:
                        if b'"error"' in answer or b"data: [DONE]" not in answer:
                            failures.append(answer[-300:])
                        finished[0] += 1
            except OSError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    assert finished[0] > 20 and cancelled[0] > 20, (finished, cancelled)
    server.wait_until_idle(20)
    assert (server.num_threads(), unused_blocks()) == (num_threads, num_unused_blocks)
    server.assert_alive()


def test_a_thousand_idle_streams_add_no_thread(make_server):
    running = make_server("--max-num-seqs", 8, step_ms=20 if FAKE else None)
    top = longest(running)
    with running.connect() as warm:
        warm.sendall(stream_request(max_tokens=2))
        warm.recv(65536)
        num_threads = running.num_threads()
        num_files = len(os.listdir(f"/proc/{running.pid}/fd"))
        connections = [running.connect() for _ in range(1000)]
        try:
            for connection in connections:
                connection.sendall(stream_request(max_tokens=top))
            for connection in connections:
                assert b"HTTP/1.1 200" in connection.recv(4096)
            assert running.num_threads() == num_threads
            assert httpx.get(f"{running.url}/health", timeout=5 * PATIENCE).status_code == 200
        finally:
            for connection in connections:
                connection.close()
    running.wait_until_idle(30)
    assert running.num_threads() == num_threads
    deadline = time.monotonic() + 5
    while len(os.listdir(f"/proc/{running.pid}/fd")) > num_files and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir(f"/proc/{running.pid}/fd")) <= num_files


def test_bad_requests_do_not_touch_good_streams(server):
    """While rude clients do what they can, a stream says what it says alone."""
    def text_of(connection):
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(65536)
        pieces = [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b"data: {")]
        return "".join(piece["choices"][0]["text"] for piece in pieces)

    request = stream_request("The mill", max_tokens=longest(server) - 32, seed=11, temperature=1)
    with server.connect() as connection:
        connection.sendall(request)
        alone = text_of(connection)
    chance = random.Random(1)
    stop = threading.Event()

    def rude():
        while not stop.is_set():
            try:
                with server.connect() as connection:
                    kind = chance.randrange(4)
                    if kind == 0:
                        connection.sendall(chance.randbytes(chance.randrange(1, 3000)))
                    elif kind == 1:
                        connection.sendall(stream_request(max_tokens=10)[:chance.randrange(1, 200)])
                    elif kind == 2:
                        connection.sendall(stream_request("x", max_tokens=20, temperature=-1))
                        connection.recv(100)
                    else:
                        connection.sendall(stream_request("x" * 5000, max_tokens=20, n=8))
            except OSError:
                pass

    threads = [threading.Thread(target=rude) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(request)
                assert text_of(connection) == alone
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    server.assert_alive()
    server.wait_until_idle(20)


@pytest.mark.parametrize("path", ["/metrics", "/v1/engine/stats", "/health", "/v1/models"])
def test_state_is_answered_while_busy(server, path):
    with server.connect() as connection:
        connection.sendall(stream_request(max_tokens=longest(server) - 32))
        for _ in range(10):
            assert httpx.get(f"{server.url}{path}", timeout=5).status_code == 200


def test_health_fails_while_a_step_stalls(slow_server):
    running = slow_server(1500, "--stall-timeout", 0.5)
    with running.connect() as connection:
        connection.sendall(stream_request(max_tokens=2))
        statuses, deadline = set(), time.monotonic() + 20
        while time.monotonic() < deadline and statuses != {200, 503}:
            response = httpx.get(f"{running.url}/health", timeout=5)
            statuses.add(response.status_code)
            time.sleep(0.05)
        assert statuses == {200, 503}, "well at first, not when the step has run for long"
    running.wait_until_idle(20)
    running.assert_alive()

"""SIGTERM: what runs is finished, what is new is refused."""
import signal
import time

import httpx
import pytest
from conftest import PATIENCE
from test_streams import stream_request


def read_stream(connection, answer=b""):
    while piece := connection.recv(65536):
        answer += piece
    return answer


def test_idle_server_ends_at_once(make_server):
    running = make_server()
    with running.connect():  # an idle connection does not hold it up
        running.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert running.process.wait(10) == 0
        assert time.monotonic() - begun < PATIENCE


def test_running_streams_finish_and_new_requests_are_refused(slow_server):
    running = slow_server(10)
    with running.connect() as connection, running.connect() as idle:
        connection.sendall(stream_request(max_tokens=150))
        answer = connection.recv(65536)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        health = httpx.get(f"{running.url}/health")
        assert health.status_code == 503
        refused = httpx.post(f"{running.url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and refused.headers["connection"] == "close"
        assert refused.json()["error"]["message"]
        idle.sendall(stream_request(max_tokens=1))
        late = read_stream(idle)
        assert late.startswith(b"HTTP/1.1 503") and b"Connection: close" in late
        answer = read_stream(connection, answer)
        assert b'"finish_reason":"length"' in answer and b"data: [DONE]" in answer
    assert running.process.wait(5 * PATIENCE) == 0


def test_drain_timeout_aborts_with_done(slow_server):
    running = slow_server(10, "--shutdown-timeout", 0.3)
    with running.connect() as connection:
        connection.sendall(stream_request(max_tokens=3000))
        answer = connection.recv(65536)
        running.process.send_signal(signal.SIGTERM)
        answer = read_stream(connection, answer)
        assert b'"finish_reason":"abort"' in answer and b"data: [DONE]" in answer and answer.endswith(b"0\r\n\r\n")
    assert running.process.wait(5 * PATIENCE) == 0


def test_second_signal_ends_immediately(slow_server):
    running = slow_server(10)
    with running.connect() as connection:
        connection.sendall(stream_request(max_tokens=3000))
        connection.recv(65536)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        running.process.wait(5 * PATIENCE)
        assert time.monotonic() - begun < PATIENCE


@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.05])
def test_signal_at_any_moment_loses_no_request(slow_server, delay):
    running = slow_server(2)
    connections = [running.connect() for _ in range(16)]
    for connection in connections:
        connection.sendall(stream_request("word " * 50, max_tokens=30))
    time.sleep(delay)
    running.process.send_signal(signal.SIGTERM)
    for connection in connections:
        answer = read_stream(connection)
        connection.close()
        whole = b'"finish_reason":"length"' in answer and b"data: [DONE]" in answer
        assert whole or answer.startswith(b"HTTP/1.1 503"), answer[-300:]
    assert running.process.wait(5 * PATIENCE) == 0

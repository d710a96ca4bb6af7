"""HTTP/1.1 itself: framing, limits, slow and rude clients, on raw sockets."""
import json
import socket
import threading
import time

import httpx
import pytest
from conftest import FAKE, PATIENCE

BODY = json.dumps({"prompt": "Hi", "max_tokens": 2, "temperature": 0}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def read_all(connection):
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def ask(server, raw, half_close=False):
    with server.connect() as connection:
        connection.sendall(raw)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def status_of(answer):
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


def read_response(connection, buffered=b""):
    """One response with Content-Length: (status, body, what came after)."""
    while b"\r\n\r\n" not in buffered:
        piece = connection.recv(65536)
        assert piece, buffered
        buffered += piece
    head, _, rest = buffered.partition(b"\r\n\r\n")
    length = int([line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")][0].split(b":")[1])
    while len(rest) < length:
        rest += connection.recv(65536)
    return status_of(head), rest[:length], rest[length:]


def chunked(body, size):
    pieces = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_keep_alive_and_pipelining(server):
    with server.connect() as connection:
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        post = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        connection.sendall(get + post + get + b"GET /absent HTTP/1.1\r\nHost: localhost\r\n\r\n" + get)
        rest, statuses = b"", []
        for _ in range(5):
            status, _, rest = read_response(connection, rest)
            statuses.append(status)
        assert statuses == [200, 200, 200, 404, 200]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_bodies(server, size):
    raw = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked(BODY, size)
    assert status_of(ask(server, raw)) == 200


def test_body_in_single_bytes(server):
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY:
            connection.sendall(bytes([byte]))
        assert read_response(connection)[0] == 200


def test_expect_100_continue(server):
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY))
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_response(connection)[0] == 200


def test_http_1_0(server):
    answer = ask(server, b"GET /health HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200 and b"Connection: close" in answer
    body = json.dumps({"prompt": "Hi", "max_tokens": 2, "stream": True}).encode()
    answer = ask(server, b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status_of(answer) == 200 and b"Transfer-Encoding" not in answer and answer.endswith(b"data: [DONE]\n\n")


def test_head_has_no_body(server):
    answer = ask(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status_of(answer) == 200 and answer.endswith(b"\r\n\r\n") and b"Content-Length: " in answer


def test_absolute_form(server):
    assert status_of(ask(server, b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == 200


LENGTH = b"Content-Length: %d\r\n" % len(BODY)
FRAMING = {
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "not http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "http 2": (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    "http 1.2": (b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 505),
    "space before colon": (b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "folded line": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n", 400),
    "no colon": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n", 400),
    "nul in a field": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\x00c\r\n\r\n", 400),
    "space in target": (b"GET /hea lth HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "two lengths": (POST + LENGTH + b"Content-Length: 1\r\n\r\n" + BODY, 400),
    "length and chunked": (POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY, 9), 400),
    "chunked and length": (POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + chunked(BODY, 9), 400),
    "negative length": (POST + b"Content-Length: -2\r\n\r\n" + BODY, 400),
    "signed length": (POST + b"Content-Length: +5\r\n\r\n" + BODY, 400),
    "length list": (POST + b"Content-Length: 5, 6\r\n\r\n" + BODY, 400),
    "length overflow": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY, 400),
    "huge length": (POST + b"Content-Length: 9000000\r\n\r\n", 413),
    "unknown encoding": (POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY, 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + chunked(BODY, 9), 400),
    "chunked in 1.0": (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY, 9), 400),
    "bad chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + BODY, 400),
    "negative chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n" + BODY, 400),
    "chunk overflow": (POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY, 400),
    "chunk too long": (POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s!!" % (len(BODY), BODY) + b"\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", FRAMING)
def test_wrong_framing_is_refused_and_closed(server, name):
    raw, status = FRAMING[name]
    answer = ask(server, raw)
    assert status_of(answer) == status
    assert b"\r\nConnection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert answer.count(b"\r\nServer: ") == 1, "nothing after the error is taken for another request"


def test_oversized_headers(server):
    for raw in [b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(101)) + b"\r\n", b"A" * 100_000]:
        assert status_of(ask(server, raw)) in (400, 431)
    assert status_of(ask(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nA: " + b"a" * 15_000 + b"\r\n\r\n")) == 200


def test_oversized_bodies(server):
    big = json.dumps({"prompt": "x" * (9 << 20), "max_tokens": 1}).encode()
    response = httpx.post(f"{server.url}/v1/completions", content=big, headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"

    def pieces():
        for i in range(0, len(big), 65536):
            yield big[i:i + 65536]

    try:
        response = httpx.post(f"{server.url}/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
        assert response.status_code == 413
    except httpx.WriteError:
        pass  # the server closed while the client was still sending: as good
    server.assert_alive()


def test_endless_chunk_extension(server):
    with server.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n5;")
        try:
            for _ in range(64):
                connection.sendall(b"a" * 4096)
        except OSError:
            pass
        answer = read_all(connection)
        assert answer == b"" or status_of(answer) in (400, 413)
    server.assert_alive()


def test_slow_headers_are_timed_out(server):
    """Many connections that dribble their header hold nobody up and are ended."""
    connections = [server.connect() for _ in range(50)]
    begun = time.monotonic()
    for connection in connections:
        connection.sendall(b"GET /health HT")
    while time.monotonic() - begun < 3:
        for connection in connections:
            connection.sendall(b"T")
        assert httpx.get(f"{server.url}/health", timeout=2).status_code == 200
        time.sleep(0.2)
    for connection in connections:
        connection.settimeout(20)
        answer = read_all(connection)
        assert answer == b"" or status_of(answer) in (400, 408)
        connection.close()
    assert time.monotonic() - begun < 20


def test_connections_that_say_nothing(server):
    connections = [server.connect() for _ in range(200)]
    assert httpx.get(f"{server.url}/health", timeout=2).status_code == 200
    for connection in connections:
        connection.close()


def test_requests_cut_at_every_byte(server):
    raw = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for end in range(0, len(raw)):
        with server.connect() as connection:
            connection.sendall(raw[:end])
    server.assert_alive()
    server.wait_until_idle()


def test_too_many_connections(make_server):
    running = make_server("--max-connections", 20)
    connections = [running.connect() for _ in range(20)]
    time.sleep(0.2)
    refused = ask(running, b"")
    assert status_of(refused) == 503 and b"Retry-After" in refused
    for connection in connections:
        connection.close()
    time.sleep(0.2)
    running.assert_alive()


def test_connections_of_one_other_machine_are_bounded(make_server):
    """This machine's own address stands for another machine's: it is not a loopback address, and nothing sent to it leaves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but loopback")
    if not FAKE:
        pytest.skip("only fake_server can be told the bound (MILLRACE_FAKE_SERVER)")
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    running = make_server("--max-connections-per-address", 5, step_ms=0, host=address, env={"MILLRACE_API_KEY": "key"})
    time.sleep(0.2)
    connections = [running.connect() for _ in range(5)]
    time.sleep(0.2)
    refused = ask(running, b"")
    assert status_of(refused) == 503 and b"from your address" in refused and b"Retry-After" in refused
    connections[0].close()
    time.sleep(0.2)
    assert status_of(ask(running, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200
    for connection in connections:
        connection.close()


def test_loopback_connections_are_not_bounded_by_address(make_server):
    if not FAKE:
        pytest.skip("only fake_server can be told the bound (MILLRACE_FAKE_SERVER)")
    running = make_server("--max-connections-per-address", 2, step_ms=0)
    connections = [running.connect() for _ in range(6)]
    for connection in connections:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_response(connection)[0] == 200
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("host,status", [("localhost", 200), ("app.localhost:1", 200), ("127.0.0.1:8000", 200), ("[::1]:80", 200), ("evil.example", 403),
                                         ("127.0.0.1.evil.example:8000", 403), ("", 403), ("192.168.1.2", 403)])
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_without_a_key_only_loopback_hosts_are_answered(server, path, host, status):
    answer = ask(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == status
    if status == 403:
        assert "MILLRACE_API_KEY" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_the_host_of_an_absolute_target_counts(server):
    raw = b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status_of(ask(server, raw)) == 403


def test_page_headers(server):
    response = httpx.get(f"{server.url}/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(f"{server.url}/", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304 and not again.content
    for path in ["/app.css", "/app.js", "/markdown.js", "/favicon.svg"]:
        assert httpx.get(f"{server.url}{path}").status_code == 200
    for text in [response.text, httpx.get(f"{server.url}/app.css").text, httpx.get(f"{server.url}/app.js").text]:
        assert "http://" not in text and "https://" not in text, "the page needs no other host"


def test_no_cors_by_default(server):
    response = httpx.get(f"{server.url}/v1/models", headers={"Origin": "http://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_a_flood_of_tiny_chunks_holds_nobody_up(server):
    """A byte costs the same whether it comes alone in its chunk or not: what waits to be parsed is not moved for each of them."""
    raw = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked(BODY + b" " * 300_000, 1)
    statuses = []
    flood = [threading.Thread(target=lambda: statuses.append(status_of(ask(server, raw)))) for _ in range(16)]
    cpu_begun, latencies = server.cpu_seconds(), []
    for thread in flood:
        thread.start()
    with server.connect() as connection:
        while any(thread.is_alive() for thread in flood):
            asked = time.monotonic()
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_response(connection)[0] == 200
            latencies.append(time.monotonic() - asked)
    assert statuses == [200] * 16
    cpu_seconds = server.cpu_seconds() - cpu_begun  # other programs on this machine do not change it
    assert cpu_seconds < 1 * PATIENCE, f"{cpu_seconds:.2f} s for {16 * 300} thousand chunks"
    assert max(latencies) < 1 * PATIENCE, f"/health took {max(latencies):.2f} s"

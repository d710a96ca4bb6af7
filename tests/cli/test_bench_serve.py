"""bench serve: that its counts are the server's, and that no server, whatever it answers, makes it hang or fall. Nothing depends on speed."""
import json
import re
import socket
import subprocess
import threading
import urllib.request

import pytest

from command import BINARY, ERROR, answer, environment, millrace, refusal


@pytest.fixture(scope="module")
def served(llama):
    """The golden llama: its URL and process id."""
    process = subprocess.Popen([BINARY, "serve", llama, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+", "".join(process.stdout.readline() for _ in range(6))).group(0), process.pid
    finally:
        process.kill()
        process.communicate()


def counters(url):
    """The counters of a server's /metrics, by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def increase(before, after, name):
    return sum(value - before.get(key, 0) for key, value in after.items() if key.split("{")[0] == name)


def check_latency(latency):
    assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] and latency["mean"] <= latency["max"]


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("load", [("--concurrency", "1,3"), ("--request-rate", "50")])
def test_counts_are_those_of_the_server(served, endpoint, load):
    url, pid = served
    before = counters(url)
    report = answer("bench", "serve", "--url", url, "--endpoint", endpoint, *load, "--num-prompts", 6, "--random-input-len", 40, "--random-output-len", 9,
                    "--server-pid", pid, "--goodput", "ttft:60000", "--seed", 7)
    after = counters(url)
    results = report["results"]
    assert report["model"] == "llama" and len(results) == len(load[1].split(","))
    for result in results:
        assert result["completed"] == 6 and result["failed"] == 0 and result["failures"] == {} and result["tokens_counted_by_server"]
        assert result["total_output_tokens"] == 6 * 9
        assert abs(result["total_input_tokens"] / 6 - 40) <= 12  # words of a tiny vocabulary have several tokens, and not all the same number
        assert 1 <= result["in_flight_max"] <= result.get("concurrency", 6)
        assert result["request_goodput"] == pytest.approx(result["request_throughput"])
        assert result["output_throughput"] == pytest.approx(result["total_output_tokens"] / result["duration_s"])
        assert result["server_cpu_s"] >= 0
        for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
            check_latency(result[name])
    # Two requests before, for the tokens of a word, are of one completion token each.
    assert increase(before, after, "vllm:generation_tokens_total") == sum(result["total_output_tokens"] for result in results) + 2
    assert increase(before, after, "vllm:request_success_total") == sum(result["completed"] for result in results) + 2
    calibrating = increase(before, after, "vllm:prompt_tokens_total") - sum(result["total_input_tokens"] for result in results)
    assert 16 + 48 <= calibrating <= 100 * (16 + 48)


def test_a_shared_prefix_is_cached_and_other_seeds_ask_for_something_new(served):
    url, _ = served
    command = ("bench", "serve", "--url", url, "--random-input-len", 10, "--random-output-len", 2, "--shared-prefix-tokens", 128)
    first, = answer(*command, "--seed", 21, "--num-prompts", 4)["results"]
    assert first["total_cached_tokens"] >= 3 * 64  # of all but the first, whole blocks
    again, = answer(*command, "--seed", 21, "--num-prompts", 4)["results"]
    assert again["total_input_tokens"] == first["total_input_tokens"] and again["total_cached_tokens"] > first["total_cached_tokens"]
    other, = answer(*command, "--seed", 22, "--num-prompts", 1)["results"]
    assert other["total_cached_tokens"] == 0


def test_the_text_names_every_figure(served):
    text = millrace("bench", "serve", "--url", served[0], "--concurrency", "1,2", "--num-prompts", 2, "--random-input-len", 8, "--random-output-len", 3,
                    "--goodput", "ttft:60000", "tpot:60000", "e2el:60000", "--server-pid", served[1], "--num-warmups", 1).stdout
    for words in ("1 client: 2 completed, 0 failed", "2 clients: 2 completed", "time to first token", "time per output token", "inter-token latency", "end to end", "goodput",
                  "CPU seconds per 1,000 output tokens", "TTFT p99"):
        assert words in text, words


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
def test_the_null_server_tells_what_the_generator_costs(endpoint):
    report = answer("bench", "serve", "--null", "--endpoint", endpoint, "--concurrency", 8, "--num-prompts", 40, "--random-output-len", 25, "--dataset-name", "random")
    result, = report["results"]
    assert report["url"] == "null" and result["completed"] == 40 and result["total_output_tokens"] == 40 * 25 and result["total_input_tokens"] == 40 * 256
    assert result["generator_cpu_s"] > 0 and result["in_flight_max"] == 8


def test_a_duration_ends_a_load(served):
    result, = answer("bench", "serve", "--null", "--num-prompts", 1000000, "--duration", 0.3, "--concurrency", 2)["results"]
    assert 0 < result["completed"] < 1000000 and result["failed"] == 0


USAGE = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TEXT = 'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'


def event(data):
    return f"data: {json.dumps(data)}\n\n"


def reply(status, body, *headers):
    head = "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", *headers])
    return f"{head}\r\n\r\n{body}"


# What it answers, how the connection ends, and what is reported: the kind of failure and a part of the message.
HOSTILE = {
    "a stream that is cut": (STREAM + TEXT, "close", "cut", "without an end"),
    "a stream that is cut within an event": (STREAM + TEXT + TEXT[:20], "close", "cut", "without an end"),
    "a header that is cut": ("HTTP/1.1 200 OK\r\nContent-Ty", "close", "cut", "within the header"),
    "nothing": ("", "close", "cut", "without an answer"),
    "a reset": ("", "reset", "cut", "without an answer"),
    "silence": ("", "silence", "timeout", "within 0.5 s"),
    "silence after a token": (STREAM + TEXT, "silence", "timeout", "1 outputs had come"),
    "no HTTP": ("GARBAGE\x00\x01\xff and more\r\n\r\n", "close", "malformed", "no HTTP"),
    "no JSON": (STREAM + "data: {{{\n\n", "close", "malformed", "no JSON"),
    "an event without choices": (STREAM + event({"id": 1}), "close", "malformed", "no choices"),
    "a number for an event": (STREAM + "data: 17\n\n", "close", "malformed", "no JSON object"),
    "an endless event": (STREAM + "data: " + "x" * (2 << 20), "close", "malformed", "longer than"),
    "an endless header": ("HTTP/1.1 200 OK\r\n" + "A: b\r\n" * 20000, "close", "malformed", "no HTTP"),
    "no stream": (reply("200 OK", '{"choices": []}'), "close", "malformed", "no event stream but application/json"),
    "an error in the stream": (STREAM + TEXT + event({"error": {"message": "out of\nmemory"}}), "close", "server_error", "out of memory"),
    "429": (reply("429 Too Many Requests", '{"error": {"message": "queue is full"}}', "Retry-After: 0"), "close", "status 429", "queue is full"),
    "429 with a nonsensical Retry-After": (reply("429 Too Many Requests", "no", "Retry-After: nan"), "close", "status 429", "no"),
    "500 in HTML": (reply("500 Internal Server Error", "<html>oops</html>"), "close", "status 500", "oops"),
    "401": (reply("401 Unauthorized", '{"detail": "no key"}'), "close", "status 401", "no key"),
}


class HostileServer:
    """Answers the list of models and the two short requests in which tokens are counted as it should; all others, of more than one token, with `text`."""

    def __init__(self, text, ending, good=0):
        self.text, self.ending, self.good, self.held = text, ending, good, []  # good: so many are answered well before
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            while length and len(body) < int(length.group(1)):
                body += connection.recv(65536)
            fields = json.loads(body) if body else {}
            if head.startswith(b"GET"):
                connection.sendall(reply("200 OK", '{"data": [{"id": "hostile"}]}').encode())
            elif fields.get("max_tokens") == 1 or self.good > 0:
                self.good -= fields["max_tokens"] > 1
                usage = {**USAGE, "prompt_tokens": len(fields["prompt"].split())}
                connection.sendall((STREAM + TEXT + event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": usage}) + "data: [DONE]\n\n").encode())
            else:
                connection.sendall(self.text.encode("latin-1"))
                if self.ending == "silence":
                    self.held.append(connection)
                    return
                if self.ending == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            pass
        connection.close()

    def close(self):
        for connection in [self.listener, *self.held]:
            connection.close()


@pytest.fixture
def hostile(request):
    server = HostileServer(*request.param)
    yield server
    server.close()


@pytest.mark.parametrize("hostile, kind, said", [pytest.param((text, ending, 2), kind, said, id=name) for name, (text, ending, kind, said) in HOSTILE.items()],
                         indirect=["hostile"])
@pytest.mark.parametrize("load", [("--concurrency", 2), ("--request-rate", 200)], ids=["closed", "open"])
def test_what_a_hostile_server_does_is_counted_by_kind(hostile, kind, said, load):
    result, = answer("bench", "serve", "--url", hostile.url, *load, "--num-prompts", 6, "--timeout", 0.5 if hostile.ending == "silence" else 30, "--random-output-len", 5,
                     timeout=60)["results"]
    assert result["completed"] == 2 and result["failed"] == 4 and result["failures"] == {kind: 4}
    assert said in result["failure_messages"][kind] and "\n" not in result["failure_messages"][kind]
    assert result["total_output_tokens"] == 2  # of those completed alone
    assert ("refusal_ms" in result) == (kind == "status 429")


@pytest.mark.parametrize("hostile", [(HOSTILE["429"][0], "close")], indirect=True, ids=["429"])
def test_a_load_of_which_nothing_was_answered_is_an_error_after_its_report(hostile):
    done = millrace("bench", "serve", "--url", hostile.url, "--num-prompts", 3, "--json", status=ERROR)
    assert json.loads(done.stdout)["results"][0]["failures"] == {"status 429": 3}
    assert "no request was answered" in done.stderr and "queue is full" in done.stderr
    text = millrace("bench", "serve", "--url", hostile.url, "--num-prompts", 3, status=ERROR).stdout
    assert "0 completed, 3 failed" in text and "failed: 3 x status 429, first: queue is full" in text


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = refusal("bench", "serve", "--url", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}" in message and "refused" in message and "is the server running?" in message
    assert "no.such.host.invalid" in refusal("bench", "serve", "--url", "http://no.such.host.invalid")


def test_a_server_that_goes_away_meanwhile_leaves_refused_connections():
    server = HostileServer("", "close", good=1)
    process = subprocess.Popen([BINARY, "bench", "serve", "--url", server.url, "--request-rate", "4", "--num-prompts", "8", "--seed", "3", "--json"], stdout=subprocess.PIPE, text=True,
                               env=environment())
    while server.good > 0:  # the first was answered
        assert process.poll() is None
    server.listener.shutdown(socket.SHUT_RDWR)
    server.close()
    result, = json.loads(process.communicate(timeout=60)[0])["results"]
    assert result["completed"] == 1 and result["failed"] == 7 and result["failures"]["connect"] >= 5
    assert "refused" in result["failure_messages"]["connect"]


@pytest.mark.parametrize("options, said", [
    (["--url", "https://127.0.0.1"], "https"), (["--url", "ftp://a"], "does not begin with http://"), (["--url", "http://a b"], "space"), (["--url", "http://127.0.0.1:0"], "port"),
    (["--concurrency", 0], "--concurrency"), (["--concurrency", "1,x"], "--concurrency"), (["--request-rate", 0], "--request-rate"), (["--request-rate", "nan"], "--request-rate"),
    (["--num-prompts", 0], "--num-prompts"), (["--goodput", "ttft"], "expected ttft:MS"), (["--goodput", "speed:5"], "speed:5"), (["--goodput", "ttft:-1"], "ttft:-1"),
    (["--goodput", "ttft:nan"], "ttft:nan"), (["--extra-body", "[1]"], "--extra-body: found no object"), (["--extra-body", "{"], "JSON"), (["--dataset-name", "imagenet"], "--dataset-name"),
    (["--endpoint", "/v1/embeddings"], "--endpoint"), (["--prompt-file", "/nonexistent/words"], "/nonexistent/words"), (["--timeout", 0], "--timeout"), (["--null-token-ms", 5], "--null"),
    (["--null", "--server-pid", 1], "--server-pid"), (["--random-input-len", -1], "--random-input-len"), (["--frobnicate"], "--frobnicate")])
def test_a_bad_option_is_named(options, said):
    message = refusal("bench", "serve", "--model", "m", *options)
    assert said in message and len(message) < 400


def test_a_process_that_is_not_there_is_named(served):
    assert "there is no process 1073741823" in refusal("bench", "serve", "--url", served[0], "--server-pid", 1073741823)


def test_a_load_too_short_for_a_request_says_so():
    message = refusal("bench", "serve", "--null", "--request-rate", 0.001, "--duration", 0.001)
    assert "no request was sent within --duration 0.001 s" in message


def test_a_key_that_is_none_is_refused():
    assert "OPENAI_API_KEY" in refusal("bench", "serve", OPENAI_API_KEY="a\nb")


def test_help_has_examples_and_the_page():
    text = millrace("bench", "serve", "--help").stdout
    assert "Examples:" in text and "millrace bench serve" in text and "docs/load-generator.md" in text

"""Starts the server under test.

MILLRACE_BINARY and MILLRACE_TEST_MODEL name the `millrace` executable and a model directory. MILLRACE_FAKE_SERVER (or fake_server in
MILLRACE_BUILD) is the executable of fake_server.cc: the same server over random text. It can be made slow, which some tests need; without
MILLRACE_BINARY all tests run with it.
"""
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import httpx
import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("MILLRACE_BINARY")
MODEL = os.environ.get("MILLRACE_TEST_MODEL", str(ROOT / "tests/golden/models/llama"))
FAKE = os.environ.get("MILLRACE_FAKE_SERVER")
if not FAKE and os.path.exists(built := os.path.join(os.environ.get("MILLRACE_BUILD", "/nonexistent"), "fake_server")):
    FAKE = built
PATIENCE = 8 if os.environ.get("MILLRACE_SANITIZED") else 1  # by what bounds on time are multiplied
SOAK_SECONDS = float(os.environ.get("MILLRACE_SOAK_SECONDS", "10"))


def pytest_collection_modifyitems(items):
    if BINARY or FAKE:
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason="neither MILLRACE_BINARY nor MILLRACE_FAKE_SERVER is set"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, *args, env=None, step_ms=None, host="127.0.0.1", model=None):
        self.host = host
        self.port = free_port()
        if BINARY and step_ms is None:
            command = [BINARY, "serve", str(model or MODEL)]
        else:
            command = [FAKE, "--tokenizer", MODEL, "--step-ms", str(step_ms or 0)]
        command += ["--host", host, "--port", str(self.port), *map(str, args)]
        self.process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.url = f"http://{host}:{self.port}"
        self.key = (env or {}).get("MILLRACE_API_KEY")
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {self.process.returncode}: {self.process.stderr.read()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{' '.join(command)} did not become ready")
            time.sleep(0.02)

    @property
    def pid(self):
        return self.process.pid

    def client(self, **kwargs):
        kwargs.setdefault("max_retries", 0)
        kwargs.setdefault("timeout", 60)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", **kwargs)

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=30)

    def models(self):
        return httpx.get(f"{self.url}/v1/models").json()["data"][0]

    def metrics(self):
        """Every sample of /metrics, by name with its labels but without the model's name."""
        samples = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=5 * PATIENCE).text.splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'model_name="[^"]*",?', "", name).replace("{}", "")
            samples[name] = float(value)
        return samples

    def used_blocks(self):
        return sum(value for name, value in self.metrics().items() if name.startswith("millrace_kv_blocks") and 'state="used"' in name)

    def wait_until_idle(self, seconds=10):
        """Every block is free again and nothing runs."""
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            metrics = self.metrics()
            if metrics["millrace_num_requests_live"] == 0 and self.used_blocks() == 0:
                return
            time.sleep(0.02)
        raise AssertionError(f"not idle after {seconds} s: {self.used_blocks()} blocks used, "
                             f"{metrics['millrace_num_requests_live']} requests live")

    def num_threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def assert_alive(self):
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}: {self.process.stderr.read()}"
        assert httpx.get(f"{self.url}/health").status_code == 200

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self.process.stderr.close()


@pytest.fixture(scope="session")
def server():
    running = Server()
    yield running
    running.assert_alive()
    running.stop()
    assert running.process.returncode == 0


@pytest.fixture
def make_server():
    servers = []

    def make(*args, **kwargs):
        servers.append(Server(*args, **kwargs))
        return servers[-1]

    yield make
    for running in servers:
        running.stop()


@pytest.fixture
def slow_server(make_server):
    """make_server whose tokens take their time."""
    if not FAKE:
        pytest.skip("only fake_server can be made slow (MILLRACE_FAKE_SERVER)")
    return lambda step_ms, *args, **kwargs: make_server(*args, step_ms=step_ms, **kwargs)


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def model(server):
    return server.models()["id"]


def user(text):
    return [{"role": "user", "content": text}]

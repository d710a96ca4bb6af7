"""Servers under load: started for a workload, ready when they answer, ended after it."""
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from . import ROOT
from .ggml import LlamaCpp
from .peer import Unavailable

START_TIMEOUT_S, STOP_TIMEOUT_S = 300, 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One kind of server. As a context manager of `running` it is up, at `url`, as the process `pid`."""
    name = title = ""

    def install(self):
        """Raises Unavailable with the reason where it cannot be had."""

    def identify(self):
        """{"version", "options"} as texts."""
        raise NotImplementedError

    def command(self, model_path, port, options):
        raise NotImplementedError

    def running(self, model_path, options):
        return Running(self, model_path, options)


class Running:
    def __init__(self, server, model_path, options):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name, self.command = server.name, [str(word) for word in server.command(model_path, self.port, options)]

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        self.pid = self.process.pid
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except (OSError, urllib.error.HTTPError):  # 503 while it loads
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.last_line()
                self.__exit__()
                raise Unavailable(f"{self.name} did not start: {said}")
            time.sleep(0.05)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.log.close()

    def resident_mb(self):
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def last_line(self):
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


class MillraceServer(Server):
    name = title = "millrace"

    def __init__(self, binary=None):
        self.binary = binary or os.path.join(ROOT, "build", "release", "millrace")

    def install(self):
        if not os.path.exists(self.binary):
            raise Unavailable(f"{os.path.relpath(self.binary)} is not built; ./run --no-serve builds it")

    def identify(self):
        version = subprocess.run([self.binary, "--version"], capture_output=True, text=True).stdout.strip()
        return {"version": version, "options": "defaults"}

    def command(self, model_path, port, options):
        command = [self.binary, "serve", model_path, "--host", "127.0.0.1", "--port", port, "--threads", options["threads"]]
        return command + (["--max-num-queued-reqs", options["queue"]] if "queue" in options else [])


class LlamaServer(Server):
    """Its KV cache is divided among the slots, so it gets a slot for each client and room for the longest pair in each. Its queue has no limit."""
    name, title = "llama-server", "llama.cpp's llama-server"

    def __init__(self):
        self.peer = LlamaCpp()

    def install(self):
        self.peer.install()

    def identify(self):
        return {"version": self.peer.version, "options": "as many slots as clients (32 in the open loop), 2,304 tokens each; else defaults; " + self.peer.compile_flags()}

    def command(self, model_path, port, options):
        slots = options["slots"]
        return [self.peer.program("llama-server"), "-m", model_path, "--host", "127.0.0.1", "--port", port, "-t", options["threads"], "-np", slots, "-c", slots * 2304]

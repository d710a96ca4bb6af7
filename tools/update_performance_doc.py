#!/usr/bin/env python3
"""Runs the commands of docs/performance.md and puts what they print into the page.

usage: update_performance_doc.py [--millrace PATH] [--model FILE]

Takes about a minute on a quiet machine; on a busy one the page would say what the others did.
"""
import argparse
import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "performance.md")
STEP = ["--repeat", "5", "--profile"]
DEPTH = ["--repeat", "3", "--depth", "4096", "--prompt-tokens", "0", "--new-tokens", "32", "--profile"]
BLOCKS = {"probe": ([], None), "amx": (STEP, "amx"), "avx512": (STEP, "avx512-vnni-bf16"), "avx2": (STEP, "avx2"), "depth": (DEPTH, "avx512-vnni-bf16"), "depth-avx2": (DEPTH, "avx2")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millrace", default=os.path.join(ROOT, "build", "release", "millrace"))
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    options = parser.parse_args()
    with open(PAGE) as file:
        page = file.read()
    for name, (arguments, isa) in BLOCKS.items():
        command = [options.millrace, "probe", "--refresh"] if name == "probe" else [options.millrace, "bench", "step", options.model, *arguments]
        text = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **({"MILLRACE_ISA": isa} if isa else {})}).stdout
        text = "\n".join(line for line in text.rstrip().splitlines() if not line.startswith(("kept in ", "from /"))).rstrip()
        page, count = re.subn(rf"(<!-- {name} -->\n```\n).*?(\n```)", lambda match: match[1] + text + match[2], page, count=1, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"error: docs/performance.md has no block \"{name}\"")
    with open(PAGE, "w") as file:
        file.write(page)


if __name__ == "__main__":
    main()

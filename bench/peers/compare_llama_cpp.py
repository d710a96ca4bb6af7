#!/usr/bin/env python3
"""Prefill and decode of one GGUF file, millrace against llama.cpp, in one alternating run.

usage: compare_llama_cpp.py [MODEL.gguf] [--threads N] [--rounds N] [--prompt-tokens N] [--new-tokens N] [--json FILE]

Both programs get the same file, threads and token counts; llama.cpp with and without flash attention, the better of the two counts.
Rounds alternate A B A B, so that a machine whose speed drifts treats both alike. Prints medians with the spread, and the ratio
of medians. bench/peers/install_llama_cpp.sh builds the peer for this CPU first (a few minutes).
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def cpu_model():
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--millrace", default=os.path.join(ROOT, "build", "release", "millrace"))
    parser.add_argument("--json")
    options = parser.parse_args()
    peer = run([os.path.join(ROOT, "bench", "peers", "install_llama_cpp.sh")]).strip().splitlines()[-1]

    rates = {"millrace": {"prefill": [], "decode": []}}
    details = {}

    def add(name, kind, rate):
        rates.setdefault(name, {"prefill": [], "decode": []})[kind].append(rate)

    for _ in range(options.rounds):
        ours = json.loads(run([options.millrace, "bench", options.model, "--json", "--repeat", "1", "--threads", str(options.threads), "--prompt-tokens",
                               str(options.prompt_tokens), "--new-tokens", str(options.new_tokens)]))
        details["isa"] = ours["isa"]
        add("millrace", "prefill", ours["prefill_tokens_per_second"]["median"])
        add("millrace", "decode", ours["decode_tokens_per_second"]["median"])
        for flash in ("0", "1"):
            name = f"llama.cpp -fa {flash}"
            for row in json.loads(run([peer, "-m", options.model, "-t", str(options.threads), "-p", str(options.prompt_tokens), "-n", str(options.new_tokens), "-r", "1", "-fa",
                                       flash, "-o", "json"])):
                add(name, "prefill" if row["n_prompt"] else "decode", row["avg_ts"])
                details["llama.cpp build"] = row.get("build_number")
                details["llama.cpp commit"] = row.get("build_commit")
    report = {"cpu": cpu_model(), "threads": options.threads, "model": os.path.basename(options.model), "rounds": options.rounds, **details, "tokens_per_second": rates}
    print(f"{report['cpu']}, {options.threads} threads, {report['model']}, {options.rounds} alternating rounds; millrace on {details['isa']}")
    print(f"{'':<18}{'prefill ' + str(options.prompt_tokens):>28}{'decode ' + str(options.new_tokens):>28}")
    for name, kinds in rates.items():
        cells = "".join(f"{statistics.median(values):>12.1f} ({min(values):.1f}-{max(values):.1f})".rjust(28) for values in (kinds["prefill"], kinds["decode"]))
        print(f"{name:<18}{cells}")
    for kind in ("prefill", "decode"):
        best = max(statistics.median(kinds[kind]) for name, kinds in rates.items() if name != "millrace")
        print(f"{kind}: millrace / llama.cpp's better setting = {statistics.median(rates['millrace'][kind]) / best:.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()

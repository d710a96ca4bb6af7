"""KL divergence of two engines from one reference, paired: what bench/quality reads, cuts up and reckons."""
import json
import math
import os
import random
import re
import shlex
import struct
import subprocess

from .peer import Unavailable

MAGIC = b"_logits_"
BOOTSTRAP_ROUNDS = 10_000
GROUPS_MIN = 8  # of fewer parts the bootstrap's interval says nothing


class ReferenceStream:
    """The stream of a file of logits in llama.cpp's format (docs/quality.md), cut into files of a few windows each."""

    def __init__(self, stream):
        self.stream = stream
        header = self.take(len(MAGIC) + 12, "its header")
        if not header.startswith(MAGIC):
            raise Unavailable("the reference is no file of logits in llama.cpp's format")
        self.context, self.vocab_size, self.num_windows = struct.unpack_from("<3i", header, len(MAGIC))
        self.tokens = self.take(4 * self.context * self.num_windows, "its tokens")
        self.rows_each = self.context - 1 - self.context // 2
        self.window_bytes = self.rows_each * (8 + (self.vocab_size + 1) // 2 * 4)

    def take(self, size, what):
        data = self.stream.read(size)
        if len(data) != size:
            raise Unavailable(f"the reference ended in {what}")
        return data

    def groups(self, windows_each, path):
        """Writes each group's file to `path`, one after the other, and gives how many windows it has."""
        for first in range(0, self.num_windows, windows_each):
            count = min(windows_each, self.num_windows - first)
            with open(path, "wb") as file:
                file.write(MAGIC + struct.pack("<3i", self.context, self.vocab_size, count))
                file.write(self.tokens[4 * self.context * first:4 * self.context * (first + count)])
                for window in range(first, first + count):
                    file.write(self.take(self.window_bytes, f"window {window} of {self.num_windows}"))
            yield count


def parse_llama_kl(text):
    """{"kl", "nll", "top1"} of llama-perplexity --kl-divergence: means over what it scored."""
    def number(pattern):
        found = re.search(pattern + r"\s*:\s*(-?[\d.]+|-?nan|-?inf)", text)
        if not found:
            raise Unavailable(f"llama-perplexity printed no {pattern!r}")
        return float(found.group(1))
    return {"kl": number("Mean +KLD"), "nll": math.log(number(r"Mean PPL\(Q\)")), "top1": number("Same top p") / 100}


def parse_llama_perplexity(text):
    found = re.search(r"Final estimate: PPL = ([\d.]+)", text)
    if not found:
        raise Unavailable("llama-perplexity printed no final estimate")
    return float(found.group(1))


def parse_millrace(text):
    answer = json.loads(text)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {"kl": mean(answer["against"]["window_kl"]), "nll": mean(answer["window_nll"]), "top1": answer["against"]["top1_agreement"]["share"],
            "reference_nll": mean(answer["against"]["window_nll"])}


def wrapped(command):
    """Behind the command of BENCH_WRAPPER, as bench/compare does it."""
    return [*shlex.split(os.environ.get("BENCH_WRAPPER", "")), *map(str, command)]


def run(command, what):
    done = subprocess.run(wrapped(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{what} ended with status {done.returncode}{': ' + said[-1][:300] if said else ''}")
    return done.stdout + "\n" + done.stderr


def start_reference(command):
    """Runs `command + ["--save-logits", a pipe]`; gives the process and the stream."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen([*wrapped(command), "--save-logits", f"/dev/fd/{write_end}"], pass_fds=[write_end], stdout=subprocess.DEVNULL)
    os.close(write_end)
    return process, os.fdopen(read_end, "rb", buffering=1 << 20)


def weighted_mean(groups, value):
    return sum(group["windows"] * value(group) for group in groups) / sum(group["windows"] for group in groups)


def bootstrap_interval(groups, value, rounds=BOOTSTRAP_ROUNDS, confidence=0.95, seed=1):
    """The interval of the mean of `value` when the groups are drawn again with replacement."""
    pairs = [(group["windows"], group["windows"] * value(group)) for group in groups]
    generator, means = random.Random(seed), []
    for _ in range(rounds):
        drawn = generator.choices(pairs, k=len(pairs))
        means.append(sum(total for _, total in drawn) / sum(count for count, _ in drawn))
    means.sort()
    tail = (1 - confidence) / 2
    return means[int(tail * rounds)], means[min(int((1 - tail) * rounds), rounds - 1)]


def summary(groups):
    """Means of both engines, and of the paired difference millrace - llama.cpp with its 95 % interval."""
    difference = lambda group: group["millrace"]["kl"] - group["llama.cpp"]["kl"]  # noqa: E731
    ratio = lambda group: group["millrace"]["nll"] - group["llama.cpp"]["nll"]  # noqa: E731
    low, high = bootstrap_interval(groups, difference)
    return {"num_groups": len(groups), "kl": {engine: weighted_mean(groups, lambda group: group[engine]["kl"]) for engine in ("millrace", "llama.cpp")},
            "top1": {engine: weighted_mean(groups, lambda group: group[engine]["top1"]) for engine in ("millrace", "llama.cpp")},
            "perplexity": {engine: math.exp(weighted_mean(groups, lambda group: group[engine]["nll"])) for engine in ("millrace", "llama.cpp")},
            "reference_perplexity": math.exp(weighted_mean(groups, lambda group: group["millrace"]["reference_nll"])),
            "kl_difference": weighted_mean(groups, difference), "kl_difference_low": low, "kl_difference_high": high,
            "perplexity_ratio": math.exp(weighted_mean(groups, ratio))}


def verdict(found):
    if found["num_groups"] < GROUPS_MIN:
        return f"too few parts: {found['num_groups']}"
    if found["kl_difference_high"] <= 0:
        return "millrace is nearer"
    return "llama.cpp is nearer" if found["kl_difference_low"] > 0 else "no difference seen"


def table(run_):
    lines = ["| model | scored tokens | mean KL, millrace | mean KL, llama.cpp | difference (95 % interval) | | same likeliest token | perplexity: reference, millrace, llama.cpp | ratio of the two |",
             "|---|---|---|---|---|---|---|---|---|"]
    for title, result in run_["models"].items():
        if "failed" in result or not result["groups"]:
            lines.append(f"| {title} | – | {result.get('failed', 'not measured')} | | | | | | |")
            continue
        found = summary(result["groups"])
        scored = sum(group["windows"] for group in result["groups"]) * result["rows_each"]
        interval = f" ({found['kl_difference_low']:+.6f} to {found['kl_difference_high']:+.6f})" if found["num_groups"] >= GROUPS_MIN else ""
        lines.append(f"| {title} | {scored:,} | {found['kl']['millrace']:.6f} | {found['kl']['llama.cpp']:.6f} | {found['kl_difference']:+.6f}{interval} | {verdict(found)} | "
                     f"{100 * found['top1']['millrace']:.2f} %, {100 * found['top1']['llama.cpp']:.2f} % | "
                     f"{found['reference_perplexity']:.4f}, {found['perplexity']['millrace']:.4f}, {found['perplexity']['llama.cpp']:.4f} | {found['perplexity_ratio']:.5f} |")
    return "\n".join(lines)

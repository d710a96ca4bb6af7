"""millrace itself, at its defaults, by its own commands."""
import json
import os
import subprocess

from . import ROOT
from .ggml import PROMPT
from .peer import Peer, Unavailable, output_of


def parse_bench(text, workload):
    """(tokens per second, share of the memory bandwidth or None) of `millrace bench step --json` with one repeat."""
    answer = json.loads(text)
    kind = "prefill" if workload.kind == "prefill" else "decode"
    return answer[f"{kind}_tokens_per_second"]["median"], answer[kind].get("mbu") if kind == "decode" else None


class Millrace(Peer):
    name = title = "millrace"

    def __init__(self, binary=None):
        self.binary = binary or os.path.join(ROOT, "build", "release", "millrace")

    def install(self):
        if not os.path.exists(self.binary):
            raise Unavailable(f"{os.path.relpath(self.binary)} is not built; ./run --no-serve builds it")

    def identify(self, worker, model_path, machine):
        result = worker.run([*self.bench(model_path, machine["threads"]), "--prompt-tokens", 8, "--new-tokens", 1, "--repeat", 1])
        answer = json.loads(output_of(result, "millrace bench"))
        version = subprocess.run([self.binary, "--version"], capture_output=True, text=True).stdout.strip()
        return {"version": version, "flags": "release preset; instruction sets chosen at run time", "isa": answer["isa"]}

    def bench(self, path, threads):
        return [self.binary, "bench", "step", path, "--threads", threads, "--json"]

    def measure(self, worker, path, workload, threads, setting, timeout_s):
        if workload.kind == "start":
            command = [self.binary, "generate", path, "--prompt", PROMPT, "--max-tokens", 4, "--temperature", 0, "--threads", threads]
            result = worker.run(command, timeout_s=timeout_s)
            output_of(result, "millrace generate")
            if result["marker_s"] is None:
                raise Unavailable("millrace generate printed no token")
            return result["marker_s"], result
        # Streams decode after their prompts, as the peers' do: their prompts are the depth.
        prompt_tokens, depth = (0, workload.prompt_tokens) if workload.kind == "batch" else (workload.prompt_tokens, workload.depth)
        command = [*self.bench(path, threads), "--prompt-tokens", prompt_tokens, "--new-tokens", workload.new_tokens, "--depth", depth, "--batch", workload.streams, "--repeat", 1]
        result = worker.run(command, timeout_s=timeout_s)
        rate, result["mbu"] = parse_bench(output_of(result, "millrace bench"), workload)
        return rate, result

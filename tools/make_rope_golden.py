#!/usr/bin/env python3
"""Writes tests/golden/rope_scaling.json: what transformers computes for every rope type that millrace knows.

    python3 -m venv venv && venv/bin/pip install torch transformers && venv/bin/python tools/make_rope_golden.py

Each case: the settings (as in a config.json), the inverse frequencies and attention factor for short requests, and where the scaling depends
on the length those at `long_length` tokens.
"""
import json
import pathlib

import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEAD_DIM = 16
SHORT = [1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.9, 2.3]
LONG = [1.0, 1.5, 2.25, 4.0, 8.0, 12.0, 20.0, 31.5]

CASES = [
    dict(name="default", theta=10000.0, max_positions=4096, parameters={"rope_type": "default"}),
    dict(name="large theta", theta=500000.0, max_positions=8192, parameters={"rope_type": "default"}),
    dict(name="linear", theta=10000.0, max_positions=4096, parameters={"rope_type": "linear", "factor": 3.0}),
    dict(name="old spelling", theta=10000.0, max_positions=4096, parameters={"type": "linear", "factor": 8.0}),
    dict(name="dynamic", theta=10000.0, max_positions=256, parameters={"rope_type": "dynamic", "factor": 2.0}, long_length=512),
    dict(name="dynamic 4", theta=1e6, max_positions=2048, parameters={"rope_type": "dynamic", "factor": 4.0}, long_length=8192),
    dict(name="llama3", theta=500000.0, max_positions=131072,
         parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}),
    dict(name="llama3 small", theta=10000.0, max_positions=256,
         parameters={"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32}),
    dict(name="yarn", theta=1e6, max_positions=131072,
         parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    dict(name="yarn mscale", theta=10000.0, max_positions=163840,
         parameters={"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
                     "original_max_position_embeddings": 4096}),
    dict(name="yarn attention factor", theta=10000.0, max_positions=65536,
         parameters={"rope_type": "yarn", "factor": 16.0, "attention_factor": 1.25, "beta_fast": 24.0, "beta_slow": 2.0,
                     "original_max_position_embeddings": 4096}),
    dict(name="yarn not truncated", theta=150000.0, max_positions=131072,
         parameters={"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}),
    dict(name="longrope", theta=10000.0, max_positions=131072, original=4096, long_length=4097,
         parameters={"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}),
    dict(name="longrope attention factor", theta=10000.0, max_positions=8192, original=4096, long_length=4097,
         parameters={"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.5}),
    dict(name="partial", theta=10000.0, max_positions=4096, rotary_dim=8, parameters={"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}),
]


def compute(case, length):
    parameters = dict(case["parameters"], rope_theta=case["theta"])
    parameters.setdefault("rope_type", parameters.pop("type", None))
    config = LlamaConfig(hidden_size=4 * HEAD_DIM, num_attention_heads=4, head_dim=HEAD_DIM,
                         max_position_embeddings=case["max_positions"], rope_parameters=parameters)
    if "original" in case:
        config.original_max_position_embeddings = case["original"]
    kind = parameters["rope_type"]
    if kind == "default":
        kind, parameters["factor"] = "linear", 1.0  # the same formula, divided by one
        config.rope_parameters = parameters
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return [float(f) for f in frequencies], float(attention_factor)


def main():
    out = []
    for case in CASES:
        frequencies, attention_factor = compute(case, None)
        result = dict(case, rotary_dim=case.get("rotary_dim", HEAD_DIM), inv_freq=frequencies, attention_factor=attention_factor)
        if "long_length" in case:
            result["long_inv_freq"], result["long_attention_factor"] = compute(case, case["long_length"])
        out.append(result)
    path = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/rope_scaling.json"
    path.write_text(json.dumps({"transformers": transformers.__version__, "cases": out}, indent=1) + "\n")
    print(f"{path}: {len(out)} cases")


if __name__ == "__main__":
    main()

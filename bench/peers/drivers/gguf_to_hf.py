"""Writes a Hugging Face directory in bf16 from a GGUF file, with transformers' own reader of GGUF.

usage: gguf_to_hf.py FILE.gguf DIRECTORY
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

source, destination = sys.argv[1:3]
directory, name = os.path.split(source)
read = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.bfloat16)
config = read.config
if hasattr(config, "quantization_config"):  # its weights are plain now, but it refuses to save them
    del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.load_state_dict(read.state_dict())
model.tie_weights()
model.save_pretrained(destination)
AutoTokenizer.from_pretrained(directory, gguf_file=name).save_pretrained(destination)

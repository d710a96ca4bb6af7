"""Writes tests/golden/beam_search.json: what transformers' beam search gives for the golden models, with and without tokens that end a sequence.

    pip install -r tools/requirements-reference.txt
    python3 tools/make_beam_golden.py
"""
import itertools
import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = ROOT / "tests/golden/models"
OUT = ROOT / "tests/golden/beam_search.json"
NAMES = ["llama", "gemma3_text", "qwen2"]
MAX_NEW_TOKENS = 20


def cases(name):
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = json.loads((MODELS / name / "golden.json").read_text())["prompts"]
    for prompt, (num_beams, length_penalty, early_stopping, stops) in itertools.product(
            prompts[1:2], [(1, 1.0, False, 0), (2, 1.0, False, 0), (4, 1.0, False, 0), (8, 0.0, False, 0), (3, 1.0, False, 1), (4, 1.0, False, 2), (4, 1.0, True, 2),
                           (4, 1.0, "never", 2), (5, 0.0, "never", 3), (4, 2.5, False, 3), (4, 2.5, "never", 3), (6, -1.0, False, 3), (6, 0.7, True, 3)]):
        # The tokens of the greedy answer end sequences sooner or later.
        eos = sorted({prompt["greedy"][place] for place in (5, 9, 14)[:stops]})
        ids = torch.tensor([prompt["ids"]])
        config = transformers.GenerationConfig(num_beams=num_beams, num_return_sequences=num_beams, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0,
                                               length_penalty=length_penalty, early_stopping=early_stopping, eos_token_id=eos or None)
        model.generation_config = config
        with torch.no_grad():
            got = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        sequences = []
        for row in got[:, ids.shape[1]:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
            sequences.append(row[:end])
        yield {"model": name, "prompt": prompt["name"], "ids": prompt["ids"], "num_beams": num_beams, "max_new_tokens": MAX_NEW_TOKENS, "length_penalty": length_penalty,
               "early_stopping": early_stopping, "eos_token_ids": eos, "sequences": sequences}


def main():
    torch.manual_seed(0)
    every = [case for name in NAMES for case in cases(name)]
    about = {"computed": "float32, eager attention, CPU", "made_with": {"transformers": transformers.__version__, "torch": torch.__version__}}
    lines = ",\n  ".join(json.dumps(case) for case in every)
    OUT.write_text(f'{json.dumps(about)[:-1]},\n "cases": [\n  {lines}\n]}}\n')
    print(f"{OUT}: {len(every)} cases")


if __name__ == "__main__":
    main()

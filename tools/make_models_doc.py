#!/usr/bin/env python3
"""Write docs/models.md from the family files and the golden models, so that it says what is built in and proven, and nothing else.

usage: make_models_doc.py [--check]

--check writes nothing and fails when docs/models.md is not what would be written.
"""
import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/models.md"

HEAD = """# Models that run

This page is made by `tools/make_models_doc.py` from `millrace/model/families/*.json`, `tests/golden/{models,encoders,seq2seq}/*`; a test holds it to that.

A model runs when its family is known: the network described in JSON, for Hugging Face directories by `architectures` of `config.json`, for GGUF files by
`general.architecture`. `--family file.json` adds one without recompiling ([add-a-model.md](add-a-model.md)). Which file types are read stands in [formats.md](formats.md).

| family | `architectures` | GGUF architecture | proven on (tests/golden/models, encoders, seq2seq) |
|---|---|---|---|
"""

TAIL = """
"Proven on" names tiny models with random weights, whose logits and greedy text (of encoders: hidden states, embeddings or class logits; of encoder-decoders also the encoder's hidden states) transformers computed; the words are what is particular about each. Every one passes

```
millrace verify tests/golden/models/NAME --reference tests/golden/models/NAME/golden.json
```

(encoders: `tests/golden/encoders/NAME`, encoder-decoders: `tests/golden/seq2seq/NAME`) and `tests/cli/test_numbers.py` runs that for all of them. Of the real models only the demo model, SmolLM2-135M-Instruct (GGUF, Q4_1), is part of the tests
(`tests/golden/real`); `tools/make_reference.py` makes a reference of any other, see [verify.md](verify.md).

## Families from outside
These are no part of the binary, and serve as examples and tests of `--family` (`model/family_outside_test.cc`, `tests/cli/test_families.py`):

| file | `architectures` |
|---|---|
"""


def names(value):
    values = value if isinstance(value, list) else [value] if value else []
    return ", ".join(f"`{v}`" for v in values) or "none"


def page():
    goldens = {}
    for directory in sorted(path for kind in ("models", "encoders", "seq2seq") for path in (ROOT / "tests/golden" / kind).iterdir()):
        architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
        note = json.loads((directory / "golden.json").read_text()).get("note", "")
        goldens.setdefault(architecture, []).append(f"`{directory.name}`: {note}")
    rows = []
    for path in sorted((ROOT / "millrace/model/families").glob("*.json")):
        family = json.loads(path.read_text())
        architectures = family.get("architectures", [])
        proven = "; ".join(golden for architecture in architectures for golden in goldens.pop(architecture, [])) or "none"
        rows.append(f"| {family['family']} | {names(architectures)} | {names(family.get('gguf_architecture'))} | {proven} |\n")
    if goldens:
        sys.exit(f"error: golden models without a family: {', '.join(goldens)}")
    outside = []
    for path in sorted((ROOT / "tests/golden/outside").glob("*/millrace_family.json")):
        outside.append(f"| `{path.relative_to(ROOT)}` | {names(json.loads(path.read_text()).get('architectures'))} |\n")
    return HEAD + "".join(rows) + TAIL + "".join(outside)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf8") != text:
            sys.exit("error: docs/models.md is out of date; run tools/make_models_doc.py")
    else:
        PAGE.write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()

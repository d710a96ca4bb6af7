#!/usr/bin/env python3
"""Write a reference file for `millrace verify`: what Hugging Face transformers computes for a model, in float32 on the CPU.

usage: make_reference.py MODEL [--out golden.json] [--prompts FILE] [--text TEXT]... [--greedy N] [--seed N]

Of an encoder (architectures ...Model, ...ForMaskedLM, ...ForSequenceClassification) the reference has its last hidden state and its embedding, pooled as
modules.json says (without one the normalized mean), or its class logits. Of an encoder-decoder (...ForConditionalGeneration, MarianMTModel) the prompts
are source texts, and the reference has the encoder's last hidden state, the logits of the decoder's first step and its greedy answer.

MODEL is a Hugging Face directory, or a GGUF file whose architecture transformers can read (its weights are then de-quantised to
float32). Without --prompts and --text there are three prompts of 1, 17 and 70 random token ids. --prompts FILE is an earlier reference
file, whose token ids are taken again, or a JSON list of texts and lists of token ids. The file's format: docs/verify.md.

Weights, activations and attention are float32, without a KV cache: every greedy step computes the whole sequence anew, so that nothing
but the network's formula is in the result. The model must fit in memory at 4 bytes a weight.

    python3 -m venv build/venv-reference
    build/venv-reference/bin/pip install -r tools/requirements-reference.txt
    build/venv-reference/bin/python tools/make_reference.py ./Qwen3-0.6B --out golden.json
    build/release/millrace verify ./Qwen3-0.6B --reference golden.json
"""
import argparse
import json
import os
import random
import struct
import sys

FORMAT = 1
RANDOM_LENGTHS = (1, 17, 70)
TOP, FIRST = 20, 16


def fail(message):
    sys.exit(f"error: {message}")


def rounded(value, digits=7):
    """Seven digits are what a float32 has; more would only make the file longer."""
    return float(f"{float(value):.{digits}g}")


def stored_dtype(directory):
    """The dtype that most weights of the directory's safetensors files are stored in, as transformers spells it."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    counts = {}
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(directory, name), "rb") as file:
            size, = struct.unpack("<Q", file.read(8))
            for key, tensor in json.loads(file.read(size)).items():
                if key != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + end - begin
    if not counts:
        fail(f"{directory} holds no safetensors file")
    dtype = max(counts, key=counts.get)
    return names.get(dtype, dtype)


def load(path):
    """(model in float32, what the reference file says about it, function text -> ids)"""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)
    if os.path.isdir(path):
        config = AutoConfig.from_pretrained(path)
        if getattr(config, "quantization_config", None):
            fail(f"{path}: config.json has a quantization_config; this tool makes references of plain weights and GGUF files only")
        about = {"weights_dtype": stored_dtype(path)}
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    elif os.path.isfile(path):
        directory, name = os.path.split(os.path.abspath(path))
        options["gguf_file"] = name
        try:  # newer versions keep GGUF blocks packed unless told otherwise
            from transformers import GgufConfig
            options["quantization_config"] = GgufConfig(dequantize=True)
        except ImportError:
            pass
        about = {"weights_dtype": "gguf"}
        model = AutoModelForCausalLM.from_pretrained(directory, **options)
    else:
        fail(f"{path} is neither a directory nor a file")
    model = model.to(torch.float32).eval()
    if model.config.is_encoder_decoder:
        fail(f"{path}: {type(model).__name__} is an encoder-decoder network; of those references are made from directories only")
    other = sorted({str(p.dtype) for p in model.parameters()} - {"torch.float32"})
    if other:
        fail(f"{path}: some weights are {', '.join(other)} after loading, expected float32")

    def encode(text):
        if os.path.isdir(path):
            from tokenizers import Tokenizer
            return Tokenizer.from_file(os.path.join(path, "tokenizer.json")).encode(text).ids
        from transformers import AutoTokenizer
        return AutoTokenizer.from_pretrained(directory, gguf_file=name)(text)["input_ids"]

    return model, about, encode


def encoder_kind(path):
    """"encoder", "classify", "seq2seq", or None of a decoder."""
    if not os.path.isdir(path):
        return None
    with open(os.path.join(path, "config.json"), encoding="utf8") as file:
        architecture = (json.load(file).get("architectures") or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "classify"
    if architecture.endswith(("ForConditionalGeneration", "MTModel")):
        return "seq2seq"
    return "encoder" if architecture.endswith("ForMaskedLM") or (architecture.endswith("Model") and not architecture.endswith("LMHeadModel")) else None


def compute_answer(model, start, name, text, ids, num_greedy):
    """Of a source text: every greedy step computes the whole answer anew."""
    import torch

    source = torch.tensor([ids])
    hidden = model.get_encoder()(input_ids=source).last_hidden_state

    def forward(tokens):
        return model(input_ids=source, decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()

    result = {"name": name, **({"text": text} if text is not None else {}), "ids": ids, "encoder_last_hidden": {
        "l2": rounded(hidden.double().norm(), 8), "first_token_first16": [rounded(v) for v in hidden[0, 0, :FIRST]],
        "last_token_first16": [rounded(v) for v in hidden[0, -1, :FIRST]]}}
    answer, last = [start], forward([start])
    result["first_step_logits"] = describe_logits(last)
    margins = []
    for step in range(num_greedy):
        values, best = last.topk(2)
        answer.append(int(best[0]))
        margins.append(rounded(values[0].double() - values[1].double(), 6))
        if step + 1 < num_greedy:
            last = forward(answer)
    result.update(decoder_start_token_id=start, greedy=answer[1:], greedy_margins=margins)
    if margins:
        result["min_margin"] = min(margins)
    return result


def write_seq2seq_reference(path, prompts, out, about_prompts, num_greedy):
    import torch
    import transformers
    from tokenizers import Tokenizer

    with torch.no_grad():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        if callable(prompts):
            prompts = prompts(model.get_input_embeddings().weight.shape[0],
                              lambda text: Tokenizer.from_file(os.path.join(path, "tokenizer.json")).encode(text).ids)
        start = model.config.decoder_start_token_id
        if start is None:
            start = model.generation_config.decoder_start_token_id
        if start is None:
            fail(f"{path}: neither config.json nor generation_config.json has a decoder_start_token_id")
        results = [compute_answer(model, start, *prompt, num_greedy) for prompt in prompts]
    reference = {"format": FORMAT, "name": os.path.basename(os.path.normpath(path)), "kind": "seq2seq", **about_prompts, "weights_dtype": stored_dtype(path),
                 "computed": "float32, eager attention, no KV cache, CPU", "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
                 "model_type": model.config.model_type, "hf_class": type(model).__name__}
    with open(out, "w", encoding="utf8") as file:
        lines = ",\n  ".join(json.dumps(result, ensure_ascii=False) for result in results)
        file.write(f'{json.dumps(reference)[:-1]},\n "results": [\n  {lines}\n]}}\n')
    print(f"{out}: {len(results)} source texts of {', '.join(str(len(r['ids'])) for r in results)} token ids, "
          f"smallest greedy margin {min((r.get('min_margin', float('inf')) for r in results)):.4g}")


def load_encoder(path, kind):
    """(model in float32, text -> ids, function hidden state -> embedding)"""
    import safetensors.torch
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    loader = AutoModelForSequenceClassification if kind == "classify" else AutoModel
    model = loader.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    modules = [{"type": "Pooling", "path": ""}, {"type": "Normalize", "path": ""}]
    if os.path.exists(os.path.join(path, "modules.json")):
        with open(os.path.join(path, "modules.json"), encoding="utf8") as file:
            modules = [module for module in json.load(file) if not module["type"].endswith("Transformer")]

    def embed(hidden):
        row = None
        for module in modules:
            kind = module["type"].rpartition(".")[2]
            fields = {}
            if module["path"] and os.path.exists(os.path.join(path, module["path"], "config.json")):
                with open(os.path.join(path, module["path"], "config.json"), encoding="utf8") as file:
                    fields = json.load(file)
            if kind == "Pooling":
                row = hidden[0] if fields.get("pooling_mode_cls_token") else hidden[-1] if fields.get("pooling_mode_lasttoken") else hidden.mean(0)
            elif kind == "Dense":
                weights = safetensors.torch.load_file(os.path.join(path, module["path"], "model.safetensors"))
                row = torch.nn.functional.linear(row, weights["linear.weight"].float(), weights["linear.bias"].float() if "linear.bias" in weights else None)
                row = getattr(torch.nn, fields.get("activation_function", "Tanh").rpartition(".")[2])()(row)
            elif kind == "Normalize":
                row = torch.nn.functional.normalize(row, dim=0)
            else:
                fail(f"{path}: modules.json has a {kind}, which this tool does not compute")
        return row

    def encode(text):
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer.encode(text).ids

    return model, encode, embed


def compute_encoder(model, kind, embed, name, text, ids):
    import torch

    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    result = {"name": name, **({"text": text} if text is not None else {}), "ids": ids}
    if getattr(model.config, "type_vocab_size", 1) and getattr(model.config, "type_vocab_size", 1) > 1 and text is None:
        # The second half as the second of a pair.
        result["token_type_ids"] = [int(i >= (len(ids) + 1) // 2) for i in range(len(ids))]
        inputs["token_type_ids"] = torch.tensor([result["token_type_ids"]])
    if kind == "classify":
        result["logits"] = [rounded(v, 8) for v in model(**inputs).logits[0]]
        return result
    hidden = model(**inputs).last_hidden_state[0]
    result["last_hidden_l2"] = rounded(hidden.double().norm(), 8)
    for field, row in (("cls", hidden[0]), ("last_token", hidden[-1]), ("mean_pooled", hidden.mean(0))):
        result[f"{field}_first16"] = [rounded(v) for v in row[:FIRST]]
    result["embedding"] = [rounded(v) for v in embed(hidden)]
    return result


def write_encoder_reference(path, kind, prompts, out, about_prompts):
    import torch
    import transformers

    with torch.no_grad():
        model, encode, embed = load_encoder(path, kind)
        if callable(prompts):
            prompts = prompts(model.get_input_embeddings().weight.shape[0], encode)
        # Several networks number positions by the padding token: a text does not have it.
        padding = getattr(model.config, "pad_token_id", None)
        prompts = [(name, text, ids if text is not None else [i if i != padding else i + 2 for i in ids]) for name, text, ids in prompts]
        results = [compute_encoder(model, kind, embed, *prompt) for prompt in prompts]
    reference = {"format": FORMAT, "name": os.path.basename(os.path.normpath(path)), "kind": kind, **about_prompts, "weights_dtype": stored_dtype(path),
                 "computed": "float32, eager attention, CPU", "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
                 "model_type": model.config.model_type, "hf_class": type(model).__name__}
    with open(out, "w", encoding="utf8") as file:
        lines = ",\n  ".join(json.dumps(result, ensure_ascii=False) for result in results)
        file.write(f'{json.dumps(reference)[:-1]},\n "results": [\n  {lines}\n]}}\n')
    print(f"{out}: {len(results)} texts of {', '.join(str(len(r['ids'])) for r in results)} token ids")


def chosen_prompts(options, vocab_size, encode):
    """[(name, text or None, ids)]"""
    prompts = []
    if options.prompts:
        with open(options.prompts, encoding="utf8") as file:
            items = json.load(file)
        if isinstance(items, dict):
            items = items.get("prompts")
        if not isinstance(items, list):
            fail(f"{options.prompts}: expected a reference file or a list of texts and lists of token ids")
        for i, item in enumerate(items):
            if isinstance(item, dict):
                prompts.append((item.get("name", f"prompt {i + 1}"), item.get("text"), item.get("ids")))
            elif isinstance(item, str):
                prompts.append((f"prompt {i + 1}", item, encode(item)))
            else:
                prompts.append((f"prompt {i + 1}", None, item))
    for text in options.text:
        prompts.append((f"prompt {len(prompts) + 1}", text, encode(text)))
    if not prompts:
        choose = random.Random(options.seed)
        prompts = [(f"len{n}", None, [choose.randrange(vocab_size) for _ in range(n)]) for n in RANDOM_LENGTHS]
    for name, _, ids in prompts:
        good = isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < vocab_size for i in ids)
        if not good:
            fail(f"{name}: expected a list of token ids in [0, {vocab_size}), not empty")
    return prompts


def describe_logits(logits):
    values, ids = logits.topk(min(TOP, logits.numel()))
    return {"top20": [[int(i), rounded(v)] for i, v in zip(ids, values)], "l2": rounded(logits.double().norm(), 8), "mean": rounded(logits.double().mean()),
            "first16": [rounded(v) for v in logits[:FIRST]]}


def compute(model, name, text, ids, num_greedy):
    import torch

    def forward(tokens):
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()

    result = {"name": name, **({"text": text} if text is not None else {}), "ids": ids}
    logits = forward(ids)
    logprobs = torch.log_softmax(logits.double(), -1)
    result["last_logits"] = describe_logits(logits[-1])
    result["prompt_logprobs"] = [rounded(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    result["prompt_nll"] = rounded(-sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1))) if len(ids) > 1 else None
    sequence, last = list(ids), logits[-1]
    greedy, greedy_logprobs, margins = [], [], []
    for step in range(num_greedy):
        values, best = last.topk(2)
        greedy.append(int(best[0]))
        greedy_logprobs.append(rounded(torch.log_softmax(last.double(), -1)[best[0]]))
        margins.append(rounded(values[0].double() - values[1].double(), 6))
        if step + 1 < num_greedy:
            sequence.append(greedy[-1])
            last = forward(sequence)[-1]
    result.update(greedy=greedy, greedy_logprobs=greedy_logprobs, greedy_margins=margins)
    if margins:
        result["min_margin"] = min(margins)
    return result


def write_reference(path, prompts, out, about_prompts, num_greedy=24):
    """Writes the reference file of the model at `path`. `prompts`: (name, text or None, ids) each, or a function of (vocab_size, encode)."""
    kind = encoder_kind(path)
    if kind == "seq2seq":
        return write_seq2seq_reference(path, prompts, out, about_prompts, num_greedy)
    if kind:
        return write_encoder_reference(path, kind, prompts, out, about_prompts)
    import torch
    import transformers

    torch.manual_seed(0)
    with torch.no_grad():
        model, about, encode = load(path)
        if callable(prompts):
            prompts = prompts(model.get_input_embeddings().weight.shape[0], encode)
        results = [compute(model, *prompt, num_greedy) for prompt in prompts]
    reference = {"format": FORMAT, "name": os.path.basename(os.path.normpath(path)), "kind": "decoder", **about_prompts, **about,
                 "computed": "float32, eager attention, no KV cache, CPU", "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
                 "model_type": model.config.model_type, "hf_class": type(model).__name__}
    with open(out, "w", encoding="utf8") as file:
        # One line for what the file is about, one for each prompt: short, and a changed prompt shows as a changed line.
        lines = ",\n  ".join(json.dumps(result, ensure_ascii=False) for result in results)
        file.write(f'{json.dumps(reference)[:-1]},\n "prompts": [\n  {lines}\n]}}\n')
    print(f"{out}: {len(results)} prompts of {', '.join(str(len(p['ids'])) for p in results)} token ids, "
          f"smallest greedy margin {min((p.get('min_margin', float('inf')) for p in results)):.4g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--out", default="golden.json", help="file to write (default golden.json)")
    parser.add_argument("--prompts", help="an earlier reference file, or a JSON list of texts and lists of token ids")
    parser.add_argument("--text", action="append", default=[], help="a prompt as text; may be repeated")
    parser.add_argument("--greedy", type=int, default=24, help="greedy tokens to make after each prompt (default 24)")
    parser.add_argument("--seed", type=int, default=1, help="of the random token ids")
    options = parser.parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        fail(f"{error.name} is not installed; install tools/requirements-reference.txt")

    drawn = {} if options.prompts or options.text else {"seed": options.seed}
    write_reference(options.model, lambda vocab_size, encode: chosen_prompts(options, vocab_size, encode), options.out, drawn, options.greedy)


if __name__ == "__main__":
    main()

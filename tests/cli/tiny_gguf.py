"""Writes a tiny GGUF file from the golden qwen2 directory, without any package: GGUF v3 as llama.cpp's converter lays it out."""
import json
import pathlib
import struct

F32, Q8_0, BF16 = 0, 8, 30
U32, FLOAT32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
ALIGNMENT = 32

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, part = stem[len("model.layers."):].split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    """One metadata entry; `kind` is a type id, or (ARRAY, type id of the elements)."""
    def scalar(kind, value):
        return string(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)
    if isinstance(kind, tuple):
        return string(key) + struct.pack("<IIQ", ARRAY, kind[1], len(value)) + b"".join(scalar(kind[1], item) for item in value)
    return string(key) + struct.pack("<I", kind) + scalar(kind, value)


def floats(bf16):
    return b"".join(b"\0\0" + bf16[i:i + 2] for i in range(0, len(bf16), 2))


def quantize_q8_0(bf16):
    values = struct.unpack(f"<{len(bf16) // 2}f", floats(bf16))
    blocks = []
    for begin in range(0, len(values), 32):
        block = values[begin:begin + 32]
        scale = max(map(abs, block)) / 127
        codes = [round(value / scale) if scale else 0 for value in block]
        blocks.append(struct.pack("<e32b", scale, *codes))
    return b"".join(blocks)


def write(model, path, matrix_type):
    """`model`: a directory with bf16 weights and a byte-level BPE tokenizer. Returns the path as text."""
    model, path = pathlib.Path(model), pathlib.Path(path)
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer_config = json.loads((model / "tokenizer_config.json").read_text())
    data = (model / "model.safetensors").read_bytes()
    header_bytes, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_bytes])

    tensors = []  # name, dimensions, type id, bytes
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        assert tensor["dtype"] == "BF16"
        begin, end = tensor["data_offsets"]
        stored = data[8 + header_bytes + begin:8 + header_bytes + end]
        if len(tensor["shape"]) == 1:
            kind, stored = F32, floats(stored)
        elif matrix_type == "Q8_0":
            kind, stored = Q8_0, quantize_q8_0(stored)
        else:
            kind = BF16
        tensors.append((gguf_name(name), tensor["shape"][::-1], kind, stored))

    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = {index: token for token, index in tokenizer["model"]["vocab"].items()} | added
    tokens = [vocabulary[index] for index in range(len(vocabulary))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    arch = config["model_type"]
    entries = [
        entry("general.architecture", STRING, arch),
        entry("general.name", STRING, "tiny"),
        entry(f"{arch}.block_count", U32, config["num_hidden_layers"]),
        entry(f"{arch}.context_length", U32, config["max_position_embeddings"]),
        entry(f"{arch}.embedding_length", U32, config["hidden_size"]),
        entry(f"{arch}.feed_forward_length", U32, config["intermediate_size"]),
        entry(f"{arch}.attention.head_count", U32, config["num_attention_heads"]),
        entry(f"{arch}.attention.head_count_kv", U32, config["num_key_value_heads"]),
        entry(f"{arch}.attention.layer_norm_rms_epsilon", FLOAT32, config["rms_norm_eps"]),
        entry(f"{arch}.rope.freq_base", FLOAT32, config["rope_theta"]),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, "llama-bpe"),  # the regular expression of the golden tokenizer
        entry("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        entry("tokenizer.ggml.token_type", (ARRAY, I32), [3 if index in added else 1 for index in range(len(tokens))]),
        entry("tokenizer.ggml.merges", (ARRAY, STRING), merges),
        entry("tokenizer.ggml.bos_token_id", U32, config["bos_token_id"]),
        entry("tokenizer.ggml.eos_token_id", U32, config["eos_token_id"]),
        entry("tokenizer.ggml.add_bos_token", BOOL, False),
        entry("tokenizer.chat_template", STRING, tokenizer_config["chat_template"]),
    ]
    infos, blobs, offset = [], [], 0
    for name, dimensions, kind, stored in tensors:
        infos.append(string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset))
        padding = -len(stored) % ALIGNMENT
        blobs.append(stored + bytes(padding))
        offset += len(stored) + padding
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + b"".join(blobs))
    return str(path)

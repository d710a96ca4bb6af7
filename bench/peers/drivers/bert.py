"""BERT with mean pooling and normalization, written in the operations whose patterns onnxruntime's optimizer fuses.

Pooling is in the graph, so that the engine's own threads compute it.
"""
import math

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.num_heads = config["num_attention_heads"]
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)

    def heads(self, x):
        return x.view(x.size(0), x.size(1), self.num_heads, x.size(2) // self.num_heads).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1)) + mask, -1)
        mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        x = self.attention_norm(self.o(mixed.view(x.size(0), x.size(1), x.size(2))) + x)
        return self.mlp_norm(self.down(nn.functional.gelu(self.up(x))) + x)


NAMES = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "o": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
         "up": "intermediate.dense", "down": "output.dense", "mlp_norm": "output.LayerNorm"}


class Embedder(nn.Module):
    """tensors: those of the checkpoint, by their names."""

    def __init__(self, tensors, config):
        super().__init__()
        if config["hidden_act"] != "gelu":
            raise ValueError(f"hidden_act is {config['hidden_act']}, expected gelu")
        for name in ("word", "position", "token_type"):
            setattr(self, name, nn.Embedding.from_pretrained(tensors[f"embeddings.{name}_embeddings.weight"]))
        self.norm = nn.LayerNorm(config["hidden_size"], config["layer_norm_eps"])
        self.norm.load_state_dict({kind: tensors[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")})
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        for number, layer in enumerate(self.layers):
            layer.load_state_dict({f"{ours}.{kind}": tensors[f"encoder.layer.{number}.{name}.{kind}"] for ours, name in NAMES.items() for kind in ("weight", "bias")})
        self.register_buffer("positions", torch.arange(config["max_position_embeddings"])[None])

    def forward(self, input_ids, attention_mask):
        x = self.norm(self.word(input_ids) + self.token_type(torch.zeros_like(input_ids)) + self.position(self.positions[:, :input_ids.size(1)]))
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        kept = attention_mask.to(torch.float32)
        pooled = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)
        return pooled / pooled.norm(dim=1, keepdim=True)

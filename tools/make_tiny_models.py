#!/usr/bin/env python3
"""Make tiny golden models: random weights in the shape of a published family, and what transformers computes for them.

usage: make_tiny_models.py [--list] [--out DIR] [NAME ...]

Each becomes a directory as a published checkpoint has it: config.json in the style of the family's own checkpoints, model.safetensors in bf16,
the tokenizer of another golden model, and golden.json (tools/make_reference.py). Weights depend on the name alone, so a model can be made
again. Without --out it goes to tests/golden/models, encoders to tests/golden/encoders, encoder-decoders to tests/golden/seq2seq; families that the binary must not know go to
tests/golden/outside.

    build/venv-reference/bin/python tools/make_tiny_models.py olmo2 mpt
"""
import argparse
import json
import pathlib
import random
import shutil
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import make_reference  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden"

# Whose tokenizer files are copied, and the ids that go with it.
TOKENIZERS = {"wordpiece": ("../encoders/bert", 620, {"pad_token_id": 0}), "bpe": ("llama", 640, {"bos_token_id": 0, "eos_token_id": 2}), "gpt2": ("gpt2", 600, {"bos_token_id": 0, "eos_token_id": 0}),
              "t5": ("../seq2seq/t5", 600, {"pad_token_id": 0, "eos_token_id": 1}), "spm": ("llama2-spm", 876, {"bos_token_id": 1, "eos_token_id": 2})}

SIZES = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 256}

QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **SIZES, "intermediate_size": 64, "head_dim": 16, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None, "num_experts_per_tok": 3, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "use_sliding_window": False, "sliding_window": None, "attention_bias": False, "tie_word_embeddings": True}

# Latent attention: heads of 16 dimensions, 8 of them with rope, values of 12.
DEEPSEEK = {
    **SIZES, "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "kv_lora_rank": 32, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "moe_intermediate_size": 16, "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "attention_bias": False, "tie_word_embeddings": False}
# Experts in the published form, and as MXFP4; limits that many activations reach.
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", **SIZES, "pad_token_id": 3, "head_dim": 16, "intermediate_size": 32, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 32, "truncate": False},
    "num_local_experts": 4, "num_experts_per_tok": 2, "experts_per_token": 2, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
    "swiglu_limit": 0.8, "attention_bias": True, "tie_word_embeddings": False}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
ENCODER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.02}
MODERNBERT = {
    "model_type": "modernbert", **ENCODER, "intermediate_size": 64, "num_hidden_layers": 4, "hidden_activation": "gelu", "global_attn_every_n_layers": 3, "local_attention": 16,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
    "classifier_activation": "gelu", "classifier_bias": False, "classifier_pooling": "mean", "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
# Heads whose values fill no vector, other sizes on both sides.
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3, "relative_attention_num_buckets": 16,
      "relative_attention_max_distance": 40, "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True, "decoder_start_token_id": 0}
BART = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 96, "max_position_embeddings": 128, "activation_function": "gelu", "is_encoder_decoder": True, "normalize_before": False,
        "add_final_layer_norm": False}

# name: (tokenizer, what is particular about it, the fields of config.json)
MODELS = {
    "gpt_neox": ("gpt2", "parallel residual with two norms, qkv interleaved per head, a quarter of the head rotated", {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5, "use_parallel_residual": True, "tie_word_embeddings": False}),
    "mpt": ("gpt2", "ALiBi for a number of heads that is no power of two, q k v clipped, layer norms without bias", {
        "architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 4,
        "layer_norm_epsilon": 1e-5, "no_bias": True, "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 1.0, "qk_ln": False, "softmax_scale": None},
        "tie_word_embeddings": True}),
    "starcoder2": ("gpt2", "GQA with biases everywhere, layer norms, sliding window 16 < prompt length", {
        "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", **SIZES, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5,
        "rope_theta": 100000.0, "use_bias": True, "sliding_window": 16, "tie_word_embeddings": True}),
    "stablelm": ("bpe", "layer norms, a quarter of the head rotated, qkv biases (1.6B style)", {
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", **SIZES, "hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 10000,
        "partial_rotary_factor": 0.25, "use_qkv_bias": True, "qk_layernorm": False, "use_parallel_residual": False, "tie_word_embeddings": False}),
    "stablelm-parallel": ("bpe", "parallel residual with one norm, a layer norm of its own for every head of q and k (12B style)", {
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", **SIZES, "hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 10000,
        "partial_rotary_factor": 0.25, "use_qkv_bias": False, "qk_layernorm": True, "use_parallel_residual": True, "tie_word_embeddings": False}),
    "olmo": ("bpe", "layer norms without weights, q k v clipped, MHA", {
        "architectures": ["OlmoForCausalLM"], "model_type": "olmo", **SIZES, "num_key_value_heads": 4, "hidden_act": "silu", "rope_theta": 10000.0,
        "rope_scaling": None, "clip_qkv": 0.8, "attention_bias": False, "tie_word_embeddings": True}),
    "olmo2": ("bpe", "norms after attention and mlp only, q and k normed over all heads together", {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", **SIZES, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 500000,
        "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": False}),
    "olmo3": ("bpe", "olmo2 with windows on three layers of four, YaRN on the others", {
        "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", **SIZES, "num_hidden_layers": 4, "intermediate_size": 64, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 500000, "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
                         "attention_factor": 1.1386294361119891},
        "attention_bias": False, "tie_word_embeddings": True}),
    "cohere": ("bpe", "parallel residual with one norm, layer norms without bias, one for every head of q and k, interleaved rope, scaled logits", {
        "architectures": ["CohereForCausalLM"], "model_type": "cohere", **SIZES, "hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
        "logit_scale": 0.5, "use_qk_norm": True, "attention_bias": False, "tie_word_embeddings": True}),
    "cohere2": ("bpe", "windows with rope on three layers of four, no positions on the others", {
        "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", **SIZES, "num_hidden_layers": 4, "intermediate_size": 64, "head_dim": 16,
        "hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 50000, "rotary_pct": 1.0, "logit_scale": 0.5, "sliding_window": 16,
        "sliding_window_pattern": 4, "use_qk_norm": False, "attention_bias": False, "tie_word_embeddings": True}),
    "glm": ("bpe", "half of the head rotated, interleaved; qkv biases, fused gate and up", {
        "architectures": ["GlmForCausalLM"], "model_type": "glm", **SIZES, "pad_token_id": 3, "head_dim": 16, "hidden_act": "silu", "rms_norm_eps": 1.5625e-7,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "attention_bias": True, "tie_word_embeddings": False}),
    "glm4": ("bpe", "glm with norms after attention and mlp too", {
        "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", **SIZES, "pad_token_id": 3, "head_dim": 16, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "attention_bias": True, "tie_word_embeddings": False}),
    "smollm3": ("bpe", "no positions on every fourth layer", {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", **SIZES, "pad_token_id": 3, "num_hidden_layers": 4, "intermediate_size": 64, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "rope_scaling": None, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0],
        "use_sliding_window": False, "sliding_window": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
    "gemma": ("bpe", "(1+w) norms, embedding scaled by sqrt(hidden), heads wider than hidden / heads, one key head", {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", **SIZES, "num_key_value_heads": 1, "head_dim": 32, "hidden_act": "gelu",
        "hidden_activation": None, "pad_token_id": 3, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False}),
    "phi4-mini": ("bpe", "LongRoPE over three quarters of the head, GQA, tied", {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **SIZES, "pad_token_id": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "original_max_position_embeddings": 128, "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.8], "long_factor": [1.0, 1.2, 1.6, 2.4, 4.8, 9.0]},
        "sliding_window": None, "attention_bias": False, "tie_word_embeddings": True}),
    "llama-yarn": ("bpe", "YaRN rope scaling, beyond the original length", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True}),
    "qwen3_moe": ("bpe", "top 3 of 8 experts, weights normalized, q and k normed", {
        **QWEN3_MOE, "num_experts": 8, "moe_intermediate_size": 16, "mlp_only_layers": []}),
    "qwen3_moe-dense": ("bpe", "the first layer dense, top 3 of 5 experts", {
        **QWEN3_MOE, "num_experts": 5, "moe_intermediate_size": 16, "mlp_only_layers": [0]}),
    "olmoe": ("bpe", "top 2 of 8 experts, weights not normalized; q and k normed over all heads together", {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", **SIZES, "num_key_value_heads": 4, "intermediate_size": 32, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "clip_qkv": None, "num_experts": 8, "num_experts_per_tok": 2,
        "norm_topk_prob": False, "attention_bias": False, "tie_word_embeddings": True}),
    "granite_moe": ("bpe", "experts in stacked tensors, top 2 of 6; multipliers of embedding, residual, scores and logits", {
        "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", **SIZES, "intermediate_size": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": None, "num_local_experts": 6, "num_experts_per_tok": 2, "embedding_multiplier": 6.0,
        "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_bias": False, "tie_word_embeddings": True}),
    "granite_moe_shared": ("bpe", "granite_moe with a shared expert", {
        "architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared", **SIZES, "intermediate_size": 32, "shared_intermediate_size": 48,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "num_local_experts": 6, "num_experts_per_tok": 2,
        "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_bias": False,
        "tie_word_embeddings": True}),
    "deepseek_v2": ("bpe", "latent attention without a query latent; the first layer dense, then top 3 of 8 experts and two shared", {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **DEEPSEEK, "q_lora_rank": None, "n_routed_experts": 8, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.5, "rope_scaling": None}),
    "deepseek_v2-grouped": ("bpe", "a query latent, experts chosen from 2 of 4 groups, YaRN with its temperature", {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **DEEPSEEK, "q_lora_rank": 24, "n_routed_experts": 8, "n_group": 4,
        "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": False, "routed_scaling_factor": 4.0,
        "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    "deepseek_v3": ("bpe", "sigmoid routing with corrected choice from 2 of 4 groups, weights normalized; YaRN", {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **DEEPSEEK, "q_lora_rank": 24, "n_routed_experts": 8, "n_group": 4,
        "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
        "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "lfm2-adjusted": ("bpe", "the size of the mlp computed from block_ff_dim, attention layers by index, four taps, biases", {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "hidden_size": 48, "block_ff_dim": 144, "block_auto_adjust_ff_dim": True, "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.2, "num_hidden_layers": 3, "full_attn_idxs": [1], "num_attention_heads": 3, "num_key_value_heads": 1, "conv_L_cache": 4,
        "conv_bias": True, "norm_eps": 1e-5, "rope_theta": 1000000.0, "max_position_embeddings": 256, "tie_embedding": True, "pad_token_id": 3}),
    "lfm2_moe": ("bpe", "short convolutions, a dense layer, then top 2 of 6 experts by corrected sigmoid scores", {
        "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe", "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"], "num_attention_heads": 4, "num_key_value_heads": 2, "num_dense_layers": 1, "num_experts": 6,
        "num_experts_per_tok": 2, "use_expert_bias": True, "routed_scaling_factor": 1.5, "norm_topk_prob": True, "conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5,
        "rope_theta": 1000000.0, "max_position_embeddings": 256, "tie_embedding": True, "pad_token_id": 3}),
    "falcon_mamba": ("gpt2", "mamba with norms of the step width, b and c", {
        "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "hidden_size": 64, "expand": 2, "state_size": 13, "conv_kernel": 4,
        "num_hidden_layers": 2, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "mixer_rms_eps": 1e-6, "use_bias": False, "use_conv_bias": True, "time_step_rank": 5,
        "intermediate_size": 128, "tie_word_embeddings": False, "pad_token_id": 0}),
    "mamba2": ("gpt2", "state space with one decay a head, two groups, the step width unlimited", {
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 64, "expand": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16,
        "conv_kernel": 4, "num_hidden_layers": 2, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True, "chunk_size": 32,
        "time_step_rank": 4, "time_step_limit": [0.0, float("inf")], "rms_norm": True, "residual_in_fp32": True, "tie_word_embeddings": False, "pad_token_id": 0}),
    "mamba2-limited": ("gpt2", "one group, heads of 24 channels, biases, limits of the step width that many tokens reach", {
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 48, "expand": 2, "num_heads": 4, "head_dim": 24, "n_groups": 1, "state_size": 9,
        "conv_kernel": 3, "num_hidden_layers": 2, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "use_bias": True, "use_conv_bias": False, "chunk_size": 16,
        "time_step_rank": 3, "time_step_limit": [0.5, 0.8], "rms_norm": True, "residual_in_fp32": True, "tie_word_embeddings": True, "pad_token_id": 0}),
    "gpt_oss": ("bpe", "attention sinks, windows on every second layer, stacked experts with biases and limited activations, YaRN", GPT_OSS),
    "gpt_oss-mxfp4": ("bpe", "gpt_oss with its experts in MXFP4", GPT_OSS),
    "llama-hqq-int4": ("bpe", "HQQ, 4 bits, groups of 32 along rows, zero points that are no whole numbers", LLAMA),
    "llama-ct-nvfp4": ("bpe", "compressed-tensors nvfp4-pack-quantized: FP4 in groups of 16, E4M3 scales and one of the matrix; FP4 activations at run time", LLAMA),
    "mixtral-gptq-act-order": ("bpe", "GPTQ act-order in a mixture: gate and up of an expert share an order of columns, down has its own; all experts are taken, so that none is by a tie", {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **SIZES, "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": None, "tie_word_embeddings": False}),
    "distilbert": ("wordpiece", "no token types", {
        "architectures": ["DistilBertModel"], "model_type": "distilbert", "dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128,
        "activation": "gelu", "sinusoidal_pos_embds": False, "tie_weights_": True}),
    "distilbert-classify": ("wordpiece", "three classes from the first token, relu", {
        "architectures": ["DistilBertForSequenceClassification"], "model_type": "distilbert", "dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 128, "activation": "gelu", "sinusoidal_pos_embds": False, "tie_weights_": True,
        "id2label": {"0": "negative", "1": "neutral", "2": "positive"}, "label2id": {"negative": 0, "neutral": 1, "positive": 2}}),
    "mpnet": ("wordpiece", "relative position biases, positions after the padding's", {
        "architectures": ["MPNetModel"], "model_type": "mpnet", **ENCODER, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "relative_attention_num_buckets": 32, "pad_token_id": 1}),
    "t5-relu": ("t5", "first version: a plain mlp with relu, tied and scaled logits", {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **T5, "relative_attention_max_distance": 128, "feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "mt5": ("t5", "gated gelu, tied, 16 buckets to distance 40", {
        "architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("t5", "norms after, learned positions from 2 on both sides, a bias of the logits", {
        "architectures": ["BartForConditionalGeneration"], "model_type": "bart", **BART, "scale_embedding": False, "bos_token_id": 0, "pad_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 2, "forced_bos_token_id": 0}),
    "marian": ("t5", "sinusoidal positions, a scaled embedding, a bias of the logits", {
        "architectures": ["MarianMTModel"], "model_type": "marian", **BART, "activation_function": "swish", "scale_embedding": True, "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True, "pad_token_id": 599, "eos_token_id": 0, "decoder_start_token_id": 599}),
    "nomic_bert": ("wordpiece", "rope, a gated mlp, no biases but the norms'", {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", **ENCODER, "hidden_act": "silu", "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "modernbert": ("wordpiece", "a window of 16 on two layers of three, rope with two bases, gated mlp, norms before", {
        "architectures": ["ModernBertModel"], **MODERNBERT}),
    "modernbert-classify": ("wordpiece", "two classes of the mean, through a dense layer and a norm", {
        "architectures": ["ModernBertForSequenceClassification"], **MODERNBERT, "num_hidden_layers": 2, "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}),
    "gpt_neo": ("gpt2", "every second layer sees 16 keys only; scores are not scaled", {
        "architectures": ["GPTNeoForCausalLM"], "model_type": "gpt_neo", "hidden_size": 64, "intermediate_size": None, "num_layers": 2, "num_heads": 4,
        "max_position_embeddings": 256, "window_size": 16, "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"],
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}),
    "nemotron": ("bpe", "layer norms stored less one, squared relu, half of the head rotated", {
        "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", **SIZES, "head_dim": 16, "hidden_act": "relu2", "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}),
}
OUTSIDE = ("gpt_neo", "nemotron")
SEQ2SEQ = ("t5-relu", "mt5", "bart", "marian")
ENCODERS = ("distilbert", "distilbert-classify", "mpnet", "nomic_bert", "modernbert", "modernbert-classify")


def draw(name, tensor, generator, torch):
    """Numbers that make every part of the network matter: logits of a size of one or two, norms near one, biases that show."""
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith((".D", "A_log", "dt_bias")):
        return (1 if name.endswith(".D") else 0) + 0.5 * noise
    if tensor.dim() == 1 or "norm" in name:
        return (1 if name.endswith("weight") else 0) + 0.1 * noise
    if "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
        return 0.2 * noise
    return 1.2 * noise / tensor.shape[-1] ** 0.5


FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def to_mxfp4(numbers, torch):
    """Blocks and scales of numbers [..., k] as the OCP MX specification has them, and what they stand for. Any rounding would do for a test."""
    groups = numbers.float().reshape(*numbers.shape[:-1], -1, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1).clamp(min=2.0 ** -100))) - 2
    scaled = groups / torch.exp2(exponent)[..., None]
    values = torch.tensor(FP4)
    code = (scaled.abs()[..., None] - values).abs().argmin(-1)
    meant = (values[code] * torch.where(scaled < 0, -1.0, 1.0) * torch.exp2(exponent)[..., None]).reshape(numbers.shape)
    code = code + 8 * (scaled < 0)
    return (code[..., ::2] + 16 * code[..., 1::2]).to(torch.uint8), (exponent + 127).to(torch.uint8), meant


def store_experts_as_mxfp4(directory, torch):
    """Rewrites model.safetensors and config.json as published gpt-oss checkpoints have them."""
    from safetensors.torch import load_file, save_file
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name + "_blocks"], tensors[name + "_scales"], meant = to_mxfp4(tensor.transpose(1, 2).contiguous(), torch)
            assert torch.equal(meant.transpose(1, 2), tensor.float()), name
        else:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# Quantized matrices [rows, k]: codes are drawn, and scales such that the numbers are as large as those of draw(). Each gives the tensors of the
# module, by the ends of their names, and the numbers they mean. The layouts are those that make_encoding_golden.py checks with their libraries.

def as_hqq(shape, _, generator, torch):
    rows, k = shape
    groups, size = rows * k // 32, 32
    codes = torch.randint(0, 16, (groups, size), generator=generator)
    scale = ((0.5 + torch.rand((groups, 1), generator=generator)) * 0.25 / k ** 0.5).half()
    zero = (6 + 3 * torch.rand((groups, 1), generator=generator)).half()
    text = {"packing": "4bit_u8", "unpack_view_dtype": "torch.uint8", "compute_dtype": "torch.float16"}
    flags = {"view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "offload_meta": 0, "encoded_state_dict": 1, "stores_quant_config": 1, "channel_wise": 1, "optimize": 1, "round_zero": 0}
    tensors = {"W_q": (codes[:groups // 2] << 4 | codes[groups // 2:]).to(torch.uint8), "scale": scale, "zero": zero, "shape": torch.tensor([rows, k])}
    tensors |= {key: torch.tensor(value, dtype=torch.int32) for key, value in {"nbits": 4, "group_size": size, "axis": 1}.items()}
    tensors |= {key: torch.tensor([ord(c) for c in value], dtype=torch.uint8) for key, value in text.items()}
    tensors |= {key: torch.tensor(value, dtype=torch.uint8) for key, value in flags.items()}
    return tensors, ((codes - zero.float()) * scale.float()).reshape(rows, k)


def as_nvfp4(shape, _, generator, torch):
    rows, k = shape
    codes = torch.randint(0, 16, shape, generator=generator)
    scale = (50 + 300 * torch.rand((rows, k // 16), generator=generator)).to(torch.float8_e4m3fn)
    divisor = torch.tensor([700 * k ** 0.5])
    numbers = torch.tensor(FP4 + [-number for number in FP4])[codes]
    tensors = {"weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), "weight_scale": scale, "weight_global_scale": divisor, "input_global_scale": torch.tensor([30.0])}
    return tensors, numbers * (scale.float() / divisor).repeat_interleave(16, dim=1)


def as_gptq_act_order(shape, name, generator, torch):
    rows, k = shape
    own = torch.Generator().manual_seed(zlib.crc32(name.replace(".w3", ".w1").encode()))  # gate and up have one input, and so one order
    group_of = (torch.arange(k) // 32)[torch.randperm(k, generator=own)]
    codes = torch.randint(0, 16, (k, rows), generator=generator)
    scales = ((0.5 + torch.rand((k // 32, rows), generator=generator)) * 0.25 / k ** 0.5).half()

    def packed(fields):  # eight a word along the first dimension, low bits first
        words = sum(fields[i::8].long() << (4 * i) for i in range(8))
        return torch.where(words >= 2 ** 31, words - 2 ** 32, words).int()

    zeros = torch.full((rows, k // 32), 7)  # one less than the zero point
    tensors = {"qweight": packed(codes), "qzeros": packed(zeros).t().contiguous(), "scales": scales, "g_idx": group_of.int()}
    return tensors, (scales.float()[group_of] * (codes - 8)).t().contiguous()


FP4_ARGS = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
# name: how its matrices are stored, and quantization_config.
QUANTIZED = {
    "llama-hqq-int4": (as_hqq, {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": {
        "weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1, "channel_wise": True, "optimize": True, "round_zero": False, "view_as_float": False},
        "scale_quant_params": None, "zero_quant_params": None, "offload_meta": False}}),
    "llama-ct-nvfp4": (as_nvfp4, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
                                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": FP4_ARGS, "input_activations": {**FP4_ARGS, "dynamic": "local"}, "output_activations": None,
                                                                "format": "nvfp4-pack-quantized"}}}),
    "mixtral-gptq-act-order": (as_gptq_act_order, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": True, "true_sequential": True, "lm_head": False}),
}


def quantize(directory, name, generator, torch):
    """Gives matrices the numbers that their quantized form means, in model.safetensors, and returns a function that rewrites it in that form."""
    from safetensors.torch import load_file, save_file
    store, quantization_config = QUANTIZED[name]
    plain, stored = load_file(directory / "model.safetensors"), {}
    for tensor_name in sorted(plain):
        tensor, module = plain[tensor_name], tensor_name.removesuffix(".weight")
        if tensor.dim() != 2 or "embed" in tensor_name or "lm_head" in tensor_name or module.endswith(("block_sparse_moe.gate", "mlp.gate")):
            stored[tensor_name] = tensor
            continue
        parts, plain[tensor_name] = store(tensor.shape, module, generator, torch)
        stored |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(plain, directory / "model.safetensors", {"format": "pt"})

    def rewrite():
        save_file(stored, directory / "model.safetensors", {"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = quantization_config
        (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return rewrite


def make(name, out):
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    tokenizer, note, fields = MODELS[name]
    source, vocab_size, ids = TOKENIZERS[tokenizer]
    directory = out / name
    directory.mkdir(parents=True, exist_ok=True)
    config = {**ids, **fields, "vocab_size": vocab_size, "torch_dtype": "bfloat16", "use_cache": True}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "models" / source / file, directory / file)

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    loader = {"encoder": AutoModel, "classify": AutoModelForSequenceClassification, "seq2seq": AutoModelForSeq2SeqLM}.get(make_reference.encoder_kind(str(directory)), AutoModelForCausalLM)
    model = loader.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "Sinusoidal" in type(model.get_submodule(parameter_name.rpartition(".")[0])).__name__:
                continue
            parameter.copy_(draw(parameter_name, parameter, generator, torch))
            if "d_kv" in fields and parameter_name.endswith("Attention.q.weight"):
                parameter.mul_(fields["d_kv"] ** -0.5)  # scores are not scaled: T5's weights begin so
            if name == "t5-relu" and parameter_name == "shared.weight":  # also the head, of logits that are divided by the root of the width
                parameter.mul_(5)
            kind = type(model.get_submodule(parameter_name.rpartition(".")[0])).__name__
            if kind in ("NemotronLayerNorm1P", "GemmaRMSNorm") and parameter_name.endswith("weight"):
                parameter.sub_(1)  # stored as a difference from one
            if name == "gpt_oss-mxfp4" and parameter_name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                parameter.copy_(to_mxfp4(parameter.transpose(1, 2), torch)[2].transpose(1, 2))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            if buffer_name.endswith("final_logits_bias"):
                buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator))
    saved = directory / "saved"
    model.to(torch.float32 if name in QUANTIZED else torch.bfloat16).save_pretrained(saved)
    shutil.move(saved / "model.safetensors", directory / "model.safetensors")
    shutil.rmtree(saved)
    store_quantized = quantize(directory, name, generator, torch) if name in QUANTIZED else None

    choose = random.Random(zlib.crc32(name.encode()))
    prompts = [(f"len{n}", None, [choose.randrange(vocab_size) for _ in range(n)]) for n in make_reference.RANDOM_LENGTHS]
    make_reference.write_reference(str(directory), prompts, str(directory / "golden.json"), {"note": note})
    if name == "gpt_oss-mxfp4":
        store_experts_as_mxfp4(directory, torch)
    if store_quantized:
        store_quantized()
        golden = json.loads((directory / "golden.json").read_text())
        text = (directory / "golden.json").read_text().replace(json.dumps(golden["weights_dtype"]), json.dumps("quantized; the rest float32"), 1)
        (directory / "golden.json").write_text(text)
    print(f"{directory}: {sum(f.stat().st_size for f in directory.iterdir()) // 1024} KiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names and notes, and nothing else")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to")
    options = parser.parse_args()
    if options.list:
        for name, (_, note, _) in MODELS.items():
            print(f"{name}: {note}")
        return
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        sys.exit(f"error: unknown model {', '.join(unknown)}; known are {', '.join(MODELS)}")
    for name in options.names or MODELS:
        make(name, options.out or GOLDEN / ("outside" if name in OUTSIDE else "encoders" if name in ENCODERS else "seq2seq" if name in SEQ2SEQ else "models"))


if __name__ == "__main__":
    main()

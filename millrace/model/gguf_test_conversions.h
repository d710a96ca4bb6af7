#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/formats/checkpoint.h"
#include "millrace/model/gguf_test_writer.h"
#include "millrace/model/network.h"
#include "millrace/tensor/dequantize.h"

// GGUF files as llama.cpp's converter makes them from our golden models: other names, other metadata, some tensors rearranged. For tests.
namespace millrace::gguf_test {

// What the converter does to rows: new row -> old row.
using RowOrder = std::function<int64_t(int64_t row, int64_t rows)>;

inline Tensor with_rows(const Tensor& tensor, const RowOrder& order) {
  Tensor result = tensor;
  const int64_t rows = tensor.shape[0], width = static_cast<int64_t>(tensor.data.size()) / rows;
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(tensor.data.begin() + order(row, rows) * width, width, result.data.begin() + row * width);
  }
  return result;
}

inline Tensor transposed(const Tensor& tensor) {
  Tensor result{{tensor.shape[1], tensor.shape[0]}, std::vector<float>(tensor.data.size())};
  for (int64_t i = 0; i < tensor.shape[0]; ++i) {
    for (int64_t j = 0; j < tensor.shape[1]; ++j) result.data[j * tensor.shape[0] + i] = tensor.data[i * tensor.shape[1] + j];
  }
  return result;
}

// Rows (head, half, pair) become (head, pair, half), heads of 16.
inline int64_t llama_permutation(int64_t row, int64_t) { return row / 16 * 16 + row % 2 * 8 + row % 16 / 2; }

// Rows (head, q|k|v, dim) become (q|k|v, head, dim), 4 heads of 16.
inline int64_t bloom_permutation(int64_t row, int64_t) { return row % 64 / 16 * 48 + row / 64 * 16 + row % 16; }

struct Conversion {
  std::string_view golden, architecture;
  std::map<std::string_view, std::string_view> names;  // ends of Hugging Face names -> GGUF's; layers' are put under blk.N
  std::function<Tensor(std::string_view gguf_name, const Tensor&)> change;
  std::function<void(Writer&, const std::string& prefix)> metadata;
  bool stacks = true;        // tensors of one expert or head become one of all
  int64_t latent_heads = 0;  // if any: DeepSeek's kv_b is split into k_b, transposed, and v_b, stacks of so many heads with keys of 8
};

inline const std::map<std::string_view, std::string_view> kLlamaNames = {
    {"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"},       {"lm_head", "output"},
    {"input_layernorm", "attn_norm"},     {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},       {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},  {"self_attn.qkv_proj", "attn_qkv"},  {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},        {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"},
    {"mlp.gate_up_proj", "ffn_up"}};

inline std::map<std::string_view, std::string_view> gemma_names() {
  auto names = kLlamaNames;
  names["post_attention_layernorm"] = "post_attention_norm";
  names["pre_feedforward_layernorm"] = "ffn_norm";
  names["post_feedforward_layernorm"] = "post_ffw_norm";
  return names;
}

inline const std::map<std::string_view, std::string_view> kTransformerNames = {{"transformer.wte", "token_embd"},
                                                                               {"transformer.wpe", "position_embd"},
                                                                               {"transformer.ln_f", "output_norm"},
                                                                               {"ln_1", "attn_norm"},
                                                                               {"ln_2", "ffn_norm"},
                                                                               {"attn.c_attn", "attn_qkv"},
                                                                               {"attn.c_proj", "attn_output"},
                                                                               {"mlp.c_fc", "ffn_up"},
                                                                               {"mlp.c_proj", "ffn_down"},
                                                                               {"transformer.word_embeddings", "token_embd"},
                                                                               {"transformer.word_embeddings_layernorm", "token_embd_norm"},
                                                                               {"input_layernorm", "attn_norm"},
                                                                               {"post_attention_layernorm", "ffn_norm"},
                                                                               {"self_attention.query_key_value", "attn_qkv"},
                                                                               {"self_attention.dense", "attn_output"},
                                                                               {"mlp.dense_h_to_4h", "ffn_up"},
                                                                               {"mlp.dense_4h_to_h", "ffn_down"}};

inline const std::map<std::string_view, std::string_view> kPhiNames = {{"model.embed_tokens", "token_embd"},
                                                                       {"model.final_layernorm", "output_norm"},
                                                                       {"lm_head", "output"},
                                                                       {"input_layernorm", "attn_norm"},
                                                                       {"self_attn.q_proj", "attn_q"},
                                                                       {"self_attn.k_proj", "attn_k"},
                                                                       {"self_attn.v_proj", "attn_v"},
                                                                       {"self_attn.dense", "attn_output"},
                                                                       {"mlp.fc1", "ffn_up"},
                                                                       {"mlp.fc2", "ffn_down"}};

inline std::map<std::string_view, std::string_view> with(std::map<std::string_view, std::string_view> names,
                                                         const std::map<std::string_view, std::string_view>& more) {
  for (const auto& [name, gguf] : more) names[name] = gguf;
  return names;
}

inline const std::map<std::string_view, std::string_view> kNeoxNames = {{"gpt_neox.embed_in", "token_embd"},
                                                                        {"gpt_neox.final_layer_norm", "output_norm"},
                                                                        {"embed_out", "output"},
                                                                        {"lm_head", "output"},
                                                                        {"input_layernorm", "attn_norm"},
                                                                        {"attention.query_key_value", "attn_qkv"},
                                                                        {"attention.dense", "attn_output"},
                                                                        {"post_attention_layernorm", "ffn_norm"},
                                                                        {"mlp.dense_h_to_4h", "ffn_up"},
                                                                        {"mlp.dense_4h_to_h", "ffn_down"}};

inline const std::map<std::string_view, std::string_view> kMptNames = {
    {"transformer.wte", "token_embd"}, {"transformer.norm_f", "output_norm"}, {"norm_1", "attn_norm"},   {"norm_2", "ffn_norm"},
    {"attn.Wqkv", "attn_qkv"},         {"attn.out_proj", "attn_output"},      {"ffn.up_proj", "ffn_up"}, {"ffn.down_proj", "ffn_down"}};

// Experts' tensors are stacked first: "mlp.experts.gate_proj" of all of a layer's.
inline const std::map<std::string_view, std::string_view> kExpertNames = {{"mlp.gate", "ffn_gate_inp"},
                                                                          {"block_sparse_moe.gate", "ffn_gate_inp"},
                                                                          {"block_sparse_moe.experts.w1", "ffn_gate_exps"},
                                                                          {"block_sparse_moe.experts.w3", "ffn_up_exps"},
                                                                          {"block_sparse_moe.experts.w2", "ffn_down_exps"},
                                                                          {"mlp.experts.gate_proj", "ffn_gate_exps"},
                                                                          {"mlp.experts.up_proj", "ffn_up_exps"},
                                                                          {"mlp.experts.down_proj", "ffn_down_exps"},
                                                                          {"mlp.shared_expert.gate_proj", "ffn_gate_shexp"},
                                                                          {"mlp.shared_expert.up_proj", "ffn_up_shexp"},
                                                                          {"mlp.shared_expert.down_proj", "ffn_down_shexp"},
                                                                          {"mlp.shared_expert_gate", "ffn_gate_inp_shexp"},
                                                                          {"block_sparse_moe.router.layer", "ffn_gate_inp"},
                                                                          {"block_sparse_moe.gate_linear", "ffn_gate_exps"},
                                                                          {"block_sparse_moe.up_linear", "ffn_up_exps"},
                                                                          {"block_sparse_moe.output_linear", "ffn_down_exps"},
                                                                          {"shared_mlp.gate_linear", "ffn_gate_shexp"},
                                                                          {"shared_mlp.up_linear", "ffn_up_shexp"},
                                                                          {"shared_mlp.output_linear", "ffn_down_shexp"}};

inline std::map<std::string_view, std::string_view> deepseek_names() {
  return with(with(kLlamaNames, kExpertNames), {{"self_attn.q_a_proj", "attn_q_a"},
                                                {"self_attn.q_a_layernorm", "attn_q_a_norm"},
                                                {"self_attn.q_b_proj", "attn_q_b"},
                                                {"self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"},
                                                {"self_attn.kv_a_layernorm", "attn_kv_a_norm"},
                                                {"self_attn.kv_b_proj", "attn_kv_b"},
                                                {"self_attn.k_b_proj", "attn_k_b"},
                                                {"self_attn.v_b_proj", "attn_v_b"},
                                                {"mlp.gate.e_score_correction_bias", "exp_probs_b"},
                                                {"mlp.shared_experts.gate_proj", "ffn_gate_shexp"},
                                                {"mlp.shared_experts.up_proj", "ffn_up_shexp"},
                                                {"mlp.shared_experts.down_proj", "ffn_down_shexp"}});
}

inline const std::map<std::string_view, std::string_view> kBertNames = {{"embeddings.word_embeddings", "token_embd"},
                                                                        {"embeddings.token_type_embeddings", "token_types"},
                                                                        {"embeddings.position_embeddings", "position_embd"},
                                                                        {"embeddings.LayerNorm", "token_embd_norm"},
                                                                        {"emb_ln", "token_embd_norm"},
                                                                        {"attention.self.query", "attn_q"},
                                                                        {"attention.self.key", "attn_k"},
                                                                        {"attention.self.value", "attn_v"},
                                                                        {"attention.output.dense", "attn_output"},
                                                                        {"attention.output.LayerNorm", "attn_output_norm"},
                                                                        {"intermediate.dense", "ffn_up"},
                                                                        {"output.dense", "ffn_down"},
                                                                        {"output.LayerNorm", "layer_output_norm"},
                                                                        {"attn.Wqkv", "attn_qkv"},
                                                                        {"attn.out_proj", "attn_output"},
                                                                        {"norm1", "attn_output_norm"},
                                                                        {"norm2", "layer_output_norm"},
                                                                        {"mlp.fc11", "ffn_up"},
                                                                        {"mlp.fc12", "ffn_gate"},
                                                                        {"mlp.fc2", "ffn_down"}};

inline Tensor unchanged(std::string_view, const Tensor& tensor) { return tensor; }

inline Tensor gemma_change(std::string_view name, const Tensor& tensor) {
  Tensor result = tensor;
  if (name.ends_with("norm.weight")) {
    for (float& number : result.data) number += 1;
  }
  return result;
}

inline void rms(Writer& gguf, const std::string& prefix, float eps, float theta, uint32_t head_dim, uint32_t kv_heads) {
  gguf.integer(prefix + "attention.head_count_kv", kv_heads);
  gguf.real(prefix + "attention.layer_norm_rms_epsilon", eps);
  gguf.real(prefix + "rope.freq_base", theta);
  gguf.integer(prefix + "attention.key_length", head_dim);
  gguf.integer(prefix + "attention.value_length", head_dim);
}

// What the converter does to llama and to those that share its class.
inline Tensor llama_change(std::string_view name, const Tensor& tensor) {
  const bool permuted = name.find("attn_q.") != name.npos || name.find("attn_k.") != name.npos;
  return permuted ? with_rows(tensor, llama_permutation) : tensor;
}

inline std::map<std::string_view, std::string_view> olmo2_names() {
  return with(kLlamaNames, {{"post_attention_layernorm", "post_attention_norm"}, {"post_feedforward_layernorm", "post_ffw_norm"}});
}

inline void stablelm_metadata(Writer& gguf, const std::string& prefix) {
  gguf.integer(prefix + "attention.head_count_kv", 2);
  gguf.integer(prefix + "rope.dimension_count", 4);
  gguf.boolean(prefix + "use_parallel_residual", true);  // the converter says so of those that are not, too
  gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
}

inline void experts(Writer& gguf, const std::string& prefix, uint32_t count, uint32_t per_token) {
  gguf.integer(prefix + "expert_count", count);
  gguf.integer(prefix + "expert_used_count", per_token);
}

inline void deepseek_metadata(Writer& gguf, const std::string& prefix, bool old, uint32_t gating = 1) {
  gguf.real(prefix + "attention.layer_norm_rms_epsilon", 1e-6f);
  gguf.real(prefix + "rope.freq_base", 10000);
  // Files of today speak of the small vector, as if it were one key of all heads; those of before of the heads.
  gguf.integer(prefix + "attention.head_count_kv", old ? 4 : 1);
  gguf.integer(prefix + "attention.key_length", old ? 16 : 32 + 8);
  gguf.integer(prefix + "attention.value_length", old ? 12 : 32);
  gguf.integer(prefix + "attention.kv_lora_rank", 32);
  if (!old) {
    gguf.integer(prefix + "attention.key_length_mla", 16);
    gguf.integer(prefix + "attention.value_length_mla", 12);
  }
  gguf.integer(prefix + "rope.dimension_count", 8);
  gguf.integer(prefix + "leading_dense_block_count", 1);
  gguf.integer(prefix + "expert_feed_forward_length", 16);
  gguf.integer(prefix + "expert_shared_count", 2);
  gguf.integer(prefix + "expert_gating_func", gating);
  experts(gguf, prefix, 8, 3);
}

inline void granite_moe_metadata(Writer& gguf, const std::string& prefix) {
  rms(gguf, prefix, 1e-6f, 10000, 16, 2);
  experts(gguf, prefix, 6, 2);
  gguf.real(prefix + "attention.scale", 0.2f);
  gguf.real(prefix + "embedding_scale", 6);
  gguf.real(prefix + "residual_scale", 0.5f);
  gguf.real(prefix + "logit_scale", 2);
}

inline const Conversion kConversions[] = {
    {"llama", "llama", kLlamaNames, llama_change,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 500000, 16, 2);
       // The converter computes llama3's scaling: factors that divide the frequencies.
       Tensor factors{{8}, {}};
       for (int i = 0; i < 8; ++i) {
         const float wave = 2 * std::acos(-1.0f) / std::pow(500000.0f, -2.0f * static_cast<float>(i) / 16);
         const float smooth = (32 / wave - 1) / 3;
         factors.data.push_back(wave < 8 ? 1 : wave > 32 ? 8 : 1 / ((1 - smooth) / 8 + smooth));
       }
       gguf.tensor("rope_freqs.weight", factors);
     }},
    {"qwen2", "qwen2", kLlamaNames, unchanged, [](Writer& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 1e6f, 16, 2); }},
    {"qwen3", "qwen3", kLlamaNames, unchanged, [](Writer& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 1e6f, 32, 2); }},
    {"gemma2", "gemma2", gemma_names(), gemma_change,
     [](Writer& gguf, const std::string& prefix) {
       // The converter drops query_pre_attn_scalar: every published size has head_dim there, or hidden_size / num_heads in the largest.
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       gguf.real(prefix + "attn_logit_softcapping", 6);
       gguf.real(prefix + "final_logit_softcapping", 10);
       gguf.integer(prefix + "attention.sliding_window", 16);
     }},
    {"phi3", "phi3", kLlamaNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 2);
       gguf.integer(prefix + "rope.dimension_count", 16);
       gguf.integer(prefix + "rope.scaling.original_context_length", 256);
     }},
    {"gpt2", "gpt2", kTransformerNames,
     [](std::string_view name, const Tensor& tensor) {
       return name.starts_with("blk.") && tensor.shape.size() == 2 ? transposed(tensor) : tensor;
     },
     [](Writer& gguf, const std::string& prefix) { gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f); }},
    {"falcon", "falcon", kTransformerNames, unchanged,  // of one kv head: its groups are concatenated already
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 1);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"bloom", "bloom", kTransformerNames,
     [](std::string_view name, const Tensor& tensor) {
       return name.find("attn_qkv") != name.npos ? with_rows(tensor, bloom_permutation) : tensor;
     },
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"granite", "granite", kLlamaNames, llama_change,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       gguf.real(prefix + "attention.scale", 0.2f);
       gguf.real(prefix + "embedding_scale", 6);
       gguf.real(prefix + "residual_scale", 0.5f);
       gguf.real(prefix + "logit_scale", 4);
     }},
    {"gpt_neox", "gptneox", kNeoxNames,
     [](std::string_view name, const Tensor& tensor) {
       return name.find("attn_qkv") != name.npos ? with_rows(tensor, bloom_permutation) : tensor;
     },
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "rope.dimension_count", 4);
       gguf.boolean(prefix + "use_parallel_residual", true);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"mpt", "mpt", kMptNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.real(prefix + "attention.clamp_kqv", 1);
       gguf.real(prefix + "attention.max_alibi_bias", 8);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"starcoder2", "starcoder2", with(kLlamaNames, {{"mlp.c_fc", "ffn_up"}, {"mlp.c_proj", "ffn_down"}}), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.real(prefix + "rope.freq_base", 100000);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"stablelm", "stablelm", kLlamaNames, unchanged, stablelm_metadata},
    {"stablelm-parallel", "stablelm",
     with(kLlamaNames, {{"self_attn.q_layernorm.norms", "attn_q_norm"}, {"self_attn.k_layernorm.norms", "attn_k_norm"}}), unchanged,
     stablelm_metadata},
    {"olmo", "olmo", kLlamaNames, llama_change,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.real(prefix + "attention.clamp_kqv", 0.8f);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"olmo2", "olmo2", olmo2_names(), unchanged, [](Writer& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 500000, 16, 2); }},
    {"olmo3", "olmo2", olmo2_names(), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 500000, 16, 2);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.booleans(prefix + "attention.sliding_window_pattern", {true, true, true, false});
       gguf.text(prefix + "rope.scaling.type", "yarn");
       gguf.real(prefix + "rope.scaling.factor", 4);
       gguf.integer(prefix + "rope.scaling.original_context_length", 64);
     }},
    {"cohere", "command-r", kLlamaNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
       gguf.real(prefix + "rope.freq_base", 10000);
       gguf.text(prefix + "rope.scaling.type", "none");
       gguf.real(prefix + "logit_scale", 0.5f);
     }},
    {"cohere2", "cohere2", kLlamaNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
       gguf.real(prefix + "rope.freq_base", 50000);
       gguf.integer(prefix + "rope.dimension_count", 16);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.real(prefix + "logit_scale", 0.5f);
     }},
    {"glm4", "glm4", with(kLlamaNames, {{"post_self_attn_layernorm", "post_attention_norm"}, {"post_mlp_layernorm", "post_ffw_norm"}}),
     unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 2);
       gguf.integer(prefix + "rope.dimension_count", 8);
     }},
    {"smollm3", "smollm3", kLlamaNames, llama_change,
     [](Writer& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 50000, 16, 2); }},
    {"gemma", "gemma", kLlamaNames, gemma_change, [](Writer& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 10000, 32, 1); }},
    {"qwen2_moe", "qwen2moe", with(kLlamaNames, kExpertNames), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       experts(gguf, prefix, 6, 2);
       gguf.integer(prefix + "expert_feed_forward_length", 48);
       gguf.integer(prefix + "expert_shared_feed_forward_length", 80);
     }},
    {"qwen3_moe", "qwen3moe", with(kLlamaNames, kExpertNames), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 1e6f, 16, 2);
       experts(gguf, prefix, 8, 3);
       gguf.integer(prefix + "expert_feed_forward_length", 16);
     }},
    {"mixtral", "llama", with(kLlamaNames, kExpertNames), llama_change,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 1e6f, 16, 2);
       experts(gguf, prefix, 4, 2);
     }},
    {"olmoe", "olmoe", with(kLlamaNames, kExpertNames), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 4);
       experts(gguf, prefix, 8, 2);
     }},
    {"granite_moe", "granitemoe", with(kLlamaNames, kExpertNames), llama_change, granite_moe_metadata},
    {"granite_moe_shared", "granitemoe", with(kLlamaNames, kExpertNames), llama_change,
     [](Writer& gguf, const std::string& prefix) {
       granite_moe_metadata(gguf, prefix);
       gguf.integer(prefix + "expert_shared_feed_forward_length", 48);
     }},
    {"gpt_oss", "gpt-oss",
     with(with(kLlamaNames, kExpertNames),
          {{"self_attn.sinks", "attn_sinks"}, {"mlp.router", "ffn_gate_inp"}, {"post_attention_layernorm", "post_attention_norm"}}),
     unchanged,
     [](Writer& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 150000, 16, 2);
       experts(gguf, prefix, 4, 2);
       gguf.integer(prefix + "expert_feed_forward_length", 32);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.text(prefix + "rope.scaling.type", "yarn");
       gguf.real(prefix + "rope.scaling.factor", 8);
       gguf.integer(prefix + "rope.scaling.original_context_length", 32);
     }},
    {"deepseek_v2", "deepseek2", deepseek_names(), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       deepseek_metadata(gguf, prefix, true);
       gguf.real(prefix + "expert_weights_scale", 1.5f);
     }},
    {"deepseek_v2-grouped", "deepseek2", deepseek_names(), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       deepseek_metadata(gguf, prefix, false);
       gguf.real(prefix + "expert_weights_scale", 4);
       gguf.integer(prefix + "expert_group_count", 4);
       gguf.integer(prefix + "expert_group_used_count", 2);
       gguf.integer(prefix + "attention.q_lora_rank", 24);
       gguf.text(prefix + "rope.scaling.type", "yarn");
       gguf.real(prefix + "rope.scaling.factor", 8);
       gguf.integer(prefix + "rope.scaling.original_context_length", 32);
       gguf.real(prefix + "rope.scaling.yarn_log_multiplier", 0.1f);  // the converter writes a tenth of mscale_all_dim here
     },
     true, 4},
    {"deepseek_v3", "deepseek2", deepseek_names(), unchanged,
     [](Writer& gguf, const std::string& prefix) {
       deepseek_metadata(gguf, prefix, false, 2);
       gguf.boolean(prefix + "expert_weights_norm", true);
       gguf.real(prefix + "expert_weights_scale", 2.5f);
       gguf.integer(prefix + "expert_group_count", 4);
       gguf.integer(prefix + "expert_group_used_count", 2);
       gguf.integer(prefix + "attention.q_lora_rank", 24);
       gguf.text(prefix + "rope.scaling.type", "yarn");
       gguf.real(prefix + "rope.scaling.factor", 8);
       gguf.integer(prefix + "rope.scaling.original_context_length", 32);
       gguf.real(prefix + "rope.scaling.yarn_log_multiplier", 0.1f);
     },
     true, 4},
    {"phi", "phi2", kPhiNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.integer(prefix + "rope.dimension_count", 8);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"gpt_bigcode", "starcoder", kTransformerNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 1);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
};

inline void encoder_metadata(Writer& gguf, const std::string& prefix, uint32_t pooling_type) {
  gguf.real(prefix + "attention.layer_norm_epsilon", 1e-12f);
  gguf.boolean(prefix + "attention.causal", false);
  gguf.integer(prefix + "pooling_type", pooling_type);
}

// Of tests/golden/encoders.
inline const Conversion kEncoderConversions[] = {
    {"bert", "bert", kBertNames, unchanged, [](Writer& gguf, const std::string& prefix) { encoder_metadata(gguf, prefix, 1); }},
    {"nomic_bert", "nomic-bert", kBertNames, unchanged,
     [](Writer& gguf, const std::string& prefix) {
       encoder_metadata(gguf, prefix, 1);
       gguf.real(prefix + "rope.freq_base", 1000);
     }},
};

inline std::string gguf_name(const Conversion& conversion, std::string_view name) {
  const std::size_t dot = name.rfind('.');
  const std::string_view stem = name.substr(0, dot), suffix = name.substr(dot);
  if (const auto whole = conversion.names.find(stem); whole != conversion.names.end()) return fmt::format("{}{}", whole->second, suffix);
  for (std::string_view before :
       {"model.layers.", "transformer.h.", "transformer.blocks.", "gpt_neox.layers.", "encoder.layer.", "encoder.layers."}) {
    if (!stem.starts_with(before)) continue;
    const std::size_t end = stem.find('.', before.size());
    return fmt::format("blk.{}.{}{}", stem.substr(before.size(), end - before.size()), conversion.names.at(stem.substr(end + 1)), suffix);
  }
  ADD_FAILURE() << "no GGUF name for " << name;
  return "";
}

// Stacks stored as [experts, columns, rows] as [experts, rows, columns], of those the rows `first`, `first` + `step` ...
inline Tensor turned(const Tensor& stack, int64_t first, int64_t step) {
  const int64_t count = stack.shape[0], k = stack.shape[1], all = stack.shape[2];
  Tensor plain{{count, all / step, k}, {}};
  for (int64_t e = 0; e < count; ++e) {
    for (int64_t row = first; row < all; row += step) {
      for (int64_t i = 0; i < k; ++i) plain.data.push_back(stack.data[static_cast<std::size_t>((e * k + i) * all + row)]);
    }
  }
  return plain;
}
inline Tensor every_second(const Tensor& rows, std::size_t first) {
  Tensor plain{{rows.shape[0], rows.shape[1] / 2}, {}};
  for (std::size_t i = first; i < rows.data.size(); i += 2) plain.data.push_back(rows.data[i]);
  return plain;
}

// gpt-oss: experts in stacks whose matrices are transposed, gate and up in alternate columns; biases and sinks without a dot in their
// names.
inline bool convert_gpt_oss(const std::string& name, const Tensor& plain, std::map<std::string, Tensor>& converted) {
  const auto place = [&](std::string_view old, std::string_view now) {
    return name.substr(0, name.size() - old.size()) + std::string(now);
  };
  if (name.ends_with("self_attn.sinks")) {
    converted[name + ".weight"] = plain;
  } else if (name.ends_with("experts.gate_up_proj")) {
    converted[place("gate_up_proj", "gate_proj.weight")] = turned(plain, 0, 2);
    converted[place("gate_up_proj", "up_proj.weight")] = turned(plain, 1, 2);
  } else if (name.ends_with("experts.gate_up_proj_bias")) {
    converted[place("gate_up_proj_bias", "gate_proj.bias")] = every_second(plain, 0);
    converted[place("gate_up_proj_bias", "up_proj.bias")] = every_second(plain, 1);
  } else if (name.ends_with("experts.down_proj")) {
    converted[name + ".weight"] = turned(plain, 0, 1);
  } else if (name.ends_with("experts.down_proj_bias")) {
    converted[place("down_proj_bias", "down_proj.bias")] = plain;
  } else {
    return false;
  }
  return true;
}

// Rows (head, key of 8 | value) become a stack of the heads' values, and one of their keys, transposed.
inline bool split_kv_b(const std::string& name, const Tensor& plain, int64_t heads, std::map<std::string, Tensor>& converted) {
  constexpr std::string_view kWhole = "kv_b_proj.weight";
  constexpr int64_t kKeys = 8;
  if (!name.ends_with(kWhole)) return false;
  const int64_t rank = plain.shape[1], each = plain.shape[0] / heads;
  const std::string before = name.substr(0, name.size() - kWhole.size());
  Tensor keys{{heads, kKeys, rank}, {}}, values{{heads, each - kKeys, rank}, {}};
  for (int64_t row = 0; row < plain.shape[0]; ++row) {
    Tensor& part = row % each < kKeys ? keys : values;
    part.data.insert(part.data.end(), plain.data.begin() + row * rank, plain.data.begin() + (row + 1) * rank);
  }
  converted[before + "k_b_proj.weight"] = turned(keys, 0, 1);
  converted[before + "v_b_proj.weight"] = values;
  return true;
}

inline Tensor numbers_of(const SourceTensor& tensor) {
  Tensor plain{tensor.shape, {}};
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  plain.data.resize(static_cast<std::size_t>(count));
  dequantize_row(tensor.dtype, tensor.data.data(), count, plain.data.data());
  return plain;
}

// "a.experts.3.b" is number 3 of "a.experts.b"; std::regex would not compile with g++ 12's sanitizers and warnings.
struct Numbered {
  std::string before, after;
  int64_t number = 0;
};
inline std::optional<Numbered> numbered(const std::string& name) {
  for (const std::string_view list : {".experts.", ".norms."}) {
    const std::size_t at = name.rfind(list), digits = at + list.size();
    if (at == std::string::npos) continue;
    const std::size_t end = std::min(name.find_first_not_of("0123456789", digits), name.size());
    if (end > digits) return Numbered{name.substr(0, digits - 1), name.substr(end), std::stoll(name.substr(digits, end - digits))};
  }
  return std::nullopt;
}

// What converters do to all families: what there is one tensor of for each expert or head is stacked, and experts' fused gate and up are
// split.
inline std::map<std::string, Tensor> as_converted(const Checkpoint& directory, const Conversion& conversion) {
  const bool stacks = conversion.stacks;
  std::map<std::string, Tensor> converted;
  for (const SourceTensor& tensor : directory.tensors()) {
    constexpr std::string_view kFused = "input_linear";
    const std::size_t fused = tensor.name.find(kFused);
    const auto part_of = numbered(tensor.name);
    const Tensor plain = numbers_of(tensor);
    if (tensor.name.starts_with("pooler.") || convert_gpt_oss(tensor.name, plain, converted)) continue;
    if (conversion.latent_heads > 0 && split_kv_b(tensor.name, plain, conversion.latent_heads, converted)) continue;
    if (stacks && part_of) {
      int64_t count = 0;
      while (directory.find(fmt::format("{}.{}{}", part_of->before, count, part_of->after)) != nullptr) ++count;
      Tensor& stack = converted[part_of->before + part_of->after];
      stack.shape = plain.shape;
      stack.shape.insert(stack.shape.begin(), count);
      stack.data.resize(plain.data.size() * static_cast<std::size_t>(count));
      std::copy(plain.data.begin(), plain.data.end(),
                stack.data.begin() + static_cast<std::ptrdiff_t>(plain.data.size()) * part_of->number);
    } else if (fused != std::string::npos) {
      const std::size_t dimension = plain.shape.size() - 2;
      const int64_t width = plain.shape.back(), half = plain.shape[dimension] / 2;
      Tensor gate{plain.shape, {}}, up{plain.shape, {}};
      gate.shape[dimension] = up.shape[dimension] = half;
      for (auto part = plain.data.begin(); part != plain.data.end(); part += 2 * half * width) {
        gate.data.insert(gate.data.end(), part, part + half * width);
        up.data.insert(up.data.end(), part + half * width, part + 2 * half * width);
      }
      converted[std::string(tensor.name).replace(fused, kFused.size(), "gate_linear")] = gate;
      converted[std::string(tensor.name).replace(fused, kFused.size(), "up_linear")] = up;
    } else {
      // A number of each expert is a bias to the converter.
      converted[std::string(tensor.name) + (tensor.name.ends_with("e_score_correction_bias") ? ".bias" : "")] = plain;
    }
  }
  return converted;
}

inline const Conversion& conversion_of(std::string_view golden) {
  return *std::find_if(std::begin(kConversions), std::end(kConversions), [&](const Conversion& one) { return one.golden == golden; });
}

// The golden model `directory` as `conversion` has it, with `more` metadata. The file must outlive the network.
inline Checkpoint converted(const Conversion& conversion, const Checkpoint& directory, const Network& network,
                            const std::filesystem::path& path, const std::function<void(Writer&, const std::string& prefix)>& more = {}) {
  Writer builder;
  const std::string prefix = fmt::format("{}.", conversion.architecture);
  builder.text("general.architecture", conversion.architecture);
  builder.integer(prefix + "block_count", static_cast<uint32_t>(network.layers.size()));
  builder.integer(prefix + "context_length", static_cast<uint32_t>(network.max_positions));
  builder.integer(prefix + "embedding_length", static_cast<uint32_t>(network.hidden_size));
  const MlpLayer& mlp = network.layers[0].mlp;
  builder.integer(prefix + "feed_forward_length", static_cast<uint32_t>((mlp.mixture ? mlp.mixture->experts[0].up : mlp.up).weight.rows()));
  builder.integer(prefix + "attention.head_count", static_cast<uint32_t>(network.layers[0].attention.num_heads));
  conversion.metadata(builder, prefix);
  if (more) more(builder, prefix);
  for (const auto& [stored_name, tensor] : as_converted(directory, conversion)) {
    const std::string name = gguf_name(conversion, stored_name);
    builder.tensor(name, conversion.change(name, tensor));
  }
  builder.write(path);
  return Checkpoint::open(path.string()).value();
}

}  // namespace millrace::gguf_test

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <sstream>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"
#include "millrace/tensor/dequantize.h"

// GGUF files as llama.cpp's converter makes them from our golden models: other names, other metadata, some tensors rearranged. Binding them must
// give the network that the Hugging Face directory gives, number by number.
namespace millrace {
namespace {

using testing::HasSubstr;

struct Plain {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// A minimal GGUF v3 writer: f32 tensors, and metadata of a few kinds.
class GgufBuilder {
 public:
  void text(std::string_view key, std::string_view value) { entry(key, 8); string(metadata_, value); }
  void integer(std::string_view key, uint32_t value) { entry(key, 4); raw(metadata_, value); }
  void real(std::string_view key, float value) { entry(key, 6); raw(metadata_, value); }
  void boolean(std::string_view key, bool value) { entry(key, 7); metadata_ += value ? '\1' : '\0'; }
  void booleans(std::string_view key, const std::vector<bool>& values) {
    entry(key, 9);
    raw(metadata_, uint32_t{7});
    raw(metadata_, static_cast<uint64_t>(values.size()));
    for (const bool value : values) metadata_ += value ? '\1' : '\0';
  }
  void tensor(std::string_view name, const Plain& tensor) {
    string(infos_, name);
    raw(infos_, static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) raw(infos_, static_cast<uint64_t>(*size));
    raw(infos_, uint32_t{0});
    raw(infos_, static_cast<uint64_t>(data_.size()));
    data_.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size() * sizeof(float));
    data_.resize((data_.size() + 31) / 32 * 32);
    ++tensors_;
  }
  void write(const std::filesystem::path& path) const {
    std::string out = "GGUF";
    raw(out, uint32_t{3});
    raw(out, tensors_);
    raw(out, entries_);
    out += metadata_ + infos_;
    out.resize((out.size() + 31) / 32 * 32);
    std::ofstream(path, std::ios::binary) << out << data_;
  }

 private:
  template <class T>
  static void raw(std::string& out, T value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); }
  static void string(std::string& out, std::string_view value) {
    raw(out, static_cast<uint64_t>(value.size()));
    out += value;
  }
  void entry(std::string_view key, uint32_t type) {
    string(metadata_, key);
    raw(metadata_, type);
    ++entries_;
  }

  std::string metadata_, infos_, data_;
  uint64_t entries_ = 0, tensors_ = 0;
};

// What the converter does to rows: new row -> old row.
using RowOrder = std::function<int64_t(int64_t row, int64_t rows)>;

Plain with_rows(const Plain& tensor, const RowOrder& order) {
  Plain result = tensor;
  const int64_t rows = tensor.shape[0], width = static_cast<int64_t>(tensor.data.size()) / rows;
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(tensor.data.begin() + order(row, rows) * width, width, result.data.begin() + row * width);
  }
  return result;
}

Plain transposed(const Plain& tensor) {
  Plain result{{tensor.shape[1], tensor.shape[0]}, std::vector<float>(tensor.data.size())};
  for (int64_t i = 0; i < tensor.shape[0]; ++i) {
    for (int64_t j = 0; j < tensor.shape[1]; ++j) result.data[j * tensor.shape[0] + i] = tensor.data[i * tensor.shape[1] + j];
  }
  return result;
}

// Rows (head, half, pair) become (head, pair, half), heads of 16.
int64_t llama_permutation(int64_t row, int64_t) { return row / 16 * 16 + row % 2 * 8 + row % 16 / 2; }

// Rows (head, q|k|v, dim) become (q|k|v, head, dim), 4 heads of 16.
int64_t bloom_permutation(int64_t row, int64_t) { return row % 64 / 16 * 48 + row / 64 * 16 + row % 16; }

struct Conversion {
  std::string_view golden, architecture;
  std::map<std::string_view, std::string_view> names;  // ends of Hugging Face names -> GGUF's; layers' are put under blk.N
  std::function<Plain(std::string_view gguf_name, const Plain&)> change;
  std::function<void(GgufBuilder&, const std::string& prefix)> metadata;
  bool stacks = true;  // tensors of one expert or head become one of all
};

const std::map<std::string_view, std::string_view> kLlamaNames = {
    {"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}, {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"}, {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"}, {"self_attn.qkv_proj", "attn_qkv"},
    {"post_attention_layernorm", "ffn_norm"}, {"mlp.gate_proj", "ffn_gate"}, {"mlp.up_proj", "ffn_up"}, {"mlp.down_proj", "ffn_down"},
    {"mlp.gate_up_proj", "ffn_up"}};

std::map<std::string_view, std::string_view> gemma_names() {
  auto names = kLlamaNames;
  names["post_attention_layernorm"] = "post_attention_norm";
  names["pre_feedforward_layernorm"] = "ffn_norm";
  names["post_feedforward_layernorm"] = "post_ffw_norm";
  return names;
}

const std::map<std::string_view, std::string_view> kTransformerNames = {
    {"transformer.wte", "token_embd"}, {"transformer.wpe", "position_embd"}, {"transformer.ln_f", "output_norm"}, {"ln_1", "attn_norm"},
    {"ln_2", "ffn_norm"}, {"attn.c_attn", "attn_qkv"}, {"attn.c_proj", "attn_output"}, {"mlp.c_fc", "ffn_up"}, {"mlp.c_proj", "ffn_down"},
    {"transformer.word_embeddings", "token_embd"}, {"transformer.word_embeddings_layernorm", "token_embd_norm"},
    {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"self_attention.query_key_value", "attn_qkv"},
    {"self_attention.dense", "attn_output"}, {"mlp.dense_h_to_4h", "ffn_up"}, {"mlp.dense_4h_to_h", "ffn_down"}};

const std::map<std::string_view, std::string_view> kPhiNames = {
    {"model.embed_tokens", "token_embd"}, {"model.final_layernorm", "output_norm"}, {"lm_head", "output"}, {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"}, {"self_attn.dense", "attn_output"},
    {"mlp.fc1", "ffn_up"}, {"mlp.fc2", "ffn_down"}};

std::map<std::string_view, std::string_view> with(std::map<std::string_view, std::string_view> names, const std::map<std::string_view, std::string_view>& more) {
  for (const auto& [name, gguf] : more) names[name] = gguf;
  return names;
}

const std::map<std::string_view, std::string_view> kNeoxNames = {
    {"gpt_neox.embed_in", "token_embd"}, {"gpt_neox.final_layer_norm", "output_norm"}, {"embed_out", "output"}, {"lm_head", "output"},
    {"input_layernorm", "attn_norm"}, {"attention.query_key_value", "attn_qkv"}, {"attention.dense", "attn_output"},
    {"post_attention_layernorm", "ffn_norm"}, {"mlp.dense_h_to_4h", "ffn_up"}, {"mlp.dense_4h_to_h", "ffn_down"}};

const std::map<std::string_view, std::string_view> kMptNames = {
    {"transformer.wte", "token_embd"}, {"transformer.norm_f", "output_norm"}, {"norm_1", "attn_norm"}, {"norm_2", "ffn_norm"},
    {"attn.Wqkv", "attn_qkv"}, {"attn.out_proj", "attn_output"}, {"ffn.up_proj", "ffn_up"}, {"ffn.down_proj", "ffn_down"}};

// Experts' tensors are stacked first: "mlp.experts.gate_proj" of all of a layer's.
const std::map<std::string_view, std::string_view> kExpertNames = {
    {"mlp.gate", "ffn_gate_inp"}, {"block_sparse_moe.gate", "ffn_gate_inp"}, {"block_sparse_moe.experts.w1", "ffn_gate_exps"},
    {"block_sparse_moe.experts.w3", "ffn_up_exps"}, {"block_sparse_moe.experts.w2", "ffn_down_exps"}, {"mlp.experts.gate_proj", "ffn_gate_exps"}, {"mlp.experts.up_proj", "ffn_up_exps"}, {"mlp.experts.down_proj", "ffn_down_exps"},
    {"mlp.shared_expert.gate_proj", "ffn_gate_shexp"}, {"mlp.shared_expert.up_proj", "ffn_up_shexp"}, {"mlp.shared_expert.down_proj", "ffn_down_shexp"},
    {"mlp.shared_expert_gate", "ffn_gate_inp_shexp"}, {"block_sparse_moe.router.layer", "ffn_gate_inp"}, {"block_sparse_moe.gate_linear", "ffn_gate_exps"},
    {"block_sparse_moe.up_linear", "ffn_up_exps"}, {"block_sparse_moe.output_linear", "ffn_down_exps"}, {"shared_mlp.gate_linear", "ffn_gate_shexp"},
    {"shared_mlp.up_linear", "ffn_up_shexp"}, {"shared_mlp.output_linear", "ffn_down_shexp"}};

Plain unchanged(std::string_view, const Plain& tensor) { return tensor; }

Plain gemma_change(std::string_view name, const Plain& tensor) {
  Plain result = tensor;
  if (name.ends_with("norm.weight")) {
    for (float& number : result.data) number += 1;
  }
  return result;
}

void rms(GgufBuilder& gguf, const std::string& prefix, float eps, float theta, uint32_t head_dim, uint32_t kv_heads) {
  gguf.integer(prefix + "attention.head_count_kv", kv_heads);
  gguf.real(prefix + "attention.layer_norm_rms_epsilon", eps);
  gguf.real(prefix + "rope.freq_base", theta);
  gguf.integer(prefix + "attention.key_length", head_dim);
  gguf.integer(prefix + "attention.value_length", head_dim);
}

// What the converter does to llama and to those that share its class.
Plain llama_change(std::string_view name, const Plain& tensor) {
  const bool permuted = name.find("attn_q.") != name.npos || name.find("attn_k.") != name.npos;
  return permuted ? with_rows(tensor, llama_permutation) : tensor;
}

std::map<std::string_view, std::string_view> olmo2_names() {
  return with(kLlamaNames, {{"post_attention_layernorm", "post_attention_norm"}, {"post_feedforward_layernorm", "post_ffw_norm"}});
}

void stablelm_metadata(GgufBuilder& gguf, const std::string& prefix) {
  gguf.integer(prefix + "attention.head_count_kv", 2);
  gguf.integer(prefix + "rope.dimension_count", 4);
  gguf.boolean(prefix + "use_parallel_residual", true);  // the converter says so of those that are not, too
  gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
}

void experts(GgufBuilder& gguf, const std::string& prefix, uint32_t count, uint32_t per_token) {
  gguf.integer(prefix + "expert_count", count);
  gguf.integer(prefix + "expert_used_count", per_token);
}

void granite_moe_metadata(GgufBuilder& gguf, const std::string& prefix) {
  rms(gguf, prefix, 1e-6f, 10000, 16, 2);
  experts(gguf, prefix, 6, 2);
  gguf.real(prefix + "attention.scale", 0.2f);
  gguf.real(prefix + "embedding_scale", 6);
  gguf.real(prefix + "residual_scale", 0.5f);
  gguf.real(prefix + "logit_scale", 2);
}

const Conversion kConversions[] = {
    {"llama", "llama", kLlamaNames, llama_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 500000, 16, 2);
       // The converter computes llama3's scaling: factors that divide the frequencies.
       Plain factors{{8}, {}};
       for (int i = 0; i < 8; ++i) {
         const float wave = 2 * std::acos(-1.0f) / std::pow(500000.0f, -2.0f * static_cast<float>(i) / 16);
         const float smooth = (32 / wave - 1) / 3;
         factors.data.push_back(wave < 8 ? 1 : wave > 32 ? 8 : 1 / ((1 - smooth) / 8 + smooth));
       }
       gguf.tensor("rope_freqs.weight", factors);
     }},
    {"qwen2", "qwen2", kLlamaNames, unchanged, [](GgufBuilder& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 1e6f, 16, 2); }},
    {"qwen3", "qwen3", kLlamaNames, unchanged, [](GgufBuilder& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 1e6f, 32, 2); }},
    {"gemma2", "gemma2", gemma_names(), gemma_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       // The converter drops query_pre_attn_scalar: every published size has head_dim there, or hidden_size / num_heads in the largest.
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       gguf.real(prefix + "attn_logit_softcapping", 6);
       gguf.real(prefix + "final_logit_softcapping", 10);
       gguf.integer(prefix + "attention.sliding_window", 16);
     }},
    {"phi3", "phi3", kLlamaNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 2);
       gguf.integer(prefix + "rope.dimension_count", 16);
       gguf.integer(prefix + "rope.scaling.original_context_length", 256);
     }},
    {"gpt2", "gpt2", kTransformerNames,
     [](std::string_view name, const Plain& tensor) { return name.starts_with("blk.") && tensor.shape.size() == 2 ? transposed(tensor) : tensor; },
     [](GgufBuilder& gguf, const std::string& prefix) { gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f); }},
    {"falcon", "falcon", kTransformerNames, unchanged,  // of one kv head: its groups are concatenated already
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 1);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"bloom", "bloom", kTransformerNames,
     [](std::string_view name, const Plain& tensor) { return name.find("attn_qkv") != name.npos ? with_rows(tensor, bloom_permutation) : tensor; },
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"granite", "granite", kLlamaNames, llama_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       gguf.real(prefix + "attention.scale", 0.2f);
       gguf.real(prefix + "embedding_scale", 6);
       gguf.real(prefix + "residual_scale", 0.5f);
       gguf.real(prefix + "logit_scale", 4);
     }},
    {"gpt_neox", "gptneox", kNeoxNames,
     [](std::string_view name, const Plain& tensor) { return name.find("attn_qkv") != name.npos ? with_rows(tensor, bloom_permutation) : tensor; },
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "rope.dimension_count", 4);
       gguf.boolean(prefix + "use_parallel_residual", true);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"mpt", "mpt", kMptNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.real(prefix + "attention.clamp_kqv", 1);
       gguf.real(prefix + "attention.max_alibi_bias", 8);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"starcoder2", "starcoder2", with(kLlamaNames, {{"mlp.c_fc", "ffn_up"}, {"mlp.c_proj", "ffn_down"}}), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.real(prefix + "rope.freq_base", 100000);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"stablelm", "stablelm", kLlamaNames, unchanged, stablelm_metadata},
    {"stablelm-parallel", "stablelm", with(kLlamaNames, {{"self_attn.q_layernorm.norms", "attn_q_norm"}, {"self_attn.k_layernorm.norms", "attn_k_norm"}}), unchanged,
     stablelm_metadata},
    {"olmo", "olmo", kLlamaNames, llama_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.real(prefix + "attention.clamp_kqv", 0.8f);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"olmo2", "olmo2", olmo2_names(), unchanged, [](GgufBuilder& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 500000, 16, 2); }},
    {"olmo3", "olmo2", olmo2_names(), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 500000, 16, 2);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.booleans(prefix + "attention.sliding_window_pattern", {true, true, true, false});
       gguf.text(prefix + "rope.scaling.type", "yarn");
       gguf.real(prefix + "rope.scaling.factor", 4);
       gguf.integer(prefix + "rope.scaling.original_context_length", 64);
     }},
    {"cohere", "command-r", kLlamaNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
       gguf.real(prefix + "rope.freq_base", 10000);
       gguf.text(prefix + "rope.scaling.type", "none");
       gguf.real(prefix + "logit_scale", 0.5f);
     }},
    {"cohere2", "cohere2", kLlamaNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 2);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
       gguf.real(prefix + "rope.freq_base", 50000);
       gguf.integer(prefix + "rope.dimension_count", 16);
       gguf.integer(prefix + "attention.sliding_window", 16);
       gguf.real(prefix + "logit_scale", 0.5f);
     }},
    {"glm4", "glm4",
     with(kLlamaNames, {{"post_self_attn_layernorm", "post_attention_norm"}, {"post_mlp_layernorm", "post_ffw_norm"}}), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 2);
       gguf.integer(prefix + "rope.dimension_count", 8);
     }},
    {"smollm3", "smollm3", kLlamaNames, llama_change, [](GgufBuilder& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 50000, 16, 2); }},
    {"gemma", "gemma", kLlamaNames, gemma_change, [](GgufBuilder& gguf, const std::string& prefix) { rms(gguf, prefix, 1e-6f, 10000, 32, 1); }},
    {"qwen2_moe", "qwen2moe", with(kLlamaNames, kExpertNames), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 10000, 16, 2);
       experts(gguf, prefix, 6, 2);
       gguf.integer(prefix + "expert_feed_forward_length", 48);
       gguf.integer(prefix + "expert_shared_feed_forward_length", 80);
     }},
    {"qwen3_moe", "qwen3moe", with(kLlamaNames, kExpertNames), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-6f, 1e6f, 16, 2);
       experts(gguf, prefix, 8, 3);
       gguf.integer(prefix + "expert_feed_forward_length", 16);
     }},
    {"mixtral", "llama", with(kLlamaNames, kExpertNames), llama_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 1e6f, 16, 2);
       experts(gguf, prefix, 4, 2);
     }},
    {"olmoe", "olmoe", with(kLlamaNames, kExpertNames), unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       rms(gguf, prefix, 1e-5f, 10000, 16, 4);
       experts(gguf, prefix, 8, 2);
     }},
    {"granite_moe", "granitemoe", with(kLlamaNames, kExpertNames), llama_change, granite_moe_metadata},
    {"granite_moe_shared", "granitemoe", with(kLlamaNames, kExpertNames), llama_change,
     [](GgufBuilder& gguf, const std::string& prefix) {
       granite_moe_metadata(gguf, prefix);
       gguf.integer(prefix + "expert_shared_feed_forward_length", 48);
     }},
    {"phi", "phi2", kPhiNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 4);
       gguf.integer(prefix + "rope.dimension_count", 8);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
    {"gpt_bigcode", "starcoder", kTransformerNames, unchanged,
     [](GgufBuilder& gguf, const std::string& prefix) {
       gguf.integer(prefix + "attention.head_count_kv", 1);
       gguf.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
     }},
};

std::string gguf_name(const Conversion& conversion, std::string_view name) {
  const std::size_t dot = name.rfind('.');
  const std::string_view stem = name.substr(0, dot), suffix = name.substr(dot);
  if (const auto whole = conversion.names.find(stem); whole != conversion.names.end()) return fmt::format("{}{}", whole->second, suffix);
  for (std::string_view before : {"model.layers.", "transformer.h.", "transformer.blocks.", "gpt_neox.layers."}) {
    if (!stem.starts_with(before)) continue;
    const std::size_t end = stem.find('.', before.size());
    return fmt::format("blk.{}.{}{}", stem.substr(before.size(), end - before.size()), conversion.names.at(stem.substr(end + 1)), suffix);
  }
  ADD_FAILURE() << "no GGUF name for " << name;
  return "";
}

Plain numbers_of(const SourceTensor& tensor) {
  Plain plain{tensor.shape, {}};
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
std::optional<Numbered> numbered(const std::string& name) {
  for (const std::string_view list : {".experts.", ".norms."}) {
    const std::size_t at = name.rfind(list), digits = at + list.size();
    if (at == std::string::npos) continue;
    const std::size_t end = std::min(name.find_first_not_of("0123456789", digits), name.size());
    if (end > digits) return Numbered{name.substr(0, digits - 1), name.substr(end), std::stoll(name.substr(digits, end - digits))};
  }
  return std::nullopt;
}

// What converters do to all families: what there is one tensor of for each expert or head is stacked, and experts' fused gate and up are split.
std::map<std::string, Plain> as_converted(const Checkpoint& directory, bool stacks) {
  std::map<std::string, Plain> converted;
  for (const SourceTensor& tensor : directory.tensors()) {
    constexpr std::string_view kFused = "input_linear";
    const std::size_t fused = tensor.name.find(kFused);
    const auto part_of = numbered(tensor.name);
    const Plain plain = numbers_of(tensor);
    if (stacks && part_of) {
      int64_t count = 0;
      while (directory.find(fmt::format("{}.{}{}", part_of->before, count, part_of->after)) != nullptr) ++count;
      Plain& stack = converted[part_of->before + part_of->after];
      stack.shape = plain.shape;
      stack.shape.insert(stack.shape.begin(), count);
      stack.data.resize(plain.data.size() * static_cast<std::size_t>(count));
      std::copy(plain.data.begin(), plain.data.end(), stack.data.begin() + static_cast<std::ptrdiff_t>(plain.data.size()) * part_of->number);
    } else if (fused != std::string::npos) {
      const std::size_t dimension = plain.shape.size() - 2;
      const int64_t width = plain.shape.back(), half = plain.shape[dimension] / 2;
      Plain gate{plain.shape, {}}, up{plain.shape, {}};
      gate.shape[dimension] = up.shape[dimension] = half;
      for (auto part = plain.data.begin(); part != plain.data.end(); part += 2 * half * width) {
        gate.data.insert(gate.data.end(), part, part + half * width);
        up.data.insert(up.data.end(), part + half * width, part + 2 * half * width);
      }
      converted[std::string(tensor.name).replace(fused, kFused.size(), "gate_linear")] = gate;
      converted[std::string(tensor.name).replace(fused, kFused.size(), "up_linear")] = up;
    } else {
      converted[tensor.name] = plain;
    }
  }
  return converted;
}

std::vector<float> numbers_of(const MatrixSource& matrix) {
  if (matrix.tensor == nullptr) return {};
  const Plain stored = numbers_of(*matrix.tensor);
  std::vector<float> numbers;
  for (const int32_t row : matrix.row_map) {
    for (int64_t i = 0; i < matrix.k; ++i) {
      numbers.push_back(stored.data[static_cast<std::size_t>(matrix.transposed ? i * stored.shape[1] + row : row * matrix.k + i)]);
    }
  }
  return numbers;
}

void expect_same(const Linear& a, const Linear& b) {
  EXPECT_EQ(numbers_of(a.weight), numbers_of(b.weight));
  EXPECT_EQ(a.bias, b.bias);
}

void expect_same(const std::optional<Norm>& a, const std::optional<Norm>& b) {
  ASSERT_EQ(a.has_value(), b.has_value());
  if (!a) return;
  EXPECT_EQ(a->kind, b->kind);
  EXPECT_EQ(a->weight, b->weight);
  EXPECT_EQ(a->bias, b->bias);
  EXPECT_FLOAT_EQ(a->eps, b->eps);
}

void expect_same(const Expert& a, const Expert& b) {
  expect_same(a.gate, b.gate);
  expect_same(a.up, b.up);
  expect_same(a.down, b.down);
}

void expect_same(const Mixture& a, const Mixture& b) {
  EXPECT_EQ(a.rule.num_experts, b.rule.num_experts);
  EXPECT_EQ(a.rule.experts_per_token, b.rule.experts_per_token);
  EXPECT_EQ(a.rule.scoring, b.rule.scoring);
  EXPECT_EQ(a.rule.normalize, b.rule.normalize);
  EXPECT_EQ(a.rule.scale, b.rule.scale);
  expect_same(a.router, b.router);
  ASSERT_EQ(a.experts.size(), b.experts.size());
  for (std::size_t e = 0; e < a.experts.size(); ++e) expect_same(a.experts[e], b.experts[e]);
  ASSERT_EQ(a.shared.has_value(), b.shared.has_value());
  if (a.shared) expect_same(*a.shared, *b.shared);
  ASSERT_EQ(a.shared_gate.has_value(), b.shared_gate.has_value());
  if (a.shared_gate) expect_same(*a.shared_gate, *b.shared_gate);
}

void expect_same(const DecoderLayer& a, const DecoderLayer& b, std::string_view golden) {
  EXPECT_EQ(a.parallel_residual, b.parallel_residual);
  EXPECT_EQ(a.shared_norm, b.shared_norm);
  EXPECT_FLOAT_EQ(a.residual_multiplier, b.residual_multiplier);
  if (a.attention.rope || golden != "smollm3") {
    expect_same(a.attention.q, b.attention.q);
    expect_same(a.attention.k, b.attention.k);
  } else {
    // The converter reorders q and k also where nothing turns: they stay in a common order that is not the directory's, and q . k is the same.
    const auto sorted = [](const Linear& linear) {
      std::vector<float> numbers = numbers_of(linear.weight);
      std::sort(numbers.begin(), numbers.end());
      return numbers;
    };
    EXPECT_EQ(sorted(a.attention.q), sorted(b.attention.q));
    EXPECT_EQ(sorted(a.attention.k), sorted(b.attention.k));
  }
  expect_same(a.attention.v, b.attention.v);
  expect_same(a.attention.o, b.attention.o);
  expect_same(a.attention.norm, b.attention.norm);
  expect_same(a.attention.post_norm, b.attention.post_norm);
  expect_same(a.attention.q_norm, b.attention.q_norm);
  expect_same(a.attention.k_norm, b.attention.k_norm);
  if (golden != "gemma2") {  // that golden has a scale that no published size has, and the converter drops it
    EXPECT_FLOAT_EQ(a.attention.scale, b.attention.scale);
  }
  EXPECT_EQ(a.attention.softcap, b.attention.softcap);
  EXPECT_EQ(a.attention.clip, b.attention.clip);
  EXPECT_EQ(a.attention.head_norm, b.attention.head_norm);
  EXPECT_EQ(a.attention.window, b.attention.window);
  EXPECT_EQ(a.attention.alibi_slopes, b.attention.alibi_slopes);
  ASSERT_EQ(a.attention.rope.has_value(), b.attention.rope.has_value());
  if (a.attention.rope) {
    EXPECT_EQ(a.attention.rope->pairing, b.attention.rope->pairing);
    ASSERT_EQ(a.attention.rope->inv_freq.size(), b.attention.rope->inv_freq.size());
    for (std::size_t i = 0; i < a.attention.rope->inv_freq.size(); ++i) {
      EXPECT_NEAR(a.attention.rope->inv_freq[i], b.attention.rope->inv_freq[i], 1e-6f * a.attention.rope->inv_freq[i]);
    }
  }
  EXPECT_EQ(a.mlp.gated, b.mlp.gated);
  EXPECT_EQ(a.mlp.activation, b.mlp.activation);
  expect_same(a.mlp.gate, b.mlp.gate);
  expect_same(a.mlp.up, b.mlp.up);
  expect_same(a.mlp.down, b.mlp.down);
  ASSERT_EQ(a.mlp.mixture.has_value(), b.mlp.mixture.has_value());
  if (a.mlp.mixture) expect_same(*a.mlp.mixture, *b.mlp.mixture);
  expect_same(a.mlp.norm, b.mlp.norm);
  expect_same(a.mlp.post_norm, b.mlp.post_norm);
}

// The golden model `directory` as `conversion` has it, with `more` metadata. The file must outlive the network.
Checkpoint converted(const Conversion& conversion, const Checkpoint& directory, const Network& network, const std::filesystem::path& path,
                     const std::function<void(GgufBuilder&, const std::string& prefix)>& more = {}) {
  GgufBuilder builder;
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
  for (const auto& [stored_name, tensor] : as_converted(directory, conversion.stacks)) {
    const std::string name = gguf_name(conversion, stored_name);
    builder.tensor(name, conversion.change(name, tensor));
  }
  builder.write(path);
  return Checkpoint::open(path.string()).value();
}

class BindConvertedGguf : public testing::TestWithParam<Conversion> {};

TEST_P(BindConvertedGguf, IsTheNetworkOfTheDirectory) {
  const Conversion& conversion = GetParam();
  const Result<Checkpoint> directory = Checkpoint::open((source_dir() / "tests/golden/models" / conversion.golden).string());
  ASSERT_TRUE(directory.is_ok()) << directory.status().message();
  const Result<Network> want = bind_network(choose_family(*directory, std::nullopt).value(), *directory);
  ASSERT_TRUE(want.is_ok()) << want.status().message();

  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_{}.gguf", conversion.golden);
  const Checkpoint file = converted(conversion, *directory, *want, path);
  const Result<Network> got = bind_network(choose_family(file, std::nullopt).value(), file);
  ASSERT_TRUE(got.is_ok()) << got.status().message();

  EXPECT_EQ(got->family, want->family == "mixtral" ? "llama" : want->family);  // GGUF has one architecture for both
  EXPECT_EQ(got->vocab_size, want->vocab_size);
  EXPECT_EQ(got->max_positions, want->max_positions);
  EXPECT_EQ(got->tied_head, want->tied_head);
  EXPECT_EQ(got->embedding_multiplier, want->embedding_multiplier);
  EXPECT_EQ(got->logits_softcap, want->logits_softcap);
  EXPECT_FLOAT_EQ(got->logits_multiplier, want->logits_multiplier);
  EXPECT_EQ(numbers_of(got->embedding), numbers_of(want->embedding));
  EXPECT_EQ(got->positions.has_value(), want->positions.has_value());
  expect_same(got->embedding_norm, want->embedding_norm);
  expect_same(got->final_norm, want->final_norm);
  expect_same(got->head, want->head);
  ASSERT_EQ(got->layers.size(), want->layers.size());
  for (std::size_t layer = 0; layer < got->layers.size(); ++layer) {
    SCOPED_TRACE(layer);
    expect_same(got->layers[layer], want->layers[layer], conversion.golden);
  }
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Families, BindConvertedGguf, testing::ValuesIn(kConversions),
                         [](const auto& conversion) {
                           std::string name(conversion.param.golden);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// The first step would have ended the process: positions were read without asking whether their type can be.
TEST(BindGguf, LearnedPositionsOfAnUnreadableTypeAreRefused) {
  const Conversion& conversion = *std::find_if(std::begin(kConversions), std::end(kConversions), [](const auto& c) { return c.golden == "gpt2"; });
  const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models/gpt2").string()).value();
  const Network network = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_positions.gguf";
  static_cast<void>(converted(conversion, directory, network, path).tensors());
  std::ostringstream read;
  read << std::ifstream(path, std::ios::binary).rdbuf();
  std::string bytes = read.str();
  const std::string name = "position_embd.weight";
  const std::size_t type = bytes.find(name) + name.size() + sizeof(uint32_t) + 2 * sizeof(uint64_t);
  ASSERT_EQ(bytes.compare(type, 4, std::string(4, '\0')), 0) << "the type id of f32 is expected here";
  bytes[type] = 9;  // Q8_1, which is smaller and is no type of stored weights
  std::ofstream(path, std::ios::binary) << bytes;
  const Checkpoint changed = Checkpoint::open(path.string()).value();
  const Result<Network> bound = bind_network(choose_family(changed, std::nullopt).value(), changed);
  ASSERT_FALSE(bound.is_ok());
  EXPECT_THAT(bound.status().message(), HasSubstr("\"position_embd.weight\" is stored as Q8_1, which cannot be read as numbers"));
}

// Which layers slide, and how far YaRN reaches, as newer files say it.
TEST(BindGguf, PatternsAndMultipliersOfTheFileCount) {
  const auto network_of = [](std::string_view golden, const std::function<void(GgufBuilder&, const std::string&)>& more) {
    const Conversion& conversion = *std::find_if(std::begin(kConversions), std::end(kConversions), [&](const auto& c) { return c.golden == golden; });
    const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models" / golden).string()).value();
    const Network network = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
    const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_{}_more.gguf", golden);
    const Checkpoint file = converted(conversion, directory, network, path, more);
    Network got = bind_network(choose_family(file, std::nullopt).value(), file).value();
    std::filesystem::remove(path);
    return got;
  };
  const auto slides = [](const Network& network) {
    std::vector<bool> layers;
    for (const DecoderLayer& layer : network.layers) layers.push_back(layer.attention.window.has_value());
    return layers;
  };
  const std::vector<bool> usual = slides(network_of("gemma2", {})), other = {false, false, true, true};
  ASSERT_EQ(usual, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(slides(network_of("gemma2", [&](auto& gguf, const auto& prefix) { gguf.booleans(prefix + "attention.sliding_window_pattern", other); })), other);
  EXPECT_EQ(slides(network_of("gemma2", [](auto& gguf, const auto& prefix) { gguf.integer(prefix + "attention.sliding_window_pattern", 3); })),
            (std::vector<bool>{true, true, false, true}));

  const auto attention_factor = [&](float log_multiplier) {
    return network_of("qwen2", [&](auto& gguf, const auto& prefix) {
      gguf.text(prefix + "rope.scaling.type", "yarn");
      gguf.real(prefix + "rope.scaling.factor", 4);
      gguf.integer(prefix + "rope.scaling.original_context_length", 64);
      if (log_multiplier != 0) gguf.real(prefix + "rope.scaling.yarn_log_multiplier", log_multiplier);
    }).layers[0].attention.rope->attention_factor;
  };
  const float plain = 0.1f * std::log(4.0f) + 1;
  EXPECT_FLOAT_EQ(attention_factor(0), plain);
  EXPECT_FLOAT_EQ(attention_factor(1), 1.0f);
  EXPECT_FLOAT_EQ(attention_factor(0.5f), plain / (0.05f * std::log(4.0f) + 1));
}

TEST(BindGguf, OlderFilesHaveATensorForEachExpert) {
  Conversion conversion = *std::find_if(std::begin(kConversions), std::end(kConversions), [](const auto& c) { return c.golden == "mixtral"; });
  conversion.stacks = false;
  const std::vector<std::pair<std::string, std::string>> names = [] {
    std::vector<std::pair<std::string, std::string>> all;
    for (int e = 0; e < 4; ++e) {
      for (const auto& [from, to] : {std::pair{"w1", "ffn_gate"}, {"w3", "ffn_up"}, {"w2", "ffn_down"}}) {
        all.emplace_back(fmt::format("block_sparse_moe.experts.{}.{}", e, from), fmt::format("{}.{}", to, e));
      }
    }
    return all;
  }();
  for (const auto& [from, to] : names) conversion.names[from] = to;
  const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models/mixtral").string()).value();
  const Network want = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_mixtral_older.gguf";
  const Checkpoint file = converted(conversion, directory, want, path);
  const Result<Network> got = bind_network(choose_family(file, std::nullopt).value(), file);
  ASSERT_TRUE(got.is_ok()) << got.status().message();
  for (std::size_t layer = 0; layer < want.layers.size(); ++layer) expect_same(got->layers[layer], want.layers[layer], "mixtral");
  std::filesystem::remove(path);
}

TEST(BindGguf, FamilyWithoutGgufSaysSo) {
  GgufBuilder builder;
  builder.text("general.architecture", "marble");
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_marble.gguf";
  builder.write(path);
  const Result<Checkpoint> file = Checkpoint::open(path.string());
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  EXPECT_THAT(choose_family(*file, std::nullopt).status().message(), HasSubstr("architecture \"marble\" is not known"));
  const Result<Family> mistral = choose_family(*file, (source_dir() / "millrace/model/families/mistral.json").string());
  EXPECT_THAT(bind_network(*mistral, *file).status().message(), HasSubstr("mistral.json: the family has no \"gguf\" section"));
  std::filesystem::remove(path);
}

Result<Network> bind_path(const std::string& path, std::unique_ptr<Checkpoint>& checkpoint) {
  MR_ASSIGN_OR_RETURN(Checkpoint opened, Checkpoint::open(path));
  checkpoint = std::make_unique<Checkpoint>(std::move(opened));
  MR_ASSIGN_OR_RETURN(const Family family, choose_family(*checkpoint, std::nullopt));
  return bind_network(family, *checkpoint);
}

TEST(BindGguf, DemoModel) {
  const char* path = std::getenv("MILLRACE_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "MILLRACE_DEMO_MODEL does not name the demo model's GGUF";
  std::unique_ptr<Checkpoint> checkpoint;
  const Result<Network> network = bind_path(path, checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->hidden_size, 576);
  EXPECT_EQ(network->vocab_size, 49152);
  ASSERT_EQ(network->layers.size(), 30u);
  const AttentionLayer& attention = network->layers[29].attention;
  EXPECT_EQ(attention.num_heads, 9);
  EXPECT_EQ(attention.num_kv_heads, 3);
  EXPECT_EQ(attention.head_dim, 64);
  ASSERT_TRUE(attention.rope);
  EXPECT_EQ(attention.rope->rotary_dim, 64);
  // llama.cpp's converter stores q and k for interleaved pairing: the second half of a head's dimensions are the odd rows.
  EXPECT_EQ(attention.q.weight.row_map[1], 2);
  EXPECT_EQ(attention.q.weight.row_map[32], 1);
  EXPECT_EQ(attention.k.weight.row_map[64 + 33], 64 + 3);
  EXPECT_EQ(attention.v.weight.row_map[1], 1);
  EXPECT_TRUE(network->tied_head);
}

struct RealGguf {
  const char *variable, *family;
  int64_t hidden_size, layers;
};

TEST(BindGguf, OtherPublishedModels) {
  const RealGguf models[] = {{"MILLRACE_GEMMA3_MODEL", "gemma3", 640, 18}, {"MILLRACE_QWEN2_MODEL", "qwen2", 896, 24}};
  int found = 0;
  for (const RealGguf& model : models) {
    const char* path = std::getenv(model.variable);
    if (path == nullptr) continue;
    ++found;
    std::unique_ptr<Checkpoint> checkpoint;
    const Result<Network> network = bind_path(path, checkpoint);
    ASSERT_TRUE(network.is_ok()) << network.status().message();
    EXPECT_EQ(network->family, model.family);
    EXPECT_EQ(network->hidden_size, model.hidden_size);
    EXPECT_EQ(static_cast<int64_t>(network->layers.size()), model.layers);
  }
  if (found == 0) GTEST_SKIP() << "neither MILLRACE_GEMMA3_MODEL nor MILLRACE_QWEN2_MODEL names a GGUF";
}

}  // namespace
}  // namespace millrace

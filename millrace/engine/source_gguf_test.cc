// T5 in GGUF, with the names and metadata that llama.cpp's converter gives it, against the reference of the directory it was made from.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/engine/loaded_model.h"
#include "millrace/model/gguf_test_writer.h"
#include "millrace/model/verify.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

std::string replaced(std::string text, std::string_view what, std::string_view with) {
  if (const std::size_t at = text.find(what); at != std::string::npos) text.replace(at, what.size(), with);
  return text;
}

std::string gguf_name(std::string name) {
  static const std::pair<std::string_view, std::string_view> kParts[] = {{"shared.", "token_embd."},
                                                                         {"lm_head.", "output."},
                                                                         {"encoder.final_layer_norm", "enc.output_norm"},
                                                                         {"decoder.final_layer_norm", "dec.output_norm"},
                                                                         {"encoder.block", "enc.blk"},
                                                                         {"decoder.block", "dec.blk"},
                                                                         {"layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"},
                                                                         {"layer.0.SelfAttention.", "attn_"},
                                                                         {"layer.1.EncDecAttention.", "cross_attn_"},
                                                                         {"layer.0.layer_norm", "attn_norm"},
                                                                         {"layer.2.layer_norm", "ffn_norm"},
                                                                         {"DenseReluDense.wi_0", "ffn_gate"},
                                                                         {"DenseReluDense.wi_1", "ffn_up"},
                                                                         {"DenseReluDense.wi.", "ffn_up."},
                                                                         {"DenseReluDense.wo", "ffn_down"}};
  const bool of_encoder = name.starts_with("encoder");
  for (const auto& [what, with] : kParts) name = replaced(name, what, with);
  name = replaced(name, "layer.1.layer_norm", of_encoder ? "ffn_norm" : "cross_attn_norm");
  return replaced(replaced(name, "layer.1.ffn", "ffn"), "layer.2.ffn", "ffn");
}

TEST(SourceGguf, T5AsConvertedPassesTheReference) {
  for (const char* name : {"t5", "t5-relu"}) {
    SCOPED_TRACE(name);
    const auto directory = source_dir() / "tests/golden/seq2seq" / name;
    const Checkpoint stored = Checkpoint::open(directory.string()).value();
    const auto field = [&](const char* key) { return static_cast<uint32_t>(stored.config().at(key).as_int64()); };
    gguf_test::Writer gguf;
    gguf.text("general.architecture", "t5");
    gguf.integer("t5.context_length", 512);
    gguf.integer("t5.embedding_length", field("d_model"));
    gguf.integer("t5.feed_forward_length", field("d_ff"));
    gguf.integer("t5.block_count", field("num_layers"));
    gguf.integer("t5.decoder_block_count", field("num_decoder_layers"));
    gguf.integer("t5.attention.head_count", field("num_heads"));
    gguf.integer("t5.attention.key_length", field("d_kv"));
    gguf.integer("t5.attention.value_length", field("d_kv"));
    gguf.real("t5.attention.layer_norm_epsilon", 1e-6f);
    gguf.real("t5.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf.integer("t5.attention.relative_buckets_count", field("relative_attention_num_buckets"));
    gguf.integer("t5.decoder_start_token_id", field("decoder_start_token_id"));
    for (const SourceTensor& tensor : stored.tensors()) {
      int64_t count = 1;
      for (const int64_t size : tensor.shape) count *= size;
      gguf_test::Tensor numbers{tensor.shape, std::vector<float>(static_cast<std::size_t>(count))};
      dequantize_row(tensor.dtype, tensor.data.data(), count, numbers.data.data());
      // A converter writes the head of its own where the logits are not scaled, though both hold the same numbers.
      if (tensor.name == "shared.weight" && std::string_view(name) == "t5") gguf.tensor("output.weight", numbers);
      gguf.tensor(gguf_name(tensor.name), numbers);
    }
    const auto path = std::filesystem::temp_directory_path() / fmt::format("millrace-{}-{}.gguf", name, getpid());
    gguf.write(path);
    {
      const auto model = LoadedModel::load(path.string(), {.num_threads = 2});
      ASSERT_TRUE(model.is_ok()) << model.status().message();
      const auto reference = parse_json(read_text_file((directory / "golden.json").string()).value()).value();
      const auto report = verify_reference(
          reference,
          [&](GemmPath gemm_path, int32_t max_rows) -> Result<std::unique_ptr<Executor>> {
            const KvDType kv_dtype = gemm_path == GemmPath::kExact ? KvDType::kF32 : KvDType::kBf16;
            MR_ASSIGN_OR_RETURN(auto executor, (*model)->make_executor(gemm_path, kv_dtype, max_rows));
            return std::unique_ptr<Executor>(std::move(executor));
          },
          default_tolerance(false, KvDType::kBf16, false, true));
      ASSERT_TRUE(report.is_ok()) << report.status().message();
      for (const VerifyPrompt& prompt : report->prompts) {
        for (const std::string& failure : prompt.failures) ADD_FAILURE() << prompt.name << ": " << failure;
      }
    }
    std::filesystem::remove(path);
  }
}

}  // namespace
}  // namespace millrace

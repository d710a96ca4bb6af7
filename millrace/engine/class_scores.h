#pragma once

#include <span>
#include <string>
#include <vector>

#include "millrace/base/json.h"

namespace millrace {

// What a classifier's logits mean: names of the classes, and how logits become scores.
struct ClassScores {
  enum class Function { kIdentity, kSigmoid, kSoftmax };
  std::vector<std::string> labels;  // [num_classes], of config.json's id2label; "LABEL_3" where it has none
  Function function = Function::kSigmoid;

  // As sentence-transformers' cross-encoders and transformers' pipelines choose: the activation that config.json names
  // ("sentence_transformers"."activation_fn", or "sbert_ce_default_activation_function"), else by "problem_type"; else a sigmoid of one
  // class, and softmax over several.
  static ClassScores of(const json::object& config, int64_t num_classes);

  void apply(std::span<float> logits) const;  // in place
};

// Of two vectors of one size; 0 where one is all zeros.
float cosine(std::span<const float> a, std::span<const float> b);

// The first `dimensions` numbers, made as long as 1: what embeddings trained for it (Matryoshka) keep their meaning under.
void shorten_embedding(std::vector<float>& embedding, std::size_t dimensions);

}  // namespace millrace

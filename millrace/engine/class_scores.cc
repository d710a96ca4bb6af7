#include "millrace/engine/class_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace millrace {
namespace {

std::string text_of(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(std::string_view(value->get_string())) : std::string();
}

}  // namespace

ClassScores ClassScores::of(const json::object& config, int64_t num_classes) {
  ClassScores scores;
  const json::value* labels = config.if_contains("id2label");
  for (int64_t i = 0; i < num_classes; ++i) {
    const std::string id = fmt::format("{}", i),
                      label = labels != nullptr && labels->is_object() ? text_of(labels->get_object(), id) : std::string();
    scores.labels.push_back(label.empty() ? "LABEL_" + id : label);
  }
  std::string activation = text_of(config, "sbert_ce_default_activation_function");
  if (const json::value* own = config.if_contains("sentence_transformers");
      own != nullptr && own->is_object() && own->get_object().contains("activation_fn")) {
    activation = text_of(own->get_object(), "activation_fn");
  }
  activation = activation.substr(activation.rfind('.') + 1);  // a Python class
  const std::string problem = text_of(config, "problem_type");
  if (activation == "Identity" || (activation.empty() && problem == "regression")) {
    scores.function = Function::kIdentity;
  } else if (activation == "Sigmoid" || (activation.empty() && (problem == "multi_label_classification" || num_classes == 1))) {
    scores.function = Function::kSigmoid;
  } else {
    scores.function = num_classes == 1 ? Function::kSigmoid : Function::kSoftmax;
  }
  return scores;
}

void ClassScores::apply(std::span<float> logits) const {
  if (function == Function::kIdentity || logits.empty()) return;
  if (function == Function::kSigmoid) {
    for (float& x : logits) x = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(x))));
    return;
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - top);
  for (float& x : logits) x = static_cast<float>(std::exp(x - top) / sum);
}

float cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0, a_norm = 0, b_norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    product += static_cast<double>(a[i]) * b[i];
    a_norm += static_cast<double>(a[i]) * a[i];
    b_norm += static_cast<double>(b[i]) * b[i];
  }
  const double norms = std::sqrt(a_norm * b_norm);
  return norms > 0 ? static_cast<float>(product / norms) : 0.0f;
}

void shorten_embedding(std::vector<float>& embedding, std::size_t dimensions) {
  embedding.resize(dimensions);
  double norm = 0;
  for (const float x : embedding) norm += static_cast<double>(x) * x;
  norm = std::sqrt(norm);
  if (norm == 0) return;
  for (float& x : embedding) x = static_cast<float>(x / norm);
}

}  // namespace millrace

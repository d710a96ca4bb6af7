#include "millrace/kernels/attention_ref.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "millrace/tensor/half.h"

namespace millrace {
namespace {

float e4m3_to_f32(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

}  // namespace

void kv_read(const KvView& kv, int64_t block, int64_t token, int64_t kv_head, float* k, float* v) {
  // Written from the description in attention.h alone, so that it also judges kv_write.
  const int64_t head_dim = kv.geometry.head_dim, padded = (head_dim + 15) / 16 * 16;
  const std::byte* head = kv.base + block * kv.block_stride + kv_head * kv.geometry.head_bytes();
  const int64_t g = kv.geometry.format == KvFormat::kF32 ? 1 : kv.geometry.format == KvFormat::kBf16 ? 2 : 4;
  if (kv.geometry.format == KvFormat::kInt4) {
    const int64_t half = (head_dim + 31) / 32 * 16, k_bytes = (head_dim + 7) / 8 * 4 * kBlockTokens, v_bytes = kBlockTokens * half;
    const auto code_at = [&](int64_t byte, bool high) { return std::to_integer<int>(head[byte]) >> (high ? 4 : 0) & 15; };
    const auto* parameters = reinterpret_cast<const uint16_t*>(head + k_bytes + v_bytes);
    const auto value = [&](int code, int64_t at) {
      return bf16_to_f32(parameters[2 * at + 1]) + bf16_to_f32(parameters[2 * at]) * (static_cast<float>(code) - 7.5f);
    };
    constexpr int kPlaces[8] = {0, 1, 4, 5, 2, 3, 6, 7};  // of dimensions, which here is the inverse too
    for (int64_t d = 0; d < head_dim; ++d) {
      const int place = kPlaces[d % 8];
      k[d] = value(code_at((d / 8 * kBlockTokens + token) * 4 + place / 2, place % 2 == 1), token);
      v[d] = value(code_at(k_bytes + (token / 4 * half + d % half) * 4 + token % 4, d >= half), kBlockTokens + token);
    }
    return;
  }
  const int64_t k_values = (head_dim + g - 1) / g * kBlockTokens * g, v_values = kBlockTokens / g * padded * g;
  for (int64_t d = 0; d < head_dim; ++d) {
    const int64_t in_k = (d / g * kBlockTokens + token) * g + d % g;
    const int64_t in_v = (token / g * padded + d) * g + token % g;
    switch (kv.geometry.format) {
      case KvFormat::kF32: {
        const auto* values = reinterpret_cast<const float*>(head);
        k[d] = values[in_k];
        v[d] = values[k_values + in_v];
        break;
      }
      case KvFormat::kBf16: {
        const auto* values = reinterpret_cast<const uint16_t*>(head);
        k[d] = bf16_to_f32(values[in_k]);
        v[d] = bf16_to_f32(values[k_values + in_v]);
        break;
      }
      case KvFormat::kFp8E4M3: {
        const auto* codes = reinterpret_cast<const uint8_t*>(head);
        const auto* scales = reinterpret_cast<const float*>(head + k_values + v_values);
        k[d] = e4m3_to_f32(codes[in_k]) * scales[token];
        v[d] = e4m3_to_f32(codes[k_values + in_v]) * scales[kBlockTokens + token];
        break;
      }
      case KvFormat::kInt8: {
        const auto* values = reinterpret_cast<const int8_t*>(head);
        const auto* scales = reinterpret_cast<const float*>(head + k_values + v_values);
        k[d] = static_cast<float>(values[in_k]) * scales[token];
        v[d] = static_cast<float>(values[k_values + in_v]) * scales[kBlockTokens + token];
        break;
      }
      case KvFormat::kInt4: break;
    }
  }
}

void attention_ref(const KvView& kv, const AttentionArgs& args, int64_t row, int64_t head, double* out) {
  const int64_t head_dim = kv.geometry.head_dim, position = args.first_position + row;
  const int64_t kv_head = head / (args.num_heads / kv.geometry.num_kv_heads);
  int64_t last = args.num_keys.has_value() ? *args.num_keys - 1 : position;
  if (args.num_keys.has_value() && args.window.has_value()) last = std::min(last, position + *args.window - 1);
  const float* q = args.q + row * args.q_stride + head * head_dim;
  const int64_t first = args.window.has_value() ? std::max<int64_t>(0, position - *args.window + 1) : 0;
  std::vector<float> k(static_cast<std::size_t>(head_dim)), v(k);
  std::vector<double> scores;
  for (int64_t j = first; j <= last; ++j) {
    kv_read(kv, args.blocks[static_cast<std::size_t>(j / kBlockTokens)], j % kBlockTokens, kv_head, k.data(), v.data());
    double score = 0;
    for (int64_t d = 0; d < head_dim; ++d) score += static_cast<double>(q[d]) * k[static_cast<std::size_t>(d)];
    score *= args.scale;
    if (args.softcap.has_value()) score = *args.softcap * std::tanh(score / *args.softcap);
    if (args.alibi_slopes != nullptr) score += static_cast<double>(args.alibi_slopes[head]) * -static_cast<double>(std::abs(j - position));
    if (args.relative_bias != nullptr) {
      const int64_t reach = args.relative_reach, distance = std::clamp(j - position, -reach, reach);
      score += static_cast<double>(args.relative_bias[head * (2 * reach + 1) + distance + reach]);
    }
    scores.push_back(score);
  }
  double maximum = *std::max_element(scores.begin(), scores.end());
  if (args.sinks != nullptr) maximum = std::max(maximum, static_cast<double>(args.sinks[head]));
  double sum = args.sinks != nullptr ? std::exp(args.sinks[head] - maximum) : 0;
  std::fill_n(out, head_dim, 0.0);
  for (int64_t j = first; j <= last; ++j) {
    kv_read(kv, args.blocks[static_cast<std::size_t>(j / kBlockTokens)], j % kBlockTokens, kv_head, k.data(), v.data());
    const double p = std::exp(scores[static_cast<std::size_t>(j - first)] - maximum);
    sum += p;
    for (int64_t d = 0; d < head_dim; ++d) out[d] += p * v[static_cast<std::size_t>(d)];
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] /= sum;
}

}  // namespace millrace

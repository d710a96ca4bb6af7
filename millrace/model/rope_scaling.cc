#include "millrace/model/rope_scaling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace millrace {

namespace {

constexpr double kFactorMax = 1e6;  // of scalings and lengths; published ones stay below 100
constexpr int64_t kPositionsMax = int64_t{1} << 31;

// The parameters of one scaling, read with checks. Null counts as absent, as in the published configurations.
class Parameters {
 public:
  explicit Parameters(const json::object* object) : object_(object) {}

  const json::value* find(std::string_view name) const {
    const json::value* value = object_ != nullptr ? object_->if_contains(name) : nullptr;
    return value != nullptr && !value->is_null() ? value : nullptr;
  }

  Result<std::optional<double>> number(std::string_view name, double low, double high) const {
    const json::value* value = find(name);
    if (value == nullptr) return std::optional<double>();
    const double number = value->is_number() ? value->to_number<double>() : std::nan("");
    if (!(number >= low && number <= high)) {
      return Status::invalid_argument(
          fmt::format("rope parameter \"{}\" is {}, expected a number from {} to {}", name, json::serialize(*value), low, high));
    }
    return std::optional<double>(number);
  }

  Result<double> required(std::string_view name, std::string_view type, double low, double high) const {
    MR_ASSIGN_OR_RETURN(const std::optional<double> value, number(name, low, high));
    if (!value) return Status::invalid_argument(fmt::format("rope type \"{}\" needs the parameter \"{}\"", type, name));
    return *value;
  }

  Result<std::string> type() const {
    const json::value* value = find("rope_type");
    if (value == nullptr) value = find("type");
    if (value == nullptr) return std::string("default");
    if (!value->is_string()) return Status::invalid_argument(fmt::format("the rope type is {}, expected a text", json::serialize(*value)));
    return std::string(value->get_string());
  }

  Result<std::vector<float>> factors(std::string_view name, std::size_t count) const {
    const json::value* value = find(name);
    if (value == nullptr || !value->is_array())
      return Status::invalid_argument(fmt::format("rope type \"longrope\" needs the list \"{}\"", name));
    std::vector<float> numbers;
    for (const json::value& element : value->get_array()) {
      if (!element.is_number())
        return Status::invalid_argument(fmt::format("rope parameter \"{}\" holds {}, expected numbers", name, json::serialize(element)));
      numbers.push_back(static_cast<float>(element.to_number<double>()));
    }
    if (numbers.size() != count) {
      return Status::invalid_argument(
          fmt::format("rope parameter \"{}\" has {} numbers, expected rotary_dim / 2 = {}", name, numbers.size(), count));
    }
    return numbers;
  }

 private:
  const json::object* object_;
};

std::size_t half_of(const RopeSettings& settings) { return static_cast<std::size_t>(settings.rotary_dim / 2); }

// base ^ (2 i / rotary_dim), f32 as torch computes it.
std::vector<float> wave_lengths(double base, int64_t rotary_dim) {
  std::vector<float> lengths(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = std::pow(static_cast<float>(base), static_cast<float>(2 * i) / static_cast<float>(rotary_dim));
  }
  return lengths;
}

std::vector<float> inverse_frequencies(double base, int64_t rotary_dim) {
  std::vector<float> numbers = wave_lengths(base, rotary_dim);
  for (float& number : numbers) number = 1.0f / number;
  return numbers;
}

Result<double> original_length(const RopeSettings& settings, const Parameters& parameters) {
  if (settings.original_max_positions) return static_cast<double>(*settings.original_max_positions);
  MR_ASSIGN_OR_RETURN(const std::optional<double> own, parameters.number("original_max_position_embeddings", 1, kPositionsMax));
  return own.value_or(static_cast<double>(settings.max_positions));
}

Status scale_llama3(const RopeSettings& settings, const Parameters& parameters, Rope& rope) {
  MR_ASSIGN_OR_RETURN(const double factor, parameters.required("factor", "llama3", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const double low, parameters.required("low_freq_factor", "llama3", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const double high, parameters.required("high_freq_factor", "llama3", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const double length, original_length(settings, parameters));
  if (high == low) return Status::invalid_argument("rope type \"llama3\" needs \"high_freq_factor\" and \"low_freq_factor\" to differ");
  const float low_wave = static_cast<float>(length / low), high_wave = static_cast<float>(length / high);
  for (float& frequency : rope.inv_freq) {
    const float wave = (1.0f / frequency) * static_cast<float>(2 * std::numbers::pi);  // torch divides a number by a tensor in this order
    if (wave > low_wave) {
      frequency = frequency / static_cast<float>(factor);
    } else if (!(wave < high_wave)) {
      const float smooth = ((1.0f / wave) * static_cast<float>(length) - static_cast<float>(low)) / static_cast<float>(high - low);
      frequency = (1.0f - smooth) * frequency / static_cast<float>(factor) + smooth * frequency;
    }
  }
  return Status::ok();
}

Status scale_dynamic(const RopeSettings& settings, const Parameters& parameters, ScaledRope& scaled) {
  MR_ASSIGN_OR_RETURN(const double factor, parameters.required("factor", "dynamic", 1, kFactorMax));
  if (settings.rotary_dim <= 2) return Status::invalid_argument("rope type \"dynamic\" needs a rotary dimension above 2");
  const double positions = static_cast<double>(settings.max_positions);
  const double limit = std::min(std::floor(factor * positions), static_cast<double>(kPositionsMax));
  if (limit <= positions) return Status::ok();
  const double dim = static_cast<double>(settings.rotary_dim);
  const double base = settings.theta * std::pow(factor * limit / positions - (factor - 1), dim / (dim - 2));
  scaled.rope.short_length = settings.max_positions;
  scaled.rope.long_inv_freq = inverse_frequencies(base, settings.rotary_dim);
  scaled.max_positions = static_cast<int64_t>(limit);
  return Status::ok();
}

double yarn_mscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

Status scale_yarn(const RopeSettings& settings, const Parameters& parameters, ScaledRope& scaled) {
  MR_ASSIGN_OR_RETURN(const double length, original_length(settings, parameters));
  MR_ASSIGN_OR_RETURN(const std::optional<double> given_factor, parameters.number("factor", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> attention_factor, parameters.number("attention_factor", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> mscale, parameters.number("mscale", 0, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> mscale_all_dim, parameters.number("mscale_all_dim", 0, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> given_beta_fast, parameters.number("beta_fast", 0, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> given_beta_slow, parameters.number("beta_slow", 0, kFactorMax));
  const double factor = given_factor.value_or(static_cast<double>(settings.max_positions) / length);
  const double beta_fast = given_beta_fast.value_or(0) != 0 ? *given_beta_fast : 32;
  const double beta_slow = given_beta_slow.value_or(0) != 0 ? *given_beta_slow : 1;
  const bool both = mscale.value_or(0) != 0 && mscale_all_dim.value_or(0) != 0;
  const double ratio = both ? yarn_mscale(factor, *mscale) / yarn_mscale(factor, *mscale_all_dim) : yarn_mscale(factor, 1);
  scaled.rope.attention_factor = static_cast<float>(attention_factor.value_or(ratio));

  // Dimensions that turn more than beta_fast times in the original length keep their frequency, fewer than beta_slow: divided by factor.
  if (settings.theta <= 1) return Status::invalid_argument("rope type \"yarn\" needs a theta above 1");
  const double dim = static_cast<double>(settings.rotary_dim);
  const auto dimension_of = [&](double turns) {
    return dim * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(settings.theta));
  };
  double low = dimension_of(beta_fast), high = dimension_of(beta_slow);
  const json::value* truncate = parameters.find("truncate");
  if (settings.truncate.value_or(truncate == nullptr || !truncate->is_bool() || truncate->get_bool())) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  const std::vector<float> waves = wave_lengths(settings.theta, settings.rotary_dim);
  for (std::size_t i = 0; i < waves.size(); ++i) {
    const float ramp = std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    scaled.rope.inv_freq[i] = (1.0f / (static_cast<float>(factor) * waves[i])) * (1.0f - keep) + (1.0f / waves[i]) * keep;
  }
  const double reach = std::min(std::floor(length * factor), static_cast<double>(kPositionsMax));
  scaled.max_positions = std::max(scaled.max_positions, static_cast<int64_t>(reach));
  return Status::ok();
}

Status scale_longrope(const RopeSettings& settings, const Parameters& parameters, Rope& rope) {
  const std::size_t half = half_of(settings);
  std::vector<float> short_factors = settings.short_factors, long_factors = settings.long_factors;
  if (short_factors.empty()) {
    MR_ASSIGN_OR_RETURN(short_factors, parameters.factors("short_factor", half));
    MR_ASSIGN_OR_RETURN(long_factors, parameters.factors("long_factor", half));
  }
  MR_ASSIGN_OR_RETURN(const double length, original_length(settings, parameters));
  MR_ASSIGN_OR_RETURN(const std::optional<double> given_factor, parameters.number("factor", 1e-3, kFactorMax));
  MR_ASSIGN_OR_RETURN(const std::optional<double> attention_factor, parameters.number("attention_factor", 1e-3, kFactorMax));
  const double factor = given_factor.value_or(static_cast<double>(settings.max_positions) / length);
  if (factor > 1 && length <= 1 && !attention_factor)
    return Status::invalid_argument("rope type \"longrope\" needs an original length above 1");
  const double computed = factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(length));
  rope.attention_factor = rope.long_attention_factor = static_cast<float>(attention_factor.value_or(computed));
  rope.short_length = static_cast<int64_t>(length);
  const std::vector<float> waves = wave_lengths(settings.theta, settings.rotary_dim);
  rope.long_inv_freq.resize(half);
  for (std::size_t i = 0; i < half; ++i) {
    rope.inv_freq[i] = 1.0f / (short_factors[i] * waves[i]);
    rope.long_inv_freq[i] = 1.0f / (long_factors[i] * waves[i]);
  }
  return Status::ok();
}

Status check_frequencies(const std::vector<float>& frequencies) {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    if (!(frequencies[i] >= 0) || !std::isfinite(frequencies[i])) {
      return Status::invalid_argument(
          fmt::format("the rope parameters give the inverse frequency {} in dimension {}", frequencies[i], 2 * i));
    }
  }
  return Status::ok();
}

}  // namespace

Result<ScaledRope> make_rope(const RopeSettings& settings) {
  if (settings.rotary_dim < 2 || settings.rotary_dim % 2 != 0) {
    return Status::invalid_argument(fmt::format("the rotary dimension is {}, expected an even number above 0", settings.rotary_dim));
  }
  if (!(settings.theta > 0 && settings.theta < 1e30)) {
    return Status::invalid_argument(fmt::format("rope_theta is {}, expected a number above 0", settings.theta));
  }
  if (settings.original_max_positions && (*settings.original_max_positions < 1 || *settings.original_max_positions > kPositionsMax)) {
    return Status::invalid_argument(
        fmt::format("the original number of positions is {}, expected 1 to 2^31", *settings.original_max_positions));
  }
  for (const auto* factors : {&settings.frequency_factors, &settings.short_factors, &settings.long_factors}) {
    if (!factors->empty() && factors->size() != half_of(settings)) {
      return Status::invalid_argument(
          fmt::format("a tensor of rope factors has {} numbers, expected rotary_dim / 2 = {}", factors->size(), half_of(settings)));
    }
  }
  if (settings.short_factors.empty() != settings.long_factors.empty()) {
    return Status::invalid_argument("a checkpoint has rope factors for short or for long texts, expected both or neither");
  }
  const Parameters parameters(settings.parameters);
  MR_ASSIGN_OR_RETURN(const std::string type, parameters.type());
  ScaledRope scaled;
  scaled.max_positions = settings.max_positions;
  scaled.rope.rotary_dim = settings.rotary_dim;
  scaled.rope.inv_freq = inverse_frequencies(settings.theta, settings.rotary_dim);

  if (type == "longrope" || type == "su" || !settings.short_factors.empty()) {
    MR_RETURN_IF_ERROR(scale_longrope(settings, parameters, scaled.rope));
  } else if (type == "linear") {
    MR_ASSIGN_OR_RETURN(const double factor, parameters.required("factor", "linear", 1e-3, kFactorMax));
    for (float& frequency : scaled.rope.inv_freq) frequency /= static_cast<float>(factor);
  } else if (type == "llama3") {
    MR_RETURN_IF_ERROR(scale_llama3(settings, parameters, scaled.rope));
  } else if (type == "dynamic") {
    MR_RETURN_IF_ERROR(scale_dynamic(settings, parameters, scaled));
  } else if (type == "yarn") {
    MR_RETURN_IF_ERROR(scale_yarn(settings, parameters, scaled));
  } else if (type != "default" && type != "none") {
    return Status::unsupported(
        fmt::format("rope type \"{}\" is not known; known are default, linear, dynamic, llama3, yarn, longrope", type));
  }
  for (std::size_t i = 0; i < settings.frequency_factors.size(); ++i) scaled.rope.inv_freq[i] /= settings.frequency_factors[i];
  MR_RETURN_IF_ERROR(check_frequencies(scaled.rope.inv_freq));
  MR_RETURN_IF_ERROR(check_frequencies(scaled.rope.long_inv_freq));
  return scaled;
}

}  // namespace millrace

#include "millrace/model/rope_scaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "millrace/base/test_data.h"

namespace millrace {
namespace {

using testing::HasSubstr;

void expect_frequencies(const std::vector<float>& got, const json::value& want) {
  ASSERT_EQ(got.size(), want.get_array().size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float expected = want.get_array()[i].to_number<float>();
    EXPECT_NEAR(got[i], expected, 4e-7f * expected) << "dimension " << i;  // three units in the last place: two libraries' powf
  }
}

TEST(RopeScaling, EqualsTransformers) {
  std::ifstream file(source_dir() / "tests/golden/rope_scaling.json");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Result<json::value> golden = parse_json(text);
  ASSERT_TRUE(golden.is_ok()) << golden.status().message();
  for (const json::value& entry : golden->at("cases").get_array()) {
    const json::object& one = entry.get_object();
    SCOPED_TRACE(std::string_view(one.at("name").get_string()));
    RopeSettings settings;
    settings.rotary_dim = one.at("rotary_dim").get_int64();
    settings.theta = one.at("theta").to_number<double>();
    settings.max_positions = one.at("max_positions").get_int64();
    if (one.contains("original")) settings.original_max_positions = one.at("original").get_int64();
    settings.parameters = &one.at("parameters").get_object();
    const Result<ScaledRope> scaled = make_rope(settings);
    ASSERT_TRUE(scaled.is_ok()) << scaled.status().message();
    expect_frequencies(scaled->rope.inv_freq, one.at("inv_freq"));
    EXPECT_FLOAT_EQ(scaled->rope.attention_factor, one.at("attention_factor").to_number<float>());
    EXPECT_EQ(scaled->rope.short_length != 0, one.contains("long_length"));
    if (!one.contains("long_length")) continue;
    expect_frequencies(scaled->rope.long_inv_freq, one.at("long_inv_freq"));
    EXPECT_FLOAT_EQ(scaled->rope.long_attention_factor, one.at("long_attention_factor").to_number<float>());
  }
}

TEST(RopeScaling, SaysHowFarItReaches) {
  const json::value dynamic = json::parse(R"({"rope_type": "dynamic", "factor": 2.5})");
  const json::value yarn = json::parse(R"({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768})");
  const json::value linear = json::parse(R"({"rope_type": "linear", "factor": 4})");
  RopeSettings settings{.rotary_dim = 16, .theta = 1e4, .max_positions = 32768};
  settings.parameters = &dynamic.get_object();
  EXPECT_EQ(make_rope(settings)->max_positions, 81920);
  EXPECT_EQ(make_rope(settings)->rope.short_length, 32768);
  settings.parameters = &yarn.get_object();
  EXPECT_EQ(make_rope(settings)->max_positions, 131072);
  settings.parameters = &linear.get_object();
  EXPECT_EQ(make_rope(settings)->max_positions, 32768);
}

TEST(RopeScaling, TensorsOfAGgufTakeThePlaceOfParameters) {
  RopeSettings settings{.rotary_dim = 4, .theta = 1e4, .max_positions = 8192};
  settings.frequency_factors = {1, 8};
  EXPECT_FLOAT_EQ(make_rope(settings)->rope.inv_freq[1], 0.01f / 8);
  settings.frequency_factors = {};
  settings.original_max_positions = 4096;
  settings.short_factors = {1, 2};
  settings.long_factors = {2, 4};
  const Result<ScaledRope> scaled = make_rope(settings);
  EXPECT_FLOAT_EQ(scaled->rope.inv_freq[1], 0.005f);
  EXPECT_FLOAT_EQ(scaled->rope.long_inv_freq[1], 0.0025f);
  EXPECT_EQ(scaled->rope.short_length, 4096);
  EXPECT_FLOAT_EQ(scaled->rope.attention_factor, std::sqrt(1 + std::log(2.0f) / std::log(4096.0f)));
}

struct BadRope {
  std::string_view parameters, message;
  int64_t rotary_dim = 8;
  double theta = 1e4;
};

TEST(RopeScaling, RefusesWhatMakesNoSense) {
  const BadRope table[] = {
      {R"({"rope_type": "spiral"})", "rope type \"spiral\" is not known"},
      {R"({"rope_type": 3})", "expected a text"},
      {R"({"rope_type": "linear"})", "needs the parameter \"factor\""},
      {R"({"rope_type": "linear", "factor": 0})", "\"factor\" is 0"},
      {R"({"rope_type": "linear", "factor": -2})", "\"factor\" is -2"},
      {R"({"rope_type": "linear", "factor": "2"})", "\"factor\" is \"2\""},
      {R"({"rope_type": "linear", "factor": null})", "needs the parameter"},
      {R"({"rope_type": "dynamic", "factor": 0.5})", "\"factor\" is 5E-1"},
      {R"({"rope_type": "dynamic", "factor": 2})", "above 2", 2},
      {R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})", "to differ"},
      {R"({"rope_type": "yarn", "factor": 4, "attention_factor": 0})", "attention_factor"},
      {R"({"rope_type": "yarn", "factor": 4})", "theta above 1", 8, 1.0},
      {R"({"rope_type": "longrope", "short_factor": [1, 2, 3, 4]})", "needs the list \"long_factor\""},
      {R"({"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [1, 2]})", "expected rotary_dim / 2 = 4"},
      {R"({"rope_type": "longrope", "short_factor": [1, 2, 3, "x"], "long_factor": [1, 2, 3, 4]})", "expected numbers"},
      {R"({"rope_type": "longrope", "short_factor": [1, 0, 3, 4], "long_factor": [1, 2, 3, 4]})", "inverse frequency inf"},
      {R"({"rope_type": "longrope", "short_factor": [1, 2, 3, 4], "long_factor": [1, -2, 3, 4]})", "inverse frequency -"},
      {R"({})", "rotary dimension is 7", 7},
      {R"({})", "rotary dimension is 0", 0},
      {R"({})", "rope_theta is 0", 8, 0.0},
      {R"({})", "rope_theta is nan", 8, std::nan("")},
  };
  for (const BadRope& bad : table) {
    SCOPED_TRACE(bad.parameters);
    const json::value parameters = json::parse(bad.parameters);
    RopeSettings settings{.rotary_dim = bad.rotary_dim, .theta = bad.theta, .max_positions = 4096};
    settings.parameters = &parameters.get_object();
    const Result<ScaledRope> scaled = make_rope(settings);
    ASSERT_FALSE(scaled.is_ok());
    EXPECT_THAT(scaled.status().message(), HasSubstr(bad.message));
  }
}

}  // namespace
}  // namespace millrace

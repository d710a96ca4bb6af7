#include "millrace/server/api_key.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(ApiKeys, AuthorizeBearerAndBasic) {
  const std::vector<ClientKey> secrets = {{"other"}, {"secret"}, {"with space"}};
  const ApiKeys keys(secrets);
  EXPECT_EQ(keys.client_of("Bearer secret"), 1);
  EXPECT_EQ(keys.client_of("bearer  secret"), 1);
  EXPECT_EQ(keys.client_of("Basic OnNlY3JldA=="), 1);      // ":secret"
  EXPECT_EQ(keys.client_of("Basic YW55OnNlY3JldA=="), 1);  // "any:secret"
  EXPECT_EQ(keys.client_of("Bearer other"), 0);
  EXPECT_EQ(keys.client_of("Bearer with space"), 2);
}

TEST(ApiKeys, RefuseEverythingElse) {
  const std::vector<ClientKey> secrets = {{"secret"}, {"longer secret"}};
  const ApiKeys keys(secrets);
  for (const char* header : {"", "secret", "Bearer", "Bearer ", "Bearer Secret", "Bearer secret ", "Bearer secretx", "Bearersecret",
                             "Basic", "Basic ", "Basic c2VjcmV0", "Basic !!!!", "Basic OnNlY3JldA", "Digest secret"}) {
    EXPECT_FALSE(keys.client_of(header).has_value()) << header;
  }
}

TEST(ApiKeys, AreReadFromLines) {
  const auto keys = parse_client_keys("one\n\n  two weight=2.5 \r\nthree and four weight=0.5\nweight=3\n");
  ASSERT_TRUE(keys.is_ok()) << keys.status().message();
  ASSERT_EQ(keys->size(), 4u);
  EXPECT_EQ((*keys)[0].key, "one");
  EXPECT_EQ((*keys)[0].weight, 1);
  EXPECT_EQ((*keys)[1].key, "two");
  EXPECT_EQ((*keys)[1].weight, 2.5);
  EXPECT_EQ((*keys)[2].key, "three and four");
  EXPECT_EQ((*keys)[2].weight, 0.5);
  EXPECT_EQ((*keys)[3].key, "weight=3") << "a weight alone is a key";
  EXPECT_TRUE(parse_client_keys("\n \n")->empty());
}

TEST(ApiKeys, WrongLinesAreNamedWithoutTheirKey) {
  for (const char* weight : {"0", "-1", "nan", "1e9", "2x", "", "inf"}) {
    const auto keys = parse_client_keys(std::string("one\nsecret weight=") + weight);
    ASSERT_FALSE(keys.is_ok()) << weight;
    EXPECT_NE(keys.status().message().find("line 2"), std::string::npos);
    EXPECT_EQ(keys.status().message().find("secret"), std::string::npos);
  }
  EXPECT_FALSE(parse_client_keys("same\nsame weight=2").is_ok());
}

}  // namespace
}  // namespace millrace

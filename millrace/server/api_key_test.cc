#include "millrace/server/api_key.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(ApiKey, AuthorizesBearerAndBasic) {
  const ApiKey key("secret");
  EXPECT_TRUE(key.authorizes("Bearer secret"));
  EXPECT_TRUE(key.authorizes("bearer  secret"));
  EXPECT_TRUE(key.authorizes("Basic OnNlY3JldA=="));      // ":secret"
  EXPECT_TRUE(key.authorizes("Basic YW55OnNlY3JldA=="));  // "any:secret"
}

TEST(ApiKey, RefusesEverythingElse) {
  const ApiKey key("secret");
  for (const char* header : {"", "secret", "Bearer", "Bearer ", "Bearer Secret", "Bearer secret ", "Bearer secretx", "Bearersecret",
                             "Basic", "Basic ", "Basic c2VjcmV0", "Basic !!!!", "Basic OnNlY3JldA", "Digest secret"}) {
    EXPECT_FALSE(key.authorizes(header)) << header;
  }
}

}  // namespace
}  // namespace millrace

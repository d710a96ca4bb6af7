#include "millrace/load/server_url.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(ServerUrl, KeepsHostPortAndPath) {
  const ServerUrl plain = parse_server_url("http://127.0.0.1:8000").value();
  EXPECT_EQ(plain.host, "127.0.0.1");
  EXPECT_EQ(plain.port, 8000);
  EXPECT_EQ(plain.base_path, "");
  EXPECT_EQ(parse_server_url("http://example.org").value().port, 80);
  EXPECT_EQ(parse_server_url("http://h:1/gateway/").value().text(), "http://h:1/gateway");
  // OpenAI's clients are given the address with /v1.
  EXPECT_EQ(parse_server_url("http://h:1/v1/").value().base_path, "");
  const ServerUrl six = parse_server_url("http://[::1]:9").value();
  EXPECT_EQ(six.host, "::1");
  EXPECT_EQ(six.authority(), "[::1]:9");
}

TEST(ServerUrl, RefusesWhatIsNone) {
  for (const char* text :
       {"", "127.0.0.1:8000", "https://h", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:8x",
        "http://h:", "http://[::1", "http://[::1]8", "http://h/a b", "http://h/\r\nX: y", "http://user@h", "http://h/?q"}) {
    const auto url = parse_server_url(text);
    ASSERT_FALSE(url.is_ok()) << text;
    EXPECT_EQ(url.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(url.status().message().find("expected http://HOST:PORT"), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace

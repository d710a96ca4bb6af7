#include "millrace/server/loopback_host.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(LoopbackHost, KnowsThisMachine) {
  for (const char* host : {"localhost", "localhost:8000", "LocalHost:1", "app.localhost", "a.b.localhost:80", "127.0.0.1", "127.0.0.1:8000",
                           "127.255.0.9:1", "[::1]", "[::1]:8000"}) {
    EXPECT_TRUE(is_loopback_host(host)) << host;
  }
}

TEST(LoopbackHost, NothingElse) {
  for (const char* host : {"",
                           ":8000",
                           "evil.example",
                           "evil.example:8000",
                           "127.evil.example",
                           "127.0.0.1.evil.example",
                           "localhost.evil.example",
                           "evillocalhost",
                           ".localhost",
                           "0.0.0.0",
                           "10.0.0.1:8000",
                           "128.0.0.1",
                           "127.1",
                           "::1",
                           "[::1",
                           "[::1]x",
                           "[::2]:8000",
                           "[]",
                           "localhost:80x",
                           "localhost:80:80",
                           "localhost evil.example",
                           "user@localhost",
                           "xn--localhost-"}) {
    EXPECT_FALSE(is_loopback_host(host)) << host;
  }
}

TEST(LoopbackHost, AddressesToListenOn) {
  for (const char* address : {"127.0.0.1", "127.8.0.1", "::1", "localhost"}) EXPECT_TRUE(is_loopback(address)) << address;
  for (const char* address : {"0.0.0.0", "::", "10.0.0.1", "127.evil.example", ""}) EXPECT_FALSE(is_loopback(address)) << address;
}

}  // namespace
}  // namespace millrace

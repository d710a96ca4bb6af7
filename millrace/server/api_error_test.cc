#include "millrace/server/api_error.h"

#include <gtest/gtest.h>

#include "millrace/base/json.h"

namespace millrace {
namespace {

TEST(ApiError, HasOpenAisShape) {
  const HttpResponse response = error_response(invalid_field("top_p", "\"top_p\" is 2, expected a number in (0, 1]"));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.content_type, "application/json");
  EXPECT_EQ(
      response.body,
      R"({"error":{"message":"\"top_p\" is 2, expected a number in (0, 1]","type":"invalid_request_error","param":"top_p","code":null}})");
}

TEST(ApiError, EveryStatusHasItsHttpStatus) {
  EXPECT_EQ(to_api_error(Status::invalid_argument("x")).status, 400);
  EXPECT_EQ(to_api_error(Status::unsupported("x")).status, 400);
  EXPECT_EQ(to_api_error(Status::not_found("x")).status, 404);
  EXPECT_EQ(to_api_error(Status::resource_exhausted("x")).status, 429);
  EXPECT_EQ(to_api_error(Status::unavailable("x")).status, 503);
  EXPECT_EQ(to_api_error(Status::data_loss("x")).status, 500);
}

TEST(ApiError, AnHttpVersionIsTheClientsFault) {
  EXPECT_EQ(http_error(505, "x").type, "invalid_request_error");
  EXPECT_EQ(http_error(500, "x").type, "server_error");
}

TEST(ApiError, InternalMessagesStayInside) {
  EXPECT_EQ(error_json(to_api_error(Status::internal("at 0x7ffc: secret"))).find("secret"), std::string::npos);
}

TEST(ApiError, SaysWhenToRetry) {
  for (const int status : {429, 503}) {
    const HttpResponse response = error_response(http_error(status, "later"));
    ASSERT_EQ(response.headers.size(), 1u);
    EXPECT_EQ(response.headers[0].first, "Retry-After");
  }
  EXPECT_TRUE(error_response(http_error(404, "no")).headers.empty());
}

}  // namespace
}  // namespace millrace

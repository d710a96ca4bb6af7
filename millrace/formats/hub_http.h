#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "millrace/base/status.h"

namespace millrace {

struct HubResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // of get(); of download() only when it failed

  std::string_view header(const std::string& name) const;  // empty when absent
};

// Where download() puts the body.
class BodySink {
 public:
  virtual ~BodySink() = default;
  virtual Status begin(int64_t offset) = 0;  // the body that follows starts here: what was asked for, or 0 if the server ignored it
  virtual Status write(std::span<const char> bytes) = 0;
};

// HTTP as the hub's interface needs it, over libcurl. One attempt per call: retrying is the caller's decision, and any HTTP status
// is a response, not an error. Redirects are followed here, so that the token provably goes to the endpoint's own scheme, host and
// port only, and https never becomes http. Proxies and CA certificates as libcurl finds them.
class HubHttp {
 public:
  HubHttp(std::string endpoint, std::string token);
  ~HubHttp();
  HubHttp(const HubHttp&) = delete;
  HubHttp& operator=(const HubHttp&) = delete;

  const std::string& endpoint() const { return endpoint_; }  // without a slash at the end
  static std::string escape_path(std::string_view path);     // percent-encodes all but letters, digits and "-._~/"

  // `url` is absolute. Errors: kUnavailable for what may work when tried again, kNotFound for an unknown host, kInvalidArgument for a
  // URL or certificate that will not do, kUnsupported for a refused redirect, kResourceExhausted for a body over `max_bytes`.
  Result<HubResponse> get(const std::string& url, std::size_t max_bytes);
  // Follows redirects within the endpoint's own host only: the first answer that leads elsewhere carries the file's metadata.
  Result<HubResponse> head(const std::string& url);
  // GET from `offset` on. The body goes to the sink when the status is 200 or 206. A sink's error is returned as it is.
  Result<HubResponse> download(const std::string& url, int64_t offset, BodySink& sink);

 private:
  struct Hop;
  Result<HubResponse> follow(std::string url, Hop& hop);
  Status perform(const std::string& url, Hop& hop);

  std::string endpoint_, origin_, token_;
  void* curl_;  // CURL*, kept for its open connections
};

}  // namespace millrace

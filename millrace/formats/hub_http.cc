#include "millrace/formats/hub_http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <cctype>
#include <memory>
#include <optional>
#include <utility>

#include "millrace/base/check.h"
#include "millrace/formats/quoted_name.h"

namespace millrace {
namespace {

constexpr int kMaxRedirects = 10;
constexpr std::size_t kMaxHeaderBytes = 64 << 10;
constexpr std::size_t kMaxErrorBytes = 64 << 10;
constexpr long kConnectTimeoutS = 20;
constexpr long kStallTimeoutS = 30;  // below 1 kB/s for so long counts as a dead connection

struct FreeUrl {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, FreeUrl>;

std::string url_part(const Url& url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url.get(), part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
  std::string copy = text;
  curl_free(text);
  return copy;
}

Url parse_url(const std::string& text) {
  Url url(curl_url());
  if (!url || curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) return nullptr;
  return url;
}

// "https://host:port", by which two URLs count as the same server. Empty for what is no URL.
std::string origin_of(const std::string& text) {
  const Url url = parse_url(text);
  if (!url) return {};
  return fmt::format("{}://{}:{}", url_part(url, CURLUPART_SCHEME), url_part(url, CURLUPART_HOST), url_part(url, CURLUPART_PORT));
}

// `location` seen from `base`; empty when it is none.
std::string join_url(const std::string& base, const std::string& location) {
  const Url url = parse_url(base);
  if (!url || curl_url_set(url.get(), CURLUPART_URL, location.c_str(), 0) != CURLUE_OK) return {};
  return url_part(url, CURLUPART_URL);
}

std::string without_query(const std::string& url) { return url.substr(0, url.find('?')); }  // signed URLs carry secrets there

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

bool is_redirect(int status) { return status == 301 || status == 302 || status == 303 || status == 307 || status == 308; }

// kUnavailable for what may work when tried again.
StatusCode code_of(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return StatusCode::kNotFound;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE: return StatusCode::kInvalidArgument;
    default: return StatusCode::kUnavailable;
  }
}

// Where a 206 answer's body starts: "bytes 100-199/200".
std::optional<int64_t> content_range_start(std::string_view header) {
  if (!header.starts_with("bytes ")) return std::nullopt;
  int64_t start = 0;
  std::size_t i = 6;
  for (; i < header.size() && std::isdigit(static_cast<unsigned char>(header[i])) && start < (int64_t{1} << 58); ++i)
    start = start * 10 + (header[i] - '0');
  return i > 6 && i < header.size() && header[i] == '-' ? std::optional<int64_t>(start) : std::nullopt;
}

}  // namespace

// One request and what its callbacks gather.
struct HubHttp::Hop {
  bool is_head = false;
  int64_t offset = 0;
  std::size_t max_bytes = 0;
  BodySink* sink = nullptr;  // null: into response.body

  HubResponse response;
  std::size_t header_bytes = 0;
  bool begun = false;
  Status failure;  // why a callback stopped the transfer

  static std::size_t on_header(char* data, std::size_t, std::size_t size, void* self) {
    Hop& hop = *static_cast<Hop*>(self);
    std::string_view line(data, size);
    hop.header_bytes += size;
    if (hop.header_bytes > kMaxHeaderBytes) {
      hop.failure = Status::resource_exhausted("the answer's headers are larger than 64 KiB");
      return 0;
    }
    if (line.starts_with("HTTP/")) {  // also after "100 Continue" and the like
      hop.response.headers.clear();
      return size;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) return size;
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && std::isspace(static_cast<unsigned char>(value.front()))) value.remove_prefix(1);
    while (!value.empty() && std::isspace(static_cast<unsigned char>(value.back()))) value.remove_suffix(1);
    hop.response.headers[lower(line.substr(0, colon))] = value;
    return size;
  }

  Status take(int status, std::span<const char> bytes) {
    if (sink == nullptr || (status != 200 && status != 206)) {
      const std::size_t limit = sink == nullptr && status == 200 ? max_bytes : kMaxErrorBytes;
      if (response.body.size() + bytes.size() > limit)
        return Status::resource_exhausted(fmt::format("the answer is larger than {} bytes", limit));
      response.body.append(bytes.data(), bytes.size());
      return Status::ok();
    }
    if (!begun) {
      const int64_t start = status == 206 ? content_range_start(response.header("content-range")).value_or(-1) : 0;
      if (status == 206 && start != offset) {
        return Status::unavailable(
            fmt::format("asked for bytes from {} on, the server sent {}", offset, quoted_name(response.header("content-range"))));
      }
      MR_RETURN_IF_ERROR(sink->begin(start));
      begun = true;
    }
    return sink->write(bytes);
  }

  CURL* curl = nullptr;
  static std::size_t on_body(char* data, std::size_t, std::size_t size, void* self) {
    Hop& hop = *static_cast<Hop*>(self);
    long status = 0;
    curl_easy_getinfo(hop.curl, CURLINFO_RESPONSE_CODE, &status);
    hop.failure = hop.take(static_cast<int>(status), {data, size});
    return hop.failure.is_ok() ? size : 0;
  }
};

std::string_view HubResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

HubHttp::HubHttp(std::string endpoint, std::string token) : endpoint_(std::move(endpoint)), token_(std::move(token)) {
  while (endpoint_.ends_with('/')) endpoint_.pop_back();
  origin_ = origin_of(endpoint_);
  [[maybe_unused]] static const CURLcode once = curl_global_init(CURL_GLOBAL_DEFAULT);
  curl_ = curl_easy_init();
  MR_CHECK(curl_ != nullptr, "libcurl is out of memory");
}

HubHttp::~HubHttp() { curl_easy_cleanup(curl_); }

std::string HubHttp::escape_path(std::string_view path) {
  std::string escaped;
  for (const char c : path) {
    if (std::isalnum(static_cast<unsigned char>(c)) || std::string_view("-._~/").find(c) != std::string_view::npos) {
      escaped += c;
    } else {
      escaped += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return escaped;
}

Status HubHttp::perform(const std::string& url, Hop& hop) {
  hop.response = {};
  hop.header_bytes = 0;
  hop.begun = false;
  hop.curl = curl_;
  curl_easy_reset(curl_);
  char error[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl_, CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(curl_, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl_, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl_, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl_, CURLOPT_USERAGENT, "millrace/" MILLRACE_VERSION);
  curl_easy_setopt(curl_, CURLOPT_CONNECTTIMEOUT, kConnectTimeoutS);
  curl_easy_setopt(curl_, CURLOPT_LOW_SPEED_LIMIT, 1000L);
  curl_easy_setopt(curl_, CURLOPT_LOW_SPEED_TIME, kStallTimeoutS);
  curl_easy_setopt(curl_, CURLOPT_HEADERFUNCTION, &Hop::on_header);
  curl_easy_setopt(curl_, CURLOPT_HEADERDATA, &hop);
  curl_easy_setopt(curl_, CURLOPT_WRITEFUNCTION, &Hop::on_body);
  curl_easy_setopt(curl_, CURLOPT_WRITEDATA, &hop);
  if (hop.is_head) curl_easy_setopt(curl_, CURLOPT_NOBODY, 1L);
  if (hop.offset > 0) curl_easy_setopt(curl_, CURLOPT_RANGE, fmt::format("{}-", hop.offset).c_str());

  // The file's own bytes and length are wanted, not a compressed form of them.
  curl_slist* headers = curl_slist_append(nullptr, "Accept-Encoding: identity");
  if (!token_.empty() && origin_of(url) == origin_) headers = curl_slist_append(headers, ("Authorization: Bearer " + token_).c_str());
  curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, headers);
  const CURLcode code = curl_easy_perform(curl_);
  curl_slist_free_all(headers);

  if (!hop.failure.is_ok()) return hop.failure;
  if (code != CURLE_OK) {
    return {code_of(code), fmt::format("{}: {}", without_query(url), error[0] != '\0' ? error : curl_easy_strerror(code))};
  }
  long status = 0;
  curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &status);
  hop.response.status = static_cast<int>(status);
  return Status::ok();
}

Result<HubResponse> HubHttp::follow(std::string url, Hop& hop) {
  std::map<std::string, std::string> linked;
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    MR_RETURN_IF_ERROR(perform(url, hop));
    // What an earlier hop said of the file holds for it wherever it lies in the end.
    for (const char* name : {"x-linked-etag", "x-linked-size", "x-repo-commit"}) {
      if (const auto value = hop.response.header(name); !value.empty()) linked[name] = value;
    }
    hop.response.headers.insert(linked.begin(), linked.end());
    if (!is_redirect(hop.response.status)) return std::move(hop.response);
    const std::string next = join_url(url, std::string(hop.response.header("location")));
    const std::string origin = origin_of(next);
    if (hop.is_head && origin != origin_) return std::move(hop.response);
    if (!origin.starts_with("http://") && !origin.starts_with("https://")) {
      return Status::unsupported(fmt::format("{}: redirected to {}, which is no http or https URL", without_query(url),
                                             quoted_name(hop.response.header("location"))));
    }
    if (url.starts_with("https://") && origin.starts_with("http://")) {
      return Status::unsupported(fmt::format("{}: redirected from https to http ({}), which is refused", without_query(url), origin));
    }
    url = next;
  }
  return Status::unsupported(fmt::format("{}: more than {} redirects", without_query(url), kMaxRedirects));
}

Result<HubResponse> HubHttp::get(const std::string& url, std::size_t max_bytes) {
  Hop hop;
  hop.max_bytes = max_bytes;
  return follow(url, hop);
}

Result<HubResponse> HubHttp::head(const std::string& url) {
  Hop hop;
  hop.is_head = true;
  return follow(url, hop);
}

Result<HubResponse> HubHttp::download(const std::string& url, int64_t offset, BodySink& sink) {
  Hop hop;
  hop.offset = offset;
  hop.sink = &sink;
  MR_ASSIGN_OR_RETURN(HubResponse response, follow(url, hop));
  if (!hop.begun && response.status == 200) MR_RETURN_IF_ERROR(sink.begin(0));  // an empty file
  return response;
}

}  // namespace millrace

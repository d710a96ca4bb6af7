#include "millrace/server/web_assets.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <array>

// Begin and end of each file, from the generated assembler source.
extern "C" {
extern const char millrace_web_index_html[], millrace_web_index_html_end[];
extern const char millrace_web_app_css[], millrace_web_app_css_end[];
extern const char millrace_web_app_js[], millrace_web_app_js_end[];
extern const char millrace_web_markdown_js[], millrace_web_markdown_js_end[];
extern const char millrace_web_favicon_svg[], millrace_web_favicon_svg_end[];
}

namespace millrace {
namespace {

WebAsset make_asset(std::string_view path, std::string_view content_type, const char* begin, const char* end) {
  const std::string_view content(begin, static_cast<std::size_t>(end - begin));
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(content.data()), content.size(), hash);
  std::string etag = "\"";
  for (int i = 0; i < 12; ++i) etag += fmt::format("{:02x}", hash[i]);
  return {path, content_type, content, etag + '"'};
}

}  // namespace

std::span<const WebAsset> web_assets() {
  static const std::array assets = {
      make_asset("/", "text/html; charset=utf-8", millrace_web_index_html, millrace_web_index_html_end),
      make_asset("/app.css", "text/css; charset=utf-8", millrace_web_app_css, millrace_web_app_css_end),
      make_asset("/app.js", "text/javascript; charset=utf-8", millrace_web_app_js, millrace_web_app_js_end),
      make_asset("/markdown.js", "text/javascript; charset=utf-8", millrace_web_markdown_js, millrace_web_markdown_js_end),
      make_asset("/favicon.svg", "image/svg+xml", millrace_web_favicon_svg, millrace_web_favicon_svg_end),
  };
  return assets;
}

}  // namespace millrace

#pragma once

#include <span>
#include <string>
#include <string_view>

namespace millrace {

// A file of web/, embedded in the binary (cmake/web_assets.cmake).
struct WebAsset {
  std::string_view path;  // "/app.js"; the page itself is "/"
  std::string_view content_type;
  std::string_view content;
  std::string etag;  // quoted, from the content's SHA-256
};

std::span<const WebAsset> web_assets();

}  // namespace millrace

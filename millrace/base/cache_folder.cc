#include "millrace/base/cache_folder.h"

#include <cstdlib>
#include <string_view>

namespace millrace {

std::string cache_folder() {
  if (const char* own = std::getenv("MILLRACE_CACHE")) {
    if (std::string_view(own) == "off") return {};
    if (own[0] == '/') return own;
  }
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && xdg[0] == '/') return std::string(xdg) + "/millrace";
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/') return std::string(home) + "/.cache/millrace";
  return {};
}

}  // namespace millrace

#pragma once

#include <string>
#include <string_view>

namespace millrace {

// A name out of an untrusted file, quoted for an error message: bytes outside printable ASCII become \xNN, and what is longer than
// 120 bytes is cut with "...". A hostile file can thus neither forge log lines nor fill them.
std::string quoted_name(std::string_view name);

}  // namespace millrace

#pragma once

#include <string>

namespace millrace {

// Where this program may keep what it can make again: $MILLRACE_CACHE, else $XDG_CACHE_HOME/millrace, else $HOME/.cache/millrace. Empty:
// nowhere, since MILLRACE_CACHE is "off" or none of them is set. Relative paths are ignored, as the XDG specification asks.
std::string cache_folder();

}  // namespace millrace

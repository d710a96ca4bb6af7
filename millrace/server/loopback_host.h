// Which addresses and names mean this machine. A page on another site can point its own name at 127.0.0.1 (DNS rebinding) and then
// read a server there as if it were its own; only the Host field tells such a request apart.
#pragma once

#include <string_view>

namespace millrace {

// Whether an address to listen on is reached from this machine only.
bool is_loopback(std::string_view address);

// Whether a Host field, with or without port, names this machine whatever DNS says: localhost, *.localhost, 127.0.0.0/8, [::1].
bool is_loopback_host(std::string_view host);

}  // namespace millrace

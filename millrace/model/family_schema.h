#pragma once

#include <string_view>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// Whether `description` is written in the language of families: every word known, in its place, of the right kind, and every
// expression well-formed. Errors begin with the place, "layers[0].attention.position.pairing".
Status check_family_words(const json::object& description);

}  // namespace millrace

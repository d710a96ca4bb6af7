#pragma once

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/formats/gguf.h"

namespace millrace {

// A GGUF's metadata as one flat JSON object, so that a model's configuration is read the same way from either format:
// "llama.block_count": 30. Arrays of more than 4096 elements (vocabularies) stay out, as do texts that are not UTF-8; a NaN or
// infinity, which JSON has not, is null or +-1e308. More than a million array elements in all is an error.
Result<json::object> gguf_config(const GgufFile& gguf);

}  // namespace millrace

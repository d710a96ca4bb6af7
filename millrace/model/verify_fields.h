#pragma once

#include <cstdint>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/model/verify.h"

// Reading a reference file: shared by what verifies decoders and what verifies encoders.
namespace millrace {

// Errors name the field.
Result<const json::value*> reference_field(const json::object& object, const char* name);
Result<std::vector<double>> reference_numbers(const json::value& value, const char* name);
Result<std::vector<int32_t>> reference_token_ids(const json::value& value, const char* name);

// "kind": "encoder" or "classify".
Result<VerifyReport> verify_encoder(const json::object& reference, const MakeExecutor& make_executor, const VerifyTolerance& tolerance);

}  // namespace millrace

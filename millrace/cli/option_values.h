#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

// What an option's value must be. A refusal says what was found and what is expected; NaN is no number, and -5 bytes are not 2^64 - 5.
namespace millrace::cli {

CLI::Validator whole_number(int64_t minimum);
CLI::Validator number_within(double minimum, double maximum);
// Bytes: a number, or one with a unit such as 512MB, which is replaced by its bytes.
CLI::Validator size_in_bytes(int64_t minimum);

}  // namespace millrace::cli

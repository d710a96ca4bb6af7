#include "millrace/model/verify_fields.h"

#include <fmt/format.h>

#include <cmath>

namespace millrace {

Result<const json::value*> reference_field(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr) return Status::invalid_argument(fmt::format("reference: \"{}\" is missing", name));
  return value;
}

Result<std::vector<double>> reference_numbers(const json::value& value, const char* name) {
  if (!value.is_array()) return Status::invalid_argument(fmt::format("reference: \"{}\" is no list of numbers", name));
  std::vector<double> out;
  for (const json::value& item : value.as_array()) {
    if (!item.is_number()) return Status::invalid_argument(fmt::format("reference: \"{}\" is no list of numbers", name));
    out.push_back(item.to_number<double>());
  }
  return out;
}

Result<std::vector<int32_t>> reference_token_ids(const json::value& value, const char* name) {
  MR_ASSIGN_OR_RETURN(auto values, reference_numbers(value, name));
  std::vector<int32_t> out;
  for (double number : values) {
    if (number != std::floor(number) || number < 0 || number > INT32_MAX)
      return Status::invalid_argument(fmt::format("reference: \"{}\" holds {}, which is no token id", name, number));
    out.push_back(static_cast<int32_t>(number));
  }
  return out;
}

}  // namespace millrace

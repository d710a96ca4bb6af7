#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {
namespace {

bool is_tuple(const List& list) { return list.kind == ListKind::kTuple || list.kind == ListKind::kGroup; }

bool comparable(const List& a, const List& b) {
  if (is_tuple(a)) return is_tuple(b);
  return a.kind == b.kind &&
         (a.kind == ListKind::kList || a.kind == ListKind::kRange || a.kind == ListKind::kDictKeys || a.kind == ListKind::kDictItems);
}

}  // namespace

bool equal(Budget& budget, const Value& a, const Value& b) {
  budget.charge_bytes(16);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
    return a.as_double() == b.as_double();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kString:
      budget.charge_bytes(std::min(a.text().bytes.size(), b.text().bytes.size()));
      return a.text().bytes == b.text().bytes;
    case Kind::kList: {
      if (a.list_ptr() == b.list_ptr()) return true;
      if (!comparable(a.list(), b.list()) || a.list().items.size() != b.list().items.size()) return false;
      for (std::size_t i = 0; i < a.list().items.size(); ++i) {
        if (!equal(budget, a.list().items[i], b.list().items[i])) return false;
      }
      return true;
    }
    case Kind::kDict: {
      if (a.dict_ptr() == b.dict_ptr()) return true;
      if (a.dict().entries.size() != b.dict().entries.size()) return false;
      for (const auto& [key, value] : a.dict().entries) {
        const Value* other = b.dict().find(key);
        if (other == nullptr || !equal(budget, value, *other)) return false;
      }
      return true;
    }
    case Kind::kMethod: return a.method().function == b.method().function && equal(budget, a.method().self, b.method().self);
    case Kind::kObject: return a.object() == b.object();
    default: return true;  // None and None, undefined and undefined
  }
}

bool less(Budget& budget, const Value& a, const Value& b, std::string_view operation) {
  budget.charge_bytes(16);
  require_defined(a);
  require_defined(b);
  if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int();
  if (a.is_number() && b.is_number()) return a.as_double() < b.as_double();
  if (a.is_string() && b.is_string()) {
    // UTF-8 sorts by code point, as Python does.
    budget.charge_bytes(std::min(a.text().bytes.size(), b.text().bytes.size()));
    return a.text().bytes < b.text().bytes;
  }
  if (a.is_list() && b.is_list() && comparable(a.list(), b.list()) && (is_tuple(a.list()) || a.list().kind == ListKind::kList)) {
    const auto& x = a.list().items;
    const auto& y = b.list().items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(budget, x[i], y[i])) return less(budget, x[i], y[i], operation);
    }
    return x.size() < y.size();
  }
  fail(fmt::format("'{}' not supported between instances of '{}' and '{}'", operation, type_name(a), type_name(b)));
}

}  // namespace millrace::jinja

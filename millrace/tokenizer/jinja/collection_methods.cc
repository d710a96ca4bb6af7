// Methods of lists, tuples and dicts that only look.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {
namespace {

Value keys(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  arguments.bind("keys", {});
  return make_list(runtime.iterate(self), ListKind::kDictKeys);
}

Value values(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  arguments.bind("values", {});
  std::vector<Value> items;
  runtime.budget().charge_bytes(self.dict().entries.size() * sizeof(Value));
  for (const auto& entry : self.dict().entries) items.push_back(entry.second);
  return make_list(std::move(items), ListKind::kDictValues);
}

Value items(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  arguments.bind("items", {});
  std::vector<Value> pairs;
  runtime.budget().charge_bytes(self.dict().entries.size() * 4 * sizeof(Value));
  for (const auto& [key, value] : self.dict().entries) pairs.push_back(make_list({key, value}, ListKind::kTuple));
  return make_list(std::move(pairs), ListKind::kDictItems);
}

Value get(Runtime&, const Value& self, const CallArguments& arguments) {
  if (!arguments.named.empty()) fail("dict.get() takes no keyword arguments");
  const auto bound = arguments.bind("get", {"key", "default"});
  if (!bound[0].has_value()) fail("get expected at least 1 argument, got 0");
  if (const Value* value = self.dict().find(*bound[0])) return *value;
  return bound[1].has_value() ? *bound[1] : Value(None{});
}

Value copy(Runtime&, const Value& self, const CallArguments& arguments) {
  arguments.bind("copy", {});
  return self;
}

Value count(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("count", {"value"});
  if (!bound[0].has_value()) fail("count() takes exactly one argument (0 given)");
  const auto& all = self.list().items;
  return static_cast<int64_t>(std::count_if(all.begin(), all.end(), [&](const Value& v) { return equal(runtime.budget(), v, *bound[0]); }));
}

Value index(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("index", {"value", "start", "stop"});
  if (!bound[0].has_value()) fail("index expected at least 1 argument, got 0");
  const auto& all = self.list().items;
  const auto size = static_cast<int64_t>(all.size());
  const auto position = [&](const std::optional<Value>& value, int64_t fallback) {
    if (!value.has_value()) return fallback;
    const int64_t at = require_integer(*value, "slice indices");
    return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
  };
  for (int64_t i = position(bound[1], 0); i < position(bound[2], size); ++i) {
    if (equal(runtime.budget(), all[static_cast<std::size_t>(i)], *bound[0])) return i;
  }
  fail("the value is not in the list");
}

constexpr NamedMethod kDictMethods[] = {{"get", get}, {"items", items}, {"keys", keys}, {"values", values}, {"copy", copy}};
constexpr NamedMethod kSequenceMethods[] = {{"count", count}, {"index", index}};
constexpr NamedMethod kListCopy = {"copy", copy};
constexpr std::array<std::string_view, 5> kDictMutators = {"clear", "pop", "popitem", "setdefault", "update"};
constexpr std::array<std::string_view, 8> kListMutators = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};

}  // namespace

const NamedMethod* find_collection_method(const Value& self, std::string_view name) {
  if (self.is_dict()) {
    for (const auto& method : kDictMethods) {
      if (method.name == name) return &method;
    }
  } else if (self.is_list() && self.list().can_be_indexed()) {
    for (const auto& method : kSequenceMethods) {
      if (method.name == name) return &method;
    }
    if (name == "copy" && self.list().kind == ListKind::kList) return &kListCopy;
  }
  return nullptr;
}

bool is_mutating_method(const Value& self, std::string_view name) {
  if (self.is_dict()) return std::find(kDictMutators.begin(), kDictMutators.end(), name) != kDictMutators.end();
  if (!self.is_list() || self.list().kind != ListKind::kList) return false;
  return std::find(kListMutators.begin(), kListMutators.end(), name) != kListMutators.end();
}

}  // namespace millrace::jinja

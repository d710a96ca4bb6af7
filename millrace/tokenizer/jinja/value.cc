#include "millrace/tokenizer/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {
namespace {

constexpr std::size_t kIndexedDictSize = 16;

int depth_of(const Value& value) {
  if (value.is_list()) return value.list().depth;
  return value.is_dict() ? value.dict().depth : 0;
}

void check_depth(int depth) {
  if (depth > kMaxValueDepth) throw LimitError{fmt::format("lists and dicts nest deeper than {}", kMaxValueDepth)};
}

void require_hashable(const Value& key) {
  if (key.is_dict()) fail("unhashable type: 'dict'");
  if (!key.is_list()) return;
  if (key.list().kind == ListKind::kList) fail("unhashable type: 'list'");
  for (const Value& item : key.list().items) require_hashable(item);
}

// A budget for lookups whose cost was charged already.
Budget& free_budget() {
  thread_local Budget budget(0);
  budget = Budget(INT64_MAX);
  return budget;
}

}  // namespace

std::optional<Value> Object::attribute(Runtime&, std::string_view) { return std::nullopt; }
Value Object::call(Runtime&, const CallArguments&) { fail(fmt::format("'{}' object is not callable", type_name())); }

Value make_list(std::vector<Value> items, ListKind kind) {
  auto list = std::make_shared<List>();
  list->kind = kind;
  for (const Value& item : items) list->depth = std::max(list->depth, depth_of(item) + 1);
  check_depth(list->depth);
  list->items = std::move(items);
  return Value(std::shared_ptr<const List>(std::move(list)));
}

std::size_t Dict::index_of(std::string_view key) const {
  if (!index_.empty()) {
    const auto found = index_.find(std::string(key));
    return found == index_.end() ? entries.size() : found->second;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].first.is_string() && entries[i].first.text().bytes == key) return i;
  }
  return entries.size();
}

const Value* Dict::find(std::string_view key) const {
  const std::size_t i = index_of(key);
  return i < entries.size() ? &entries[i].second : nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(key.text().bytes);
  require_hashable(key);
  for (const auto& [k, v] : entries) {
    if (!k.is_string() && equal(free_budget(), k, key)) return &v;
  }
  return nullptr;
}

void Dict::set(Value key, Value value) {
  if (const Value* present = find(key)) {
    *const_cast<Value*>(present) = std::move(value);
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexedDictSize) return;
  for (std::size_t i = index_.empty() ? 0 : entries.size() - 1; i < entries.size(); ++i) {
    if (entries[i].first.is_string()) index_.emplace(entries[i].first.text().bytes, i);
  }
}

Value Dict::finish() && {
  for (const auto& [key, value] : entries) depth = std::max({depth, depth_of(key) + 1, depth_of(value) + 1});
  check_depth(depth);
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(*this))));
}

std::vector<std::optional<Value>> CallArguments::bind(std::string_view function, std::initializer_list<std::string_view> parameters) const {
  if (positional.size() > parameters.size()) {
    fail(fmt::format("{}() takes at most {} arguments ({} given)", function, parameters.size(), positional.size()));
  }
  std::vector<std::optional<Value>> bound(parameters.size());
  std::copy(positional.begin(), positional.end(), bound.begin());
  for (const auto& [name, value] : named) {
    const auto parameter = std::find(parameters.begin(), parameters.end(), name);
    if (parameter == parameters.end()) fail(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    auto& slot = bound[static_cast<std::size_t>(parameter - parameters.begin())];
    if (slot.has_value()) fail(fmt::format("{}() got multiple values for argument '{}'", function, name));
    slot = value;
  }
  return bound;
}

Undefined make_undefined(std::string message) { return {std::make_shared<const std::string>(std::move(message))}; }

Value from_json(Budget& budget, const json::value& value, int depth) {
  check_depth(depth);
  switch (value.kind()) {
    case json::kind::null: return None{};
    case json::kind::bool_: return value.get_bool();
    case json::kind::int64: return value.get_int64();
    // Not handled: integers above 2^63 - 1 lose digits, as if they had been written with a decimal point.
    case json::kind::uint64:
      if (value.get_uint64() > static_cast<uint64_t>(INT64_MAX)) return static_cast<double>(value.get_uint64());
      return static_cast<int64_t>(value.get_uint64());
    case json::kind::double_: return value.get_double();
    case json::kind::string: {
      const auto& string = value.get_string();
      budget.charge_bytes(string.size());
      return make_text(std::string(string.data(), string.size()), true);
    }
    case json::kind::array: {
      std::vector<Value> items;
      items.reserve(value.get_array().size());
      for (const auto& item : value.get_array()) items.push_back(from_json(budget, item, depth + 1));
      return make_list(std::move(items));
    }
    case json::kind::object: {
      Dict dict;
      for (const auto& entry : value.get_object()) {
        budget.charge_bytes(entry.key().size());
        dict.set(make_text(std::string(entry.key()), true), from_json(budget, entry.value(), depth + 1));
      }
      return std::move(dict).finish();
    }
  }
  return None{};
}

std::string type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return value.text().markup ? "Markup" : "str";
    case Kind::kDict: return "dict";
    case Kind::kMethod: return "builtin_function_or_method";
    case Kind::kObject: return value.object()->type_name();
    case Kind::kList: break;
  }
  switch (value.list().kind) {
    case ListKind::kList: return "list";
    case ListKind::kTuple: return "tuple";
    case ListKind::kRange: return "range";
    case ListKind::kDictKeys: return "dict_keys";
    case ListKind::kDictValues: return "dict_values";
    case ListKind::kDictItems: return "dict_items";
    case ListKind::kGenerator: return "generator";
    case ListKind::kGroup: return "_GroupTuple";
  }
  return "list";
}

void require_defined(const Value& value) {
  if (value.is_undefined()) fail(value.undefined().message ? *value.undefined().message : "value is undefined");
}

bool contains_user_text(const Value& value, int depth) {
  if (value.is_string()) return value.text().has_user();
  if (depth > kMaxValueDepth) return true;
  if (value.is_list()) {
    return std::any_of(value.list().items.begin(), value.list().items.end(),
                       [&](const Value& v) { return contains_user_text(v, depth + 1); });
  }
  if (value.is_dict()) {
    return std::any_of(value.dict().entries.begin(), value.dict().entries.end(),
                       [&](const auto& e) { return contains_user_text(e.first, depth + 1) || contains_user_text(e.second, depth + 1); });
  }
  return false;
}

}  // namespace millrace::jinja

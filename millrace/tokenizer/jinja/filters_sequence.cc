// Filters over sequences. jinja2's lazy ones give generators here too: true, without length, good for one pass.
#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

Value generator(std::vector<Value> items) { return make_list(std::move(items), ListKind::kGenerator); }

// "a.0.b": keys to follow one after the other.
class AttributePath {
 public:
  explicit AttributePath(Runtime& runtime, const Value& path) : runtime_(runtime) {
    if (path.is_none()) return;
    require_defined(path);
    if (!path.is_string()) {
      keys_.push_back(path);
      return;
    }
    const std::string& text = path.text().bytes;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t dot = std::min(text.find('.', begin), text.size());
      const std::string part = text.substr(begin, dot - begin);
      const bool number =
          !part.empty() && part.size() < 18 && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
      keys_.push_back(number ? Value(int64_t{std::atoll(part.c_str())}) : Value(make_text(part)));
      begin = dot + 1;
    }
  }

  Value of(Value item, const std::optional<Value>& fallback = std::nullopt) const {
    for (const Value& key : keys_) {
      item = runtime_.get_item(item, key);
      if (item.is_undefined() && fallback.has_value() && !fallback->is_none()) item = *fallback;
    }
    return item;
  }

 private:
  Runtime& runtime_;
  std::vector<Value> keys_;
};

Value fold_case(Runtime& runtime, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return converted_text(runtime.budget(), value.text(), to_lower(value.text().bytes));
}

bool flag(Runtime& runtime, const std::optional<Value>& value) { return value.has_value() && runtime.is_true(*value); }
Value or_none(const std::optional<Value>& value) { return value.has_value() ? *value : Value(None{}); }

// Stable, and with the keys computed once, as sorted() does. `reverse` keeps equal items in their order.
std::vector<Value> sort_by(Runtime& runtime, std::vector<std::pair<Value, Value>> keyed, bool reverse) {
  runtime.budget().charge_steps(static_cast<int64_t>(keyed.size()));
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(runtime.budget(), b.first, a.first) : less(runtime.budget(), a.first, b.first);
  });
  std::vector<Value> sorted;
  sorted.reserve(keyed.size());
  for (auto& [key, item] : keyed) sorted.push_back(std::move(item));
  return sorted;
}

Value first(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("first", {});
  if (input.is_string()) {
    const Value item = runtime.get_item(input, Value(int64_t{0}));
    return item.is_undefined() ? Value(make_undefined("No first item, sequence was empty.")) : item;
  }
  if (input.is_list() && input.list().is_generator()) {
    const List& list = input.list();
    if (list.num_consumed < list.items.size()) return list.items[list.num_consumed++];
    return make_undefined("No first item, sequence was empty.");
  }
  const std::vector<Value> items = runtime.iterate(input);
  return items.empty() ? Value(make_undefined("No first item, sequence was empty.")) : items.front();
}

Value last(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("last", {});
  if (input.is_list() && input.list().is_generator()) fail("'generator' object is not reversible");
  const std::vector<Value> items = runtime.iterate(input);
  return items.empty() ? Value(make_undefined("No last item, sequence was empty.")) : items.back();
}

Value length(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("length", {});
  const std::optional<int64_t> size = runtime.length(input);
  if (!size.has_value()) fail(fmt::format("object of type '{}' has no len()", type_name(input)));
  return *size;
}

Value list(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("list", {});
  return make_list(runtime.iterate(input));
}

Value join(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("join", {"d", "attribute"});
  std::vector<Value> items = runtime.iterate(input);
  if (bound[1].has_value() && !bound[1]->is_none()) {
    const AttributePath path(runtime, *bound[1]);
    for (Value& item : items) item = path.of(item);
  }
  // Without autoescape a separator is plain text.
  TextBuilder out(runtime.budget());
  const TextPtr separator = bound[0].has_value() ? runtime.text_of(*bound[0]) : make_text("");
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(*separator);
    out.append(*runtime.text_of(items[i]));
  }
  return out.finish();
}

Value reverse(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("reverse", {});
  if (input.is_string()) return slice(runtime, input, None{}, None{}, Value(int64_t{-1}));
  std::vector<Value> items = runtime.iterate(input);
  std::reverse(items.begin(), items.end());
  return generator(std::move(items));
}

Value sort(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<AttributePath> paths;
  if (bound[2].has_value() && bound[2]->is_string()) {
    const std::string& text = bound[2]->text().bytes;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t comma = std::min(text.find(',', begin), text.size());
      paths.emplace_back(runtime, Value(make_text(text.substr(begin, comma - begin))));
      begin = comma + 1;
    }
  } else {
    paths.emplace_back(runtime, or_none(bound[2]));
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : runtime.iterate(input)) {
    std::vector<Value> key;
    for (const AttributePath& path : paths) key.push_back(fold_case(runtime, path.of(item), flag(runtime, bound[1])));
    keyed.emplace_back(make_list(std::move(key)), item);
  }
  return make_list(sort_by(runtime, std::move(keyed), flag(runtime, bound[0])));
}

Value dictsort(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  std::string by = "key";
  if (bound[1].has_value()) by = runtime.text_of(*bound[1])->bytes;
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  require_defined(input);
  if (!input.is_dict()) fail(fmt::format("'{}' object has no attribute 'items'", type_name(input)));
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : input.dict().entries) {
    keyed.emplace_back(fold_case(runtime, by == "key" ? key : value, flag(runtime, bound[0])), make_list({key, value}, ListKind::kTuple));
  }
  return make_list(sort_by(runtime, std::move(keyed), flag(runtime, bound[2])));
}

Value unique(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("unique", {"case_sensitive", "attribute"});
  const AttributePath path(runtime, or_none(bound[1]));
  Dict seen;
  std::vector<Value> items;
  for (const Value& item : runtime.iterate(input)) {
    const Value key = fold_case(runtime, path.of(item), flag(runtime, bound[0]));
    runtime.budget().charge_bytes(key.is_string() ? 64 : 64 + seen.entries.size() * 16);
    if (seen.find(key) != nullptr) continue;
    seen.set(key, None{});
    items.push_back(item);
  }
  return generator(std::move(items));
}

template <bool wants_max>
Value extreme(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind(wants_max ? "max" : "min", {"case_sensitive", "attribute"});
  const AttributePath path(runtime, or_none(bound[1]));
  std::optional<std::pair<Value, Value>> best;
  for (const Value& item : runtime.iterate(input)) {
    Value key = fold_case(runtime, path.of(item), flag(runtime, bound[0]));
    const bool better =
        !best.has_value() || (wants_max ? less(runtime.budget(), best->first, key, ">") : less(runtime.budget(), key, best->first));
    if (better) best.emplace(std::move(key), item);
  }
  return best.has_value() ? best->second : Value(make_undefined("No aggregated item, sequence was empty."));
}

Value sum(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("sum", {"attribute", "start"});
  const AttributePath path(runtime, or_none(bound[0]));
  Value total = bound[1].has_value() ? *bound[1] : Value(int64_t{0});
  if (total.is_string()) fail("sum() can't sum strings");
  for (const Value& item : runtime.iterate(input)) total = arithmetic(runtime, ArithmeticOp::kAdd, total, path.of(item));
  return total;
}

Value items(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("items", {});
  if (input.is_undefined()) return generator({});
  if (!input.is_dict()) fail("Can only get item pairs from a mapping.");
  return generator(runtime.iterate(find_collection_method(input, "items")->function(runtime, input, {})));
}

Value map(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  if (!runtime.is_true(input)) return generator({});
  std::vector<Value> results;
  const bool by_attribute = arguments.positional.empty() && std::any_of(arguments.named.begin(), arguments.named.end(),
                                                                        [](const auto& a) { return a.first == "attribute"; });
  if (by_attribute) {
    const auto bound = arguments.bind("map", {"attribute", "default"});
    const AttributePath path(runtime, *bound[0]);
    for (const Value& item : runtime.iterate(input)) results.push_back(path.of(item, bound[1]));
    return generator(std::move(results));
  }
  if (arguments.positional.empty()) fail("map requires a filter argument");
  const std::string name = runtime.text_of(arguments.positional[0])->bytes;
  CallArguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : runtime.iterate(input)) {
    runtime.budget().charge_steps(1);
    results.push_back(runtime.call_filter(name, item, rest));
  }
  return generator(std::move(results));
}

// select, reject: by a test of the item; selectattr, rejectattr: of one of its attributes.
template <bool keeps, bool by_attribute>
Value choose(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  if (!runtime.is_true(input)) return generator({});
  CallArguments rest = arguments;
  Value path_value = None{};
  if (by_attribute) {
    if (rest.positional.empty()) fail("Missing parameter for attribute name");
    path_value = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  const AttributePath path(runtime, path_value);
  std::optional<std::string> test;
  if (!rest.positional.empty()) {
    test = runtime.text_of(rest.positional.front())->bytes;
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> kept;
  for (const Value& item : runtime.iterate(input)) {
    runtime.budget().charge_steps(1);
    const Value value = path.of(item);
    const bool passes = test.has_value() ? runtime.call_test(*test, value, rest) : runtime.is_true(value);
    if (passes == keeps) kept.push_back(item);
  }
  return generator(std::move(kept));
}

Value batch(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("batch", {"linecount", "fill_with"});
  if (!bound[0].has_value()) fail("batch() missing required argument: 'linecount'");
  const int64_t size = require_integer(*bound[0], "linecount");
  std::vector<Value> batches, current;
  for (const Value& item : runtime.iterate(input)) {
    if (static_cast<int64_t>(current.size()) == size) {
      batches.push_back(make_list(std::move(current)));
      current.clear();
    }
    current.push_back(item);
  }
  if (!current.empty()) {
    const Value fill = or_none(bound[1]);
    const int64_t missing = size - static_cast<int64_t>(current.size());
    if (!fill.is_none() && missing > 0) {
      runtime.budget().charge_steps(missing);
      current.insert(current.end(), static_cast<std::size_t>(missing), fill);
    }
    batches.push_back(make_list(std::move(current)));
  }
  return generator(std::move(batches));
}

Value slice_filter(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("slice", {"slices", "fill_with"});
  if (!bound[0].has_value()) fail("slice() missing required argument: 'slices'");
  const int64_t num_slices = require_integer(*bound[0], "slices");
  if (num_slices == 0) fail("integer division or modulo by zero");
  const std::vector<Value> all = runtime.iterate(input);
  const Value fill = or_none(bound[1]);
  if (num_slices > 0) runtime.budget().charge_steps(num_slices);
  std::vector<Value> slices;
  std::size_t at = 0;
  for (int64_t i = 0; i < num_slices; ++i) {
    const bool extra = i < static_cast<int64_t>(all.size()) % num_slices;
    const std::size_t size = all.size() / static_cast<std::size_t>(num_slices) + (extra ? 1 : 0);
    std::vector<Value> part(all.begin() + static_cast<std::ptrdiff_t>(at), all.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (!fill.is_none() && !extra) part.push_back(fill);
    slices.push_back(make_list(std::move(part)));
  }
  return generator(std::move(slices));
}

Value groupby(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("groupby", {"attribute", "default", "case_sensitive"});
  if (!bound[0].has_value()) fail("groupby() missing required argument: 'attribute'");
  const AttributePath path(runtime, *bound[0]);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : runtime.iterate(input)) {
    Value key = fold_case(runtime, path.of(item, bound[1]), flag(runtime, bound[2]));
    keyed.emplace_back(key, make_list({key, item}, ListKind::kTuple));
  }
  std::vector<Value> groups, members;
  Value group_key;
  const auto finish_group = [&] {
    if (members.empty()) return;
    Value name = path.of(members[0], bound[1]);
    groups.push_back(make_list({std::move(name), make_list(std::move(members))}, ListKind::kGroup));
    members.clear();
  };
  for (const Value& pair : sort_by(runtime, std::move(keyed), false)) {
    const Value& key = pair.list().items[0];
    if (!members.empty() && !equal(runtime.budget(), key, group_key)) finish_group();
    group_key = key;
    members.push_back(pair.list().items[1]);
  }
  finish_group();
  return make_list(std::move(groups));
}

constexpr NamedFilter kFilters[] = {{"first", first},
                                    {"last", last},
                                    {"length", length},
                                    {"count", length},
                                    {"list", list},
                                    {"join", join},
                                    {"reverse", reverse},
                                    {"sort", sort},
                                    {"dictsort", dictsort},
                                    {"unique", unique},
                                    {"min", extreme<false>},
                                    {"max", extreme<true>},
                                    {"sum", sum},
                                    {"items", items},
                                    {"map", map},
                                    {"select", choose<true, false>},
                                    {"reject", choose<false, false>},
                                    {"selectattr", choose<true, true>},
                                    {"rejectattr", choose<false, true>},
                                    {"batch", batch},
                                    {"slice", slice_filter},
                                    {"groupby", groupby}};

}  // namespace

FilterFunction find_sequence_filter(std::string_view name) {
  for (const auto& filter : kFilters) {
    if (filter.name == name) return filter.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja

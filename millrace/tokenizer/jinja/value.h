#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/tokenizer/jinja/budget.h"
#include "millrace/tokenizer/jinja/text.h"

// Values of the template language: Python's, as far as a chat template can tell. Strings, lists and dicts never change once
// made (the sandbox refuses every method that would change them), so values share them freely.
namespace millrace::jinja {

class Runtime;
class Value;
struct List;
struct Dict;
struct BoundMethod;
struct CallArguments;

struct None {};

// A missing variable, key or attribute. It prints as nothing and is false; most other uses fail with its message.
struct Undefined {
  std::shared_ptr<const std::string> message;
};

// What is neither data nor changed by a method alone: namespaces, macros, functions, loops. Lives as long as the render.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string type_name() const = 0;
  virtual std::string repr(Runtime& runtime) = 0;
  virtual bool is_true(Runtime&) const { return true; }
  virtual bool is_callable() const { return false; }
  // Absent: there is no such attribute.
  virtual std::optional<Value> attribute(Runtime& runtime, std::string_view name);
  virtual Value call(Runtime& runtime, const CallArguments& arguments);
  virtual std::optional<int64_t> length(Runtime&) { return std::nullopt; }
};

enum class Kind { kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kDict, kMethod, kObject };

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}                                        // NOLINT: values convert freely
  Value(Undefined undefined) : data_(std::move(undefined)) {}           // NOLINT
  Value(bool value) : data_(value) {}                                   // NOLINT
  Value(int64_t value) : data_(value) {}                                // NOLINT
  Value(double value) : data_(value) {}                                 // NOLINT
  Value(TextPtr text) : data_(std::move(text)) {}                       // NOLINT
  Value(std::shared_ptr<const List> list) : data_(std::move(list)) {}   // NOLINT
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}   // NOLINT
  Value(std::shared_ptr<const BoundMethod> m) : data_(std::move(m)) {}  // NOLINT
  Value(Object* object) : data_(object) {}                              // NOLINT
  template <class T>
  Value(const T*) = delete;  // a pointer is not a bool

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is_undefined() const { return kind() == Kind::kUndefined; }
  bool is_none() const { return kind() == Kind::kNone; }
  bool is_string() const { return kind() == Kind::kString; }
  bool is_list() const { return kind() == Kind::kList; }
  bool is_dict() const { return kind() == Kind::kDict; }
  // bool is a kind of int, as in Python.
  bool is_integral() const { return kind() == Kind::kInt || kind() == Kind::kBool; }
  bool is_number() const { return is_integral() || kind() == Kind::kFloat; }

  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  bool as_bool() const { return std::get<bool>(data_); }
  int64_t as_int() const { return kind() == Kind::kBool ? int64_t{as_bool()} : std::get<int64_t>(data_); }  // of an integral
  double as_double() const { return kind() == Kind::kFloat ? std::get<double>(data_) : static_cast<double>(as_int()); }
  const Text& text() const { return *text_ptr(); }
  const TextPtr& text_ptr() const { return std::get<TextPtr>(data_); }
  const List& list() const { return *list_ptr(); }
  const std::shared_ptr<const List>& list_ptr() const { return std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *dict_ptr(); }
  const std::shared_ptr<const Dict>& dict_ptr() const { return std::get<std::shared_ptr<const Dict>>(data_); }
  const BoundMethod& method() const { return *std::get<std::shared_ptr<const BoundMethod>>(data_); }
  Object* object() const { return std::get<Object*>(data_); }

 private:
  std::variant<Undefined, None, bool, int64_t, double, TextPtr, std::shared_ptr<const List>, std::shared_ptr<const Dict>,
               std::shared_ptr<const BoundMethod>, Object*>
      data_;
};

// How deep lists and dicts may nest; it bounds the recursion of everything that walks a value.
constexpr int kMaxValueDepth = 200;

enum class ListKind { kList, kTuple, kRange, kDictKeys, kDictValues, kDictItems, kGenerator, kGroup };

// Every sequence but a string. A generator gives each item once; the rest are read-only.
struct List {
  ListKind kind = ListKind::kList;
  std::vector<Value> items;
  int depth = 1;
  int64_t start = 0, stop = 0, step = 1;  // of a range, for printing
  mutable std::size_t num_consumed = 0;   // of a generator; generators never leave the render that made them

  bool is_generator() const { return kind == ListKind::kGenerator; }
  bool can_be_indexed() const {
    return kind == ListKind::kList || kind == ListKind::kTuple || kind == ListKind::kRange || kind == ListKind::kGroup;
  }
};
Value make_list(std::vector<Value> items, ListKind kind = ListKind::kList);

// Keeps the order of insertion.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  // Adds or replaces (the first key stays, as in Python). Fails when the key cannot be one.
  void set(Value key, Value value);
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;  // fails when the key cannot be one
  // Takes out all that `set` needs no more; call after the last set.
  Value finish() &&;

 private:
  std::size_t index_of(std::string_view key) const;     // entries.size() when absent
  std::unordered_map<std::string, std::size_t> index_;  // of string keys, once there are many entries
};

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  bool user_names = false;  // some name came from the client, by way of **dict

  // The arguments in the order of `parameters`, absent where not given. Fails, naming `function`, on what does not fit.
  std::vector<std::optional<Value>> bind(std::string_view function, std::initializer_list<std::string_view> parameters) const;
};

using MethodFunction = Value (*)(Runtime& runtime, const Value& self, const CallArguments& arguments);
struct BoundMethod {
  Value self;
  std::string_view name;
  MethodFunction function;
};

Undefined make_undefined(std::string message);
// Everything in `value` counts as the client's. Fails when it nests deeper than kMaxValueDepth.
Value from_json(Budget& budget, const json::value& value, int depth = 0);

std::string type_name(const Value& value);  // Python's: "str", "NoneType", ...
// Fails with the message of an undefined value; returns otherwise.
void require_defined(const Value& value);

// Comparisons charge for what they look at.
bool equal(Budget& budget, const Value& a, const Value& b);
bool less(Budget& budget, const Value& a, const Value& b, std::string_view operation = "<");  // fails on kinds without order

// str(value) and repr(value). A string converts to itself; any client string inside a list makes all of its text the client's.
TextPtr to_text(Runtime& runtime, const Value& value);
void append_repr(Runtime& runtime, TextBuilder& out, const Value& value, int depth = 0);
std::string float_repr(double value);
// Whether any string inside came from the client.
bool contains_user_text(const Value& value, int depth = 0);

}  // namespace millrace::jinja

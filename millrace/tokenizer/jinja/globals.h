#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

// namespace(...): the one thing a template can change.
class Namespace : public Object {
 public:
  explicit Namespace(Dict attributes) : attributes_(std::move(attributes)) {}
  std::string type_name() const override { return "Namespace"; }
  std::string repr(Runtime& runtime) override;
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override;
  void set(std::string_view name, Value value);

 private:
  Dict attributes_;
};

// The functions every template can call: range, namespace, dict, cycler, joiner, raise_exception, strftime_now.
using GlobalFunction = Value (*)(Runtime& runtime, const CallArguments& arguments);
struct NamedGlobal {
  std::string_view name;
  GlobalFunction function;
};
GlobalFunction find_global(std::string_view name);

class GlobalObject : public Object {
 public:
  GlobalObject(std::string_view name, GlobalFunction function) : name_(name), function_(function) {}
  std::string type_name() const override { return "function"; }
  std::string repr(Runtime&) override { return "<function " + std::string(name_) + ">"; }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const CallArguments& arguments) override { return function_(runtime, arguments); }

 private:
  std::string_view name_;
  GlobalFunction function_;
};

}  // namespace millrace::jinja

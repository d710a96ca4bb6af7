// Statements, loops and macros.
#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/globals.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {
namespace {

// The variable "loop" of a for loop, and its iteration: items come one by one, so a condition sees what the body changed.
class Loop : public Object {
 public:
  Loop(Runtime& runtime, const ForStmt& stmt, Scope& scope, std::vector<Value> source, int depth0)
      : runtime_(runtime), stmt_(stmt), scope_(scope), source_(std::move(source)), depth0_(depth0) {}

  std::string type_name() const override { return "LoopContext"; }
  std::string repr(Runtime&) override { return fmt::format("<LoopContext {}/{}>", index0_ + 1, num_items()); }
  bool is_callable() const override { return true; }
  std::optional<int64_t> length(Runtime&) override { return num_items(); }
  bool is_true(Runtime&) const override { return true; }  // inside its loop there is an item

  std::optional<Value> next() {
    std::optional<Value> item = std::move(peeked_);
    peeked_.reset();
    if (!item.has_value()) item = fetch();
    if (!item.has_value()) {
      source_.clear();
      return item;
    }
    ++index0_;
    previous_ = std::move(current_);
    current_ = *item;
    return item;
  }

  std::optional<Value> attribute(Runtime&, std::string_view name) override {
    if (name == "index") return Value(index0_ + 1);
    if (name == "index0") return Value(index0_);
    if (name == "first") return Value(index0_ == 0);
    if (name == "last") return Value(!peek().has_value());
    if (name == "length") return Value(num_items());
    if (name == "revindex") return Value(num_items() - index0_);
    if (name == "revindex0") return Value(num_items() - index0_ - 1);
    if (name == "depth") return Value(int64_t{depth0_ + 1});
    if (name == "depth0") return Value(int64_t{depth0_});
    if (name == "previtem") return index0_ == 0 ? Value(make_undefined("there is no previous item")) : previous_;
    if (name == "nextitem") return peek().has_value() ? *peek() : Value(make_undefined("there is no next item"));
    if (name == "cycle") return method("cycle", &cycle);
    if (name == "changed") return method("changed", &changed);
    return std::nullopt;
  }

  Value call(Runtime& runtime, const CallArguments& arguments) override {
    if (!stmt_.recursive) fail("The loop must have the 'recursive' marker to be called recursively.");
    const auto bound = arguments.bind("loop", {"iterable"});
    if (!bound[0].has_value()) fail("loop() missing 1 required argument: 'iterable'");
    return runtime.call_loop(stmt_, scope_, *bound[0], depth0_ + 1);
  }

 private:
  Value method(std::string_view name, MethodFunction function) {
    return std::shared_ptr<const BoundMethod>(
        std::make_shared<BoundMethod>(BoundMethod{Value(static_cast<Object*>(this)), name, function}));
  }

  std::optional<Value> fetch() {
    while (position_ < source_.size()) {
      Value item = source_[position_++];
      if (drained_ || stmt_.condition == nullptr || runtime_.passes_loop_condition(stmt_, scope_, item)) return item;
    }
    return std::nullopt;
  }

  const std::optional<Value>& peek() {
    if (!peeked_.has_value()) peeked_ = fetch();
    return peeked_;
  }

  // Decides the condition for all that is left, as jinja2 does when it must know the length.
  int64_t num_items() {
    if (num_items_.has_value()) return *num_items_;
    std::vector<Value> rest;
    while (std::optional<Value> item = fetch()) rest.push_back(std::move(*item));
    source_ = std::move(rest);
    position_ = 0;
    drained_ = true;
    num_items_ = index0_ + 1 + (peeked_.has_value() ? 1 : 0) + static_cast<int64_t>(source_.size());
    return *num_items_;
  }

  static Value cycle(Runtime&, const Value& self, const CallArguments& arguments) {
    const auto& items = arguments.positional;
    if (items.empty()) fail("no items for cycling given");
    const auto& loop = static_cast<const Loop&>(*self.object());
    return items[static_cast<std::size_t>(loop.index0_) % items.size()];
  }

  static Value changed(Runtime& runtime, const Value& self, const CallArguments& arguments) {
    auto& loop = static_cast<Loop&>(*self.object());
    Value values = make_list(arguments.positional, ListKind::kTuple);
    if (loop.last_changed_.has_value() && equal(runtime.budget(), *loop.last_changed_, values)) return false;
    loop.last_changed_ = std::move(values);
    return true;
  }

  Runtime& runtime_;
  const ForStmt& stmt_;
  Scope& scope_;
  std::vector<Value> source_;
  std::size_t position_ = 0;
  bool drained_ = false;
  int depth0_;
  int64_t index0_ = -1;
  std::optional<Value> peeked_, last_changed_;
  std::optional<int64_t> num_items_;
  Value previous_, current_;
};

class Macro : public Object {
 public:
  Macro(const MacroStmt& stmt, Scope& closure) : stmt_(stmt), closure_(closure) {}
  std::string type_name() const override { return "Macro"; }
  std::string repr(Runtime&) override { return fmt::format("<Macro '{}'>", stmt_.name); }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const CallArguments& arguments) override { return runtime.call_macro(stmt_, closure_, arguments); }
  std::optional<Value> attribute(Runtime&, std::string_view name) override {
    if (name == "name") return Value(make_text(stmt_.name));
    if (name == "caller") return Value(stmt_.uses_caller);
    if (name == "catch_varargs") return Value(stmt_.uses_varargs);
    if (name == "catch_kwargs") return Value(stmt_.uses_kwargs);
    if (name == "arguments") {
      std::vector<Value> names;
      for (const auto& parameter : stmt_.parameters) names.push_back(make_text(parameter.name));
      return make_list(std::move(names), ListKind::kTuple);
    }
    return std::nullopt;
  }

 private:
  const MacroStmt& stmt_;
  Scope& closure_;
};

}  // namespace

const Value* Scope::find_here(int name_id) const {
  for (const auto& [id, value] : variables) {
    if (id == name_id) return &value;
  }
  return nullptr;
}

void Scope::set(int name_id, Value value) {
  for (auto& [id, old] : variables) {
    if (id == name_id) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(name_id, std::move(value));
}

// A scope for the length of a C++ block.
class Runtime::ScopeLease {
 public:
  ScopeLease(Runtime& runtime, Scope* parent) : runtime_(runtime) {
    if (runtime.free_scopes_.empty()) {
      runtime.scopes_.emplace_back();
      scope_ = &runtime.scopes_.back();
    } else {
      scope_ = runtime.free_scopes_.back();
      runtime.free_scopes_.pop_back();
    }
    scope_->parent = parent;
  }
  ~ScopeLease() {
    if (scope_->captured) return;
    scope_->variables.clear();
    runtime_.free_scopes_.push_back(scope_);
  }
  ScopeLease(const ScopeLease&) = delete;
  ScopeLease& operator=(const ScopeLease&) = delete;
  Scope& operator*() { return *scope_; }
  Scope* operator->() { return scope_; }

 private:
  Runtime& runtime_;
  Scope* scope_;
};

class Runtime::CallGuard {
 public:
  explicit CallGuard(Runtime& runtime) : runtime_(runtime) {
    if (++runtime.call_depth_ > runtime.options_.call_depth) {
      throw LimitError{fmt::format("calls nest deeper than {}", runtime.options_.call_depth)};
    }
  }
  ~CallGuard() { --runtime_.call_depth_; }
  CallGuard(const CallGuard&) = delete;
  CallGuard& operator=(const CallGuard&) = delete;

 private:
  Runtime& runtime_;
};

void Runtime::run(TextBuilder& out) {
  stack_base_ = static_cast<const char*>(__builtin_frame_address(0));
  exec_block(program_.body, *root_, out);
}

Runtime::Flow Runtime::exec_block(const Block& block, Scope& scope, TextBuilder& out) {
  for (const Stmt* stmt : block) {
    if (const Flow flow = exec(*stmt, scope, out); flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Runtime::Flow Runtime::exec(const Stmt& stmt, Scope& scope, TextBuilder& out) {
  budget_.charge_steps(1);
  check_stack();
  offset_ = stmt.offset;
  switch (stmt.kind) {
    case StmtKind::kOutput: exec_output(static_cast<const OutputStmt&>(stmt), scope, out); return Flow::kNext;
    case StmtKind::kFor: {
      const auto& loop = static_cast<const ForStmt&>(stmt);
      const Value iterable = eval(loop.iterable, scope);
      offset_ = loop.iterable->offset;
      exec_loop(loop, scope, iterable, 0, out);
      return Flow::kNext;
    }
    case StmtKind::kIf: return exec_if(static_cast<const IfStmt&>(stmt), scope, out);
    case StmtKind::kSet: {
      const auto& set = static_cast<const SetStmt&>(stmt);
      const Value value = eval(set.value, scope);
      offset_ = stmt.offset;
      assign(set.target, value, scope);
      return Flow::kNext;
    }
    case StmtKind::kSetBlock: return exec_set_block(static_cast<const SetBlockStmt&>(stmt), scope);
    case StmtKind::kMacro: {
      const auto& macro = static_cast<const MacroStmt&>(stmt);
      scope.set(macro.name_id, Value(make_macro(macro, scope)));
      return Flow::kNext;
    }
    case StmtKind::kCallBlock: exec_call_block(static_cast<const CallBlockStmt&>(stmt), scope, out); return Flow::kNext;
    case StmtKind::kFilterBlock: return exec_filter_block(static_cast<const FilterBlockStmt&>(stmt), scope, out);
    case StmtKind::kWith: return exec_with(static_cast<const WithStmt&>(stmt), scope, out);
    case StmtKind::kScope: {
      ScopeLease inner(*this, &scope);
      return exec_block(static_cast<const ScopeStmt&>(stmt).body, *inner, out);
    }
    case StmtKind::kBreak: return Flow::kBreak;
    case StmtKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNext;
}

void Runtime::exec_output(const OutputStmt& stmt, Scope& scope, TextBuilder& out) {
  for (ExprRef part : stmt.parts) {
    const Value value = eval(part, scope);
    offset_ = part->offset;
    out.append(*text_of(value));
    if (out.size() > options_.output_bytes) throw LimitError{fmt::format("the text is longer than {} bytes", options_.output_bytes)};
  }
}

Runtime::Flow Runtime::exec_if(const IfStmt& stmt, Scope& scope, TextBuilder& out) {
  for (const auto& [condition, body] : stmt.branches) {
    if (is_true(eval(condition, scope))) return exec_block(body, scope, out);
  }
  return exec_block(stmt.otherwise, scope, out);
}

void Runtime::exec_loop(const ForStmt& stmt, Scope& scope, const Value& iterable, int depth0, TextBuilder& out) {
  auto* loop = make_object<Loop>(*this, stmt, scope, iterate(iterable), depth0);
  bool ran = false;
  while (std::optional<Value> item = loop->next()) {
    ran = true;
    ScopeLease inner(*this, &scope);
    inner->set(kNameLoop, Value(static_cast<Object*>(loop)));
    offset_ = stmt.target.offset;
    assign(stmt.target, *item, *inner);
    if (exec_block(stmt.body, *inner, out) == Flow::kBreak) break;
  }
  if (ran) return;
  ScopeLease inner(*this, &scope);
  exec_block(stmt.otherwise, *inner, out);
}

bool Runtime::passes_loop_condition(const ForStmt& stmt, Scope& scope, const Value& item) {
  ScopeLease inner(*this, &scope);
  assign(stmt.target, item, *inner);
  return is_true(eval(stmt.condition, *inner));
}

TextPtr Runtime::call_loop(const ForStmt& stmt, Scope& scope, const Value& iterable, int depth0) {
  const CallGuard guard(*this);
  TextBuilder out(budget_);
  exec_loop(stmt, scope, iterable, depth0, out);
  return out.finish();
}

Runtime::Flow Runtime::exec_set_block(const SetBlockStmt& stmt, Scope& scope) {
  TextBuilder text(budget_);
  {
    ScopeLease inner(*this, &scope);
    if (const Flow flow = exec_block(stmt.body, *inner, text); flow != Flow::kNext) return flow;
  }
  Value value = text.finish();
  if (stmt.filter != nullptr) value = eval_filter(*static_cast<const FilterExpr*>(stmt.filter), scope, &value);
  offset_ = stmt.offset;
  assign(stmt.target, value, scope);
  return Flow::kNext;
}

Runtime::Flow Runtime::exec_filter_block(const FilterBlockStmt& stmt, Scope& scope, TextBuilder& out) {
  TextBuilder text(budget_);
  {
    ScopeLease inner(*this, &scope);
    if (const Flow flow = exec_block(stmt.body, *inner, text); flow != Flow::kNext) return flow;
  }
  const Value value = text.finish();
  out.append(*text_of(eval_filter(*static_cast<const FilterExpr*>(stmt.filter), scope, &value)));
  return Flow::kNext;
}

Runtime::Flow Runtime::exec_with(const WithStmt& stmt, Scope& scope, TextBuilder& out) {
  ScopeLease inner(*this, &scope);
  // Values see the outer variables only.
  std::vector<Value> values;
  for (const auto& binding : stmt.bindings) values.push_back(eval(binding.second, scope));
  for (std::size_t i = 0; i < values.size(); ++i) assign(stmt.bindings[i].first, values[i], *inner);
  return exec_block(stmt.body, *inner, out);
}

void Runtime::exec_call_block(const CallBlockStmt& stmt, Scope& scope, TextBuilder& out) {
  const Value value = eval_call(*stmt.call, scope, make_macro(*stmt.caller, scope));
  out.append(*text_of(value));
}

void Runtime::assign(const Target& target, const Value& value, Scope& scope) {
  if (target.tuple) {
    if (!value.is_list() && !value.is_string() && !value.is_dict())
      fail(fmt::format("cannot unpack non-iterable {} object", type_name(value)));
    const std::vector<Value> items = iterate(value);
    if (items.size() < target.items.size()) {
      fail(fmt::format("not enough values to unpack (expected {}, got {})", target.items.size(), items.size()));
    }
    if (items.size() > target.items.size()) fail(fmt::format("too many values to unpack (expected {})", target.items.size()));
    for (std::size_t i = 0; i < items.size(); ++i) assign(target.items[i], items[i], scope);
    return;
  }
  if (!target.attribute.has_value()) return scope.set(target.name_id, value);
  const Value object = eval_name(target.name_id, scope);
  require_defined(object);
  auto* space = object.kind() == Kind::kObject ? dynamic_cast<Namespace*>(object.object()) : nullptr;
  if (space == nullptr) fail("cannot assign attribute on non-namespace object");
  space->set(*target.attribute, value);
}

Object* Runtime::make_macro(const MacroStmt& macro, Scope& scope) {
  for (Scope* s = &scope; s != nullptr && !s->captured; s = s->parent) s->captured = true;
  return make_object<Macro>(macro, scope);
}

TextPtr Runtime::call_macro(const MacroStmt& macro, Scope& closure, const CallArguments& arguments) {
  const CallGuard guard(*this);
  const std::size_t num_parameters = macro.parameters.size();
  const auto& positional = arguments.positional;
  const auto& named = arguments.named;
  std::vector<bool> taken(named.size());
  const auto take_named = [&](std::string_view name) -> const Value* {
    for (std::size_t i = 0; i < named.size(); ++i) {
      if (taken[i] || named[i].first != name) continue;
      taken[i] = true;
      return &named[i].second;
    }
    return nullptr;
  };
  std::vector<const Value*> given(num_parameters);
  bool explicit_caller = false;
  for (std::size_t i = 0; i < num_parameters; ++i) {
    given[i] = i < positional.size() ? &positional[i] : take_named(macro.parameters[i].name);
    explicit_caller |= macro.parameters[i].name_id == kNameCaller;
  }
  ScopeLease inner(*this, &closure);
  if (macro.uses_caller && !explicit_caller) {
    const Value* caller = take_named("caller");
    inner->set(kNameCaller, caller != nullptr ? *caller : Value(make_undefined("No caller defined")));
  }
  if (macro.uses_kwargs) {
    Dict kwargs;
    for (std::size_t i = 0; i < named.size(); ++i) {
      if (!taken[i]) kwargs.set(make_text(named[i].first, arguments.user_names), named[i].second);
    }
    inner->set(kNameKwargs, std::move(kwargs).finish());
  } else if (const auto left = std::find(taken.begin(), taken.end(), false); left != taken.end()) {
    fail(fmt::format("macro '{}' takes no keyword argument '{}'", macro.name, named[static_cast<std::size_t>(left - taken.begin())].first));
  }
  const bool too_many = positional.size() > num_parameters;
  if (macro.uses_varargs) {
    std::vector<Value> rest;
    if (too_many) rest.assign(positional.begin() + static_cast<std::ptrdiff_t>(num_parameters), positional.end());
    inner->set(kNameVarargs, make_list(std::move(rest), ListKind::kTuple));
  } else if (too_many) {
    fail(fmt::format("macro '{}' takes not more than {} argument(s)", macro.name, num_parameters));
  }
  for (std::size_t i = 0; i < num_parameters; ++i) {
    const auto& parameter = macro.parameters[i];
    if (given[i] != nullptr)
      inner->set(parameter.name_id, *given[i]);
    else if (parameter.default_value != nullptr)
      inner->set(parameter.name_id, eval(parameter.default_value, *inner));
    else
      inner->set(parameter.name_id, Value(make_undefined(fmt::format("parameter '{}' was not provided", parameter.name))));
  }
  TextBuilder out(budget_);
  exec_block(macro.body, *inner, out);
  return out.finish();
}

}  // namespace millrace::jinja

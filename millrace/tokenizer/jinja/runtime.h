#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/tokenizer/jinja/ast.h"
#include "millrace/tokenizer/jinja/budget.h"
#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

// Variables of one block, by name number. Kept by macros made inside (`captured`), else used again for the next block.
struct Scope {
  Scope* parent = nullptr;
  bool captured = false;
  std::vector<std::pair<int, Value>> variables;

  const Value* find_here(int name_id) const;
  void set(int name_id, Value value);
};

struct RuntimeOptions {
  int64_t fuel = 0;
  std::size_t output_bytes = 0;
  int call_depth = 0;
  std::optional<std::chrono::sys_seconds> now;
};

// One render of a program: walks its tree. Not shared between threads; the program is.
class Runtime {
 public:
  Runtime(const Program& program, const RuntimeOptions& options);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Defines a variable of the template, where the template mentions it at all.
  void define(std::string_view name, Value value);
  // Renders into `out`. Throws what budget.h lists.
  void run(TextBuilder& out);
  // Where the render is, as an offset into the normalized source: the place of an error.
  std::size_t offset() const { return offset_; }

  Budget& budget() { return budget_; }
  const RuntimeOptions& options() const { return options_; }

  // object.name and object[key]; undefined where there is none.
  Value get_attribute(const Value& object, std::string_view name);
  Value get_item(const Value& object, const Value& key);
  Value call(const Value& callee, const CallArguments& arguments);
  Value call_filter(std::string_view name, const Value& input, const CallArguments& arguments);
  bool call_test(std::string_view name, const Value& input, const CallArguments& arguments);
  bool is_true(const Value& value);
  // The items of anything that can be looped over; takes what a generator has left.
  std::vector<Value> iterate(const Value& value);
  // len(value), absent where it has none.
  std::optional<int64_t> length(const Value& value);
  // The characters of a string.
  std::vector<Value> characters(const TextPtr& text);
  TextPtr text_of(const Value& value) { return to_text(*this, value); }

  template <class T, class... Args>
  T* make_object(Args&&... args) {
    budget_.charge_steps(1);
    auto object = std::make_unique<T>(std::forward<Args>(args)...);
    T* raw = object.get();
    objects_.push_back(std::move(object));
    return raw;
  }

  // For the objects of evaluator_statements.cc.
  TextPtr call_macro(const MacroStmt& macro, Scope& closure, const CallArguments& arguments);
  TextPtr call_loop(const ForStmt& loop, Scope& scope, const Value& iterable, int depth0);
  bool passes_loop_condition(const ForStmt& loop, Scope& scope, const Value& item);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class ScopeLease;
  class CallGuard;

  Value eval(ExprRef expr, Scope& scope);
  Value eval_name(int name_id, Scope& scope);
  Value eval_list(const ListExpr& expr, Scope& scope);
  Value eval_dict(const DictExpr& expr, Scope& scope);
  Value eval_item(const ItemExpr& expr, Scope& scope);
  Value eval_call(const CallExpr& expr, Scope& scope, Object* caller);
  Value eval_filter(const FilterExpr& expr, Scope& scope, const Value* block_text);
  Value eval_unary(const UnaryExpr& expr, Scope& scope);
  Value eval_arithmetic(const ArithmeticExpr& expr, Scope& scope);
  Value eval_concat(const ConcatExpr& expr, Scope& scope);
  Value eval_logic(const LogicExpr& expr, Scope& scope);
  Value eval_compare(const CompareExpr& expr, Scope& scope);
  Value eval_condition(const ConditionExpr& expr, Scope& scope);
  CallArguments eval_arguments(const Arguments& arguments, Scope& scope);

  Flow exec_block(const Block& block, Scope& scope, TextBuilder& out);
  Flow exec(const Stmt& stmt, Scope& scope, TextBuilder& out);
  void exec_output(const OutputStmt& stmt, Scope& scope, TextBuilder& out);
  Flow exec_if(const IfStmt& stmt, Scope& scope, TextBuilder& out);
  void exec_loop(const ForStmt& stmt, Scope& scope, const Value& iterable, int depth0, TextBuilder& out);
  Flow exec_set_block(const SetBlockStmt& stmt, Scope& scope);
  Flow exec_filter_block(const FilterBlockStmt& stmt, Scope& scope, TextBuilder& out);
  Flow exec_with(const WithStmt& stmt, Scope& scope, TextBuilder& out);
  void exec_call_block(const CallBlockStmt& stmt, Scope& scope, TextBuilder& out);
  void assign(const Target& target, const Value& value, Scope& scope);
  Object* make_macro(const MacroStmt& macro, Scope& scope);
  void check_stack() const;

  const Program& program_;
  RuntimeOptions options_;
  Budget budget_;
  std::size_t offset_ = 0;
  int call_depth_ = 0;
  const char* stack_base_ = nullptr;
  std::vector<std::unique_ptr<Object>> objects_;
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  Scope* root_ = nullptr;
};

}  // namespace millrace::jinja

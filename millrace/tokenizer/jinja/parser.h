#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "millrace/tokenizer/jinja/ast.h"
#include "millrace/tokenizer/jinja/budget.h"
#include "millrace/tokenizer/jinja/lexer.h"

namespace millrace::jinja {

// How deep expressions and statements may nest in a template.
constexpr int kMaxNesting = 100;

// Recursive descent over the grammar of jinja2's own parser, with its precedences. Expressions are in parser_expressions.cc.
class Parser {
 public:
  explicit Parser(std::string source);
  std::shared_ptr<const Program> run();

 private:
  class NestingGuard;

  // Tokens.
  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_operator(std::string_view op);
  void expect(TokenKind kind);
  std::string expect_name();
  void expect_keyword(std::string_view name);
  [[noreturn]] void fail_at(std::size_t offset, std::string message) const;
  [[noreturn]] void fail_unexpected() const;

  // Statements.
  Block parse_block(std::initializer_list<std::string_view> end_tags);  // stops at the end tag's name
  Block parse_body(std::initializer_list<std::string_view> end_tags);   // "%}" first, then as parse_block
  Block parse_body_to(std::string_view end_tag);                        // and takes the end tag's name
  const Stmt* parse_statement();
  const Stmt* parse_for();
  const Stmt* parse_if();
  const Stmt* parse_set();
  const Stmt* parse_macro();
  const Stmt* parse_call_block();
  const Stmt* parse_filter_block();
  const Stmt* parse_with();
  const Stmt* parse_print();
  const Stmt* parse_scope(std::string_view end_tag);
  const Stmt* parse_jump(StmtKind kind);
  void parse_parameters(MacroStmt& macro);
  void parse_macro_body(MacroStmt& macro, std::string_view end_tag);
  Target parse_target(bool with_namespace, bool until_in);
  Target parse_single_target(bool with_namespace, bool until_in);

  // Expressions, from the loosest to the tightest.
  ExprRef parse_expression(bool with_condition = true);
  ExprRef parse_or();
  ExprRef parse_and();
  ExprRef parse_not();
  ExprRef parse_compare();
  ExprRef parse_sum();
  ExprRef parse_concat();
  ExprRef parse_product();
  ExprRef parse_power();
  ExprRef parse_unary(bool with_filters);
  ExprRef parse_primary();
  ExprRef parse_postfix(ExprRef expr);
  ExprRef parse_filters_and_tests(ExprRef expr);
  ExprRef parse_filter_chain(ExprRef input, bool name_is_next);
  ExprRef parse_test(ExprRef input);
  ExprRef parse_subscript(ExprRef object);
  ExprRef parse_subscript_key();
  Arguments parse_arguments();
  // One expression, or several with commas: a tuple. `end_name`: a word that ends it after a comma.
  ExprRef parse_tuple(bool with_condition = true, bool parenthesized = false, std::string_view end_name = {});
  ExprRef parse_list_literal();
  ExprRef parse_dict_literal();
  ExprRef parse_chain(ExprRef (Parser::*operand)(), std::initializer_list<std::pair<std::string_view, ArithmeticOp>> operators);
  void check_filter_name(const std::string& name, std::size_t offset);
  void check_test_name(const std::string& name, std::size_t offset);

  int name_id(const std::string& name);
  ExprRef make_name(std::size_t offset, const std::string& name);

  template <class T, class... Args>
  T* make_expr(Args&&... args) {
    auto node = std::make_unique<T>(std::forward<Args>(args)...);
    T* raw = node.get();
    program_->exprs.push_back(std::move(node));
    return raw;
  }
  template <class T, class... Args>
  T* make_stmt(Args&&... args) {
    auto node = std::make_unique<T>(std::forward<Args>(args)...);
    T* raw = node.get();
    program_->stmts.push_back(std::move(node));
    return raw;
  }

  std::shared_ptr<Program> program_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                           // around the current statement, inside the innermost macro
  bool conditional_ = false;                // inside an if: unknown filters and tests fail when reached, not before
  std::vector<SyntaxError> unknown_names_;  // of filters and tests outside any condition
  std::vector<MacroStmt*> macros_;
  std::unordered_map<std::string, int> name_ids_;
};

class Parser::NestingGuard {
 public:
  explicit NestingGuard(Parser& parser) : parser_(parser) {
    if (++parser_.nesting_ > kMaxNesting) parser_.fail_at(parser_.current().offset, "the template nests too deeply here");
  }
  ~NestingGuard() { --parser_.nesting_; }
  NestingGuard(const NestingGuard&) = delete;
  NestingGuard& operator=(const NestingGuard&) = delete;

 private:
  Parser& parser_;
};

}  // namespace millrace::jinja

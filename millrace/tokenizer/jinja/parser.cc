#include "millrace/tokenizer/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/predicates.h"

namespace millrace::jinja {
namespace {

constexpr std::size_t kMaxNames = 4096;  // the longest published template has some hundred

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData: return "template data / text";
    case TokenKind::kBlockBegin: return "begin of statement block";
    case TokenKind::kBlockEnd: return "end of statement block";
    case TokenKind::kVariableBegin: return "begin of print statement";
    case TokenKind::kVariableEnd: return "end of print statement";
    case TokenKind::kString: return "string";
    case TokenKind::kInteger: return "integer";
    case TokenKind::kFloat: return "float";
    case TokenKind::kEnd: return "end of template";
    case TokenKind::kName:
    case TokenKind::kOperator: return token.text;
  }
  return token.text;
}

// Restores a value when a block ends.
template <class T>
class Restore {
 public:
  Restore(T& variable, T value) : variable_(variable), old_(variable) { variable_ = value; }
  ~Restore() { variable_ = old_; }
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;

 private:
  T& variable_;
  T old_;
};

}  // namespace

Parser::Parser(std::string source) : program_(std::make_shared<Program>()) {
  program_->source = std::move(source);
  program_->normalized = normalize_source(program_->source);
  for (const char* name : {"caller", "varargs", "kwargs", "loop"}) name_id(name);
}

std::shared_ptr<const Program> parse(std::string source) { return Parser(std::move(source)).run(); }

std::shared_ptr<const Program> Parser::run() {
  try {
    tokens_ = tokenize(program_->normalized);
    program_->body = parse_block({});
    if (!unknown_names_.empty()) throw unknown_names_.front();
    return program_;
  } catch (SyntaxError& error) {
    // The caller has the source only inside the program that failed, so the place is resolved here.
    const std::string_view before = std::string_view(program_->normalized).substr(0, error.offset);
    const std::size_t line = 1 + static_cast<std::size_t>(std::count(before.begin(), before.end(), '\n'));
    const std::size_t newline = before.rfind('\n');
    const std::size_t column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline;
    throw TemplateError{fmt::format("line {}, column {}: {}", line, column, error.message)};
  }
}

int Parser::name_id(const std::string& name) {
  const auto [entry, added] = name_ids_.try_emplace(name, static_cast<int>(program_->names.size()));
  if (added) program_->names.push_back(name);
  // A scope looks its variables up one by one.
  if (program_->names.size() > kMaxNames) fail_at(current().offset, fmt::format("the template uses more than {} names", kMaxNames));
  return entry->second;
}

ExprRef Parser::make_name(std::size_t offset, const std::string& name) {
  const int id = name_id(name);
  for (MacroStmt* macro : macros_) {
    macro->uses_caller |= id == kNameCaller;
    macro->uses_varargs |= id == kNameVarargs;
    macro->uses_kwargs |= id == kNameKwargs;
  }
  return make_expr<NameExpr>(offset, id);
}

void Parser::fail_at(std::size_t offset, std::string message) const { throw SyntaxError{offset, std::move(message)}; }
void Parser::fail_unexpected() const { fail_at(current().offset, fmt::format("unexpected '{}'", describe(current()))); }

bool Parser::skip_operator(std::string_view op) {
  if (!current().is_operator(op)) return false;
  take();
  return true;
}
bool Parser::skip_name(std::string_view name) {
  if (!current().is_name(name)) return false;
  take();
  return true;
}
void Parser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail_at(current().offset, fmt::format("expected token '{}', got '{}'", op, describe(current())));
}
void Parser::expect(TokenKind kind) {
  Token wanted;
  wanted.kind = kind;
  if (current().kind != kind)
    fail_at(current().offset, fmt::format("expected token '{}', got '{}'", describe(wanted), describe(current())));
  take();
}
std::string Parser::expect_name() {
  if (current().kind != TokenKind::kName) fail_at(current().offset, fmt::format("expected token 'name', got '{}'", describe(current())));
  return take().text;
}
void Parser::expect_keyword(std::string_view name) {
  if (!skip_name(name)) fail_at(current().offset, fmt::format("expected token '{}', got '{}'", name, describe(current())));
}

Block Parser::parse_block(std::initializer_list<std::string_view> end_tags) {
  Block block;
  OutputStmt* output = nullptr;
  const auto add_output = [&](std::size_t offset, ExprRef part) {
    if (output == nullptr) {
      output = make_stmt<OutputStmt>(offset);
      block.push_back(output);
    }
    output->parts.push_back(part);
  };
  for (;;) {
    switch (current().kind) {
      case TokenKind::kEnd:
        if (end_tags.size() == 0) return block;
        fail_at(current().offset, fmt::format("Unexpected end of template: expected {{% {} %}}", fmt::join(end_tags, " or ")));
      case TokenKind::kData: {
        Token data = take();
        add_output(data.offset, make_expr<ConstExpr>(data.offset, Value(make_text(std::move(data.text)))));
        break;
      }
      case TokenKind::kVariableBegin: {
        const std::size_t offset = take().offset;
        add_output(offset, parse_tuple());
        expect(TokenKind::kVariableEnd);
        break;
      }
      case TokenKind::kBlockBegin: {
        take();
        output = nullptr;
        const Token& tag = current();
        if (tag.kind == TokenKind::kName && std::find(end_tags.begin(), end_tags.end(), tag.text) != end_tags.end()) return block;
        if (tag.kind == TokenKind::kName && (tag.text.starts_with("end") || tag.text == "else" || tag.text == "elif")) {
          std::string expected = end_tags.size() == 0 ? "no tag is open" : fmt::format("expected {}", fmt::join(end_tags, " or "));
          fail_at(tag.offset, fmt::format("Encountered unknown tag '{}': {}", tag.text, expected));
        }
        block.push_back(parse_statement());
        expect(TokenKind::kBlockEnd);
        break;
      }
      default: fail_unexpected();
    }
  }
}

Block Parser::parse_body(std::initializer_list<std::string_view> end_tags) {
  skip_operator(":");
  expect(TokenKind::kBlockEnd);
  return parse_block(end_tags);
}

Block Parser::parse_body_to(std::string_view end_tag) {
  Block block = parse_body({end_tag});
  take();
  return block;
}

const Stmt* Parser::parse_statement() {
  const NestingGuard guard(*this);
  const Token& tag = current();
  if (tag.kind != TokenKind::kName) fail_at(tag.offset, "tag name expected");
  if (tag.text == "for") return parse_for();
  if (tag.text == "if") return parse_if();
  if (tag.text == "set") return parse_set();
  if (tag.text == "macro") return parse_macro();
  if (tag.text == "call") return parse_call_block();
  if (tag.text == "filter") return parse_filter_block();
  if (tag.text == "with") return parse_with();
  if (tag.text == "print") return parse_print();
  if (tag.text == "generation") return parse_scope("endgeneration");
  if (tag.text == "break") return parse_jump(StmtKind::kBreak);
  if (tag.text == "continue") return parse_jump(StmtKind::kContinue);
  for (const char* name : {"include", "import", "from", "extends", "block", "autoescape"}) {
    if (tag.text == name) fail_at(tag.offset, fmt::format("'{}' is not supported in a chat template", name));
  }
  fail_at(tag.offset, fmt::format("Encountered unknown tag '{}'.", tag.text));
}

const Stmt* Parser::parse_for() {
  auto* loop = make_stmt<ForStmt>(take().offset);
  loop->target = parse_target(false, true);
  expect_keyword("in");
  loop->iterable = parse_tuple(false, false, "recursive");
  if (skip_name("if")) loop->condition = parse_expression();
  loop->recursive = skip_name("recursive");
  const Restore conditional(conditional_, false);
  {
    const Restore loops(loops_, loops_ + 1);
    loop->body = parse_body({"endfor", "else"});
  }
  if (take().text == "else") loop->otherwise = parse_body_to("endfor");
  return loop;
}

const Stmt* Parser::parse_if() {
  auto* node = make_stmt<IfStmt>(current().offset);
  const Restore conditional(conditional_, true);
  for (;;) {
    take();  // if, elif
    ExprRef condition = parse_tuple(false);
    node->branches.emplace_back(condition, parse_body({"elif", "else", "endif"}));
    if (current().is_name("elif")) continue;
    if (take().text == "else") node->otherwise = parse_body_to("endif");
    return node;
  }
}

const Stmt* Parser::parse_set() {
  const std::size_t offset = take().offset;
  Target target = parse_target(true, false);
  if (skip_operator("=")) {
    auto* node = make_stmt<SetStmt>(offset);
    node->target = std::move(target);
    node->value = parse_tuple();
    return node;
  }
  auto* node = make_stmt<SetBlockStmt>(offset);
  node->target = std::move(target);
  node->filter = parse_filter_chain(nullptr, false);
  node->body = parse_body_to("endset");
  return node;
}

void Parser::parse_parameters(MacroStmt& macro) {
  expect_operator("(");
  bool has_default = false;
  while (!current().is_operator(")")) {
    if (!macro.parameters.empty()) expect_operator(",");
    const std::size_t offset = current().offset;
    const std::string name = expect_name();
    MacroStmt::Parameter parameter{name_id(name), name, nullptr};
    if (skip_operator("=")) {
      has_default = true;
      parameter.default_value = parse_expression();
    } else if (has_default) {
      fail_at(offset, "non-default argument follows default argument");
    }
    macro.parameters.push_back(parameter);
  }
  take();
}

void Parser::parse_macro_body(MacroStmt& macro, std::string_view end_tag) {
  macros_.push_back(&macro);
  const Restore loops(loops_, 0);
  const Restore conditional(conditional_, false);
  macro.body = parse_body_to(end_tag);
  macros_.pop_back();
}

const Stmt* Parser::parse_macro() {
  auto* macro = make_stmt<MacroStmt>(take().offset);
  macro->name = expect_name();
  macro->name_id = name_id(macro->name);
  parse_parameters(*macro);
  parse_macro_body(*macro, "endmacro");
  return macro;
}

const Stmt* Parser::parse_call_block() {
  const std::size_t offset = take().offset;
  auto* node = make_stmt<CallBlockStmt>(offset);
  auto* caller = make_stmt<MacroStmt>(offset);
  caller->name = "caller";
  if (current().is_operator("(")) parse_parameters(*caller);
  const ExprRef call = parse_expression();
  if (call->kind != ExprKind::kCall) fail_at(offset, "expected call");
  node->call = static_cast<const CallExpr*>(call);
  parse_macro_body(*caller, "endcall");
  node->caller = caller;
  return node;
}

const Stmt* Parser::parse_filter_block() {
  auto* node = make_stmt<FilterBlockStmt>(take().offset);
  node->filter = parse_filter_chain(nullptr, true);
  node->body = parse_body_to("endfilter");
  return node;
}

const Stmt* Parser::parse_with() {
  auto* node = make_stmt<WithStmt>(take().offset);
  while (current().kind != TokenKind::kBlockEnd) {
    if (!node->bindings.empty()) expect_operator(",");
    Target target = parse_target(false, false);
    expect_operator("=");
    node->bindings.emplace_back(std::move(target), parse_expression());
  }
  node->body = parse_body_to("endwith");
  return node;
}

const Stmt* Parser::parse_print() {
  auto* node = make_stmt<OutputStmt>(take().offset);
  while (current().kind != TokenKind::kBlockEnd) {
    if (!node->parts.empty()) expect_operator(",");
    node->parts.push_back(parse_expression());
  }
  return node;
}

const Stmt* Parser::parse_scope(std::string_view end_tag) {
  auto* node = make_stmt<ScopeStmt>(take().offset);
  node->body = parse_body_to(end_tag);
  return node;
}

const Stmt* Parser::parse_jump(StmtKind kind) {
  const Token tag = take();
  if (loops_ == 0) fail_at(tag.offset, fmt::format("'{}' outside loop", tag.text));
  return make_stmt<JumpStmt>(kind, tag.offset);
}

Target Parser::parse_single_target(bool with_namespace, bool until_in) {
  const NestingGuard guard(*this);
  Target target;
  target.offset = current().offset;
  if (skip_operator("(")) {
    target = parse_target(with_namespace, until_in);
    expect_operator(")");
    return target;
  }
  if (current().kind != TokenKind::kName) fail_at(target.offset, fmt::format("can't assign to '{}'", describe(current())));
  const std::string name = take().text;
  for (const char* constant : {"true", "false", "none", "True", "False", "None"}) {
    if (name == constant) fail_at(target.offset, fmt::format("can't assign to '{}'", name));
  }
  target.name_id = name_id(name);
  if (with_namespace && skip_operator(".")) target.attribute = expect_name();
  return target;
}

Target Parser::parse_target(bool with_namespace, bool until_in) {
  const auto at_end = [&] {
    return current().kind == TokenKind::kBlockEnd || current().kind == TokenKind::kVariableEnd || current().is_operator(")") ||
           (until_in && current().is_name("in"));
  };
  Target first = parse_single_target(with_namespace, until_in);
  if (!current().is_operator(",")) return first;
  Target tuple;
  tuple.offset = first.offset;
  tuple.tuple = true;
  tuple.items.push_back(std::move(first));
  while (skip_operator(",")) {
    if (at_end()) break;
    tuple.items.push_back(parse_single_target(with_namespace, until_in));
  }
  return tuple;
}

}  // namespace millrace::jinja

#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "millrace/tokenizer/jinja/value.h"

// A compiled template. Nodes point at each other freely; the Program owns them all, so nothing recurses when it goes.
namespace millrace::jinja {

enum class ExprKind {
  kConst,
  kName,
  kList,
  kDict,
  kAttribute,
  kItem,
  kSlice,
  kCall,
  kFilter,
  kTest,
  kUnary,
  kArithmetic,
  kConcat,
  kLogic,
  kCompare,
  kCondition
};
enum class StmtKind { kOutput, kFor, kIf, kSet, kSetBlock, kMacro, kCallBlock, kFilterBlock, kWith, kScope, kBreak, kContinue };

struct Expr {
  Expr(ExprKind k, std::size_t o) : kind(k), offset(o) {}
  virtual ~Expr() = default;
  ExprKind kind;
  std::size_t offset;  // into the normalized source
};
using ExprRef = const Expr*;

struct Stmt {
  Stmt(StmtKind k, std::size_t o) : kind(k), offset(o) {}
  virtual ~Stmt() = default;
  StmtKind kind;
  std::size_t offset;
};
using Block = std::vector<const Stmt*>;

struct ConstExpr : Expr {
  ConstExpr(std::size_t o, Value v) : Expr(ExprKind::kConst, o), value(std::move(v)) {}
  Value value;
};
struct NameExpr : Expr {
  NameExpr(std::size_t o, int id) : Expr(ExprKind::kName, o), name_id(id) {}
  int name_id;
};
struct ListExpr : Expr {
  ListExpr(std::size_t o, std::vector<ExprRef> i, bool t) : Expr(ExprKind::kList, o), items(std::move(i)), tuple(t) {}
  std::vector<ExprRef> items;
  bool tuple;
};
struct DictExpr : Expr {
  explicit DictExpr(std::size_t o) : Expr(ExprKind::kDict, o) {}
  std::vector<std::pair<ExprRef, ExprRef>> entries;
};
struct AttributeExpr : Expr {
  AttributeExpr(std::size_t o, ExprRef e, std::string n) : Expr(ExprKind::kAttribute, o), object(e), name(std::move(n)) {}
  ExprRef object;
  std::string name;
};
struct ItemExpr : Expr {
  ItemExpr(std::size_t o, ExprRef e, ExprRef k) : Expr(ExprKind::kItem, o), object(e), key(k) {}
  ExprRef object;
  ExprRef key;  // may be a SliceExpr, which appears nowhere else
};
struct SliceExpr : Expr {
  explicit SliceExpr(std::size_t o) : Expr(ExprKind::kSlice, o) {}
  ExprRef start = nullptr, stop = nullptr, step = nullptr;
};
struct Arguments {
  std::vector<ExprRef> positional;
  std::vector<std::pair<std::string, ExprRef>> named;
  ExprRef all_positional = nullptr;  // *expression
  ExprRef all_named = nullptr;       // **expression
};
struct CallExpr : Expr {
  CallExpr(std::size_t o, ExprRef c, Arguments a) : Expr(ExprKind::kCall, o), callee(c), arguments(std::move(a)) {}
  ExprRef callee;
  Arguments arguments;
};
struct FilterExpr : Expr {
  FilterExpr(std::size_t o, ExprRef i, std::string n, Arguments a)
      : Expr(ExprKind::kFilter, o), input(i), name(std::move(n)), arguments(std::move(a)) {}
  ExprRef input;  // null at the head of a filter block: the block's text
  std::string name;
  Arguments arguments;
};
struct TestExpr : Expr {
  TestExpr(std::size_t o, ExprRef i, std::string n, Arguments a)
      : Expr(ExprKind::kTest, o), input(i), name(std::move(n)), arguments(std::move(a)) {}
  ExprRef input;
  std::string name;
  Arguments arguments;
};
enum class UnaryOp { kNot, kNegate, kPlus };
struct UnaryExpr : Expr {
  UnaryExpr(std::size_t o, UnaryOp p, ExprRef e) : Expr(ExprKind::kUnary, o), op(p), operand(e) {}
  UnaryOp op;
  ExprRef operand;
};
enum class ArithmeticOp { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
// first op second op third ..., from the left. Long chains stay flat, so they cost no recursion.
struct ArithmeticExpr : Expr {
  struct Step {
    ArithmeticOp op;
    std::size_t offset;
    ExprRef operand;
  };
  ArithmeticExpr(std::size_t o, ExprRef f) : Expr(ExprKind::kArithmetic, o), first(f) {}
  ExprRef first;
  std::vector<Step> rest;
};
struct ConcatExpr : Expr {
  explicit ConcatExpr(std::size_t o) : Expr(ExprKind::kConcat, o) {}
  std::vector<ExprRef> parts;
};
struct LogicExpr : Expr {
  LogicExpr(std::size_t o, bool a) : Expr(ExprKind::kLogic, o), conjunction(a) {}
  bool conjunction;  // and; else or
  std::vector<ExprRef> parts;
};
enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };
struct CompareExpr : Expr {
  CompareExpr(std::size_t o, ExprRef f) : Expr(ExprKind::kCompare, o), first(f) {}
  ExprRef first;
  std::vector<std::pair<CompareOp, ExprRef>> rest;
};
struct ConditionExpr : Expr {
  ConditionExpr(std::size_t o, ExprRef t, ExprRef c, ExprRef e) : Expr(ExprKind::kCondition, o), then(t), condition(c), otherwise(e) {}
  ExprRef then, condition, otherwise;  // otherwise may be null
};

// What a value can be assigned to: a name, a namespace attribute, or a tuple of targets.
struct Target {
  std::size_t offset = 0;
  int name_id = -1;
  std::optional<std::string> attribute;  // of the namespace called name_id
  bool tuple = false;
  std::vector<Target> items;
};

struct OutputStmt : Stmt {
  explicit OutputStmt(std::size_t o) : Stmt(StmtKind::kOutput, o) {}
  std::vector<ExprRef> parts;
};
struct ForStmt : Stmt {
  explicit ForStmt(std::size_t o) : Stmt(StmtKind::kFor, o) {}
  Target target;
  ExprRef iterable = nullptr;
  ExprRef condition = nullptr;
  bool recursive = false;
  Block body, otherwise;
};
struct IfStmt : Stmt {
  explicit IfStmt(std::size_t o) : Stmt(StmtKind::kIf, o) {}
  std::vector<std::pair<ExprRef, Block>> branches;
  Block otherwise;
};
struct SetStmt : Stmt {
  explicit SetStmt(std::size_t o) : Stmt(StmtKind::kSet, o) {}
  Target target;
  ExprRef value = nullptr;
};
struct SetBlockStmt : Stmt {
  explicit SetBlockStmt(std::size_t o) : Stmt(StmtKind::kSetBlock, o) {}
  Target target;
  ExprRef filter = nullptr;  // a chain of FilterExpr whose innermost input is null, or null
  Block body;
};
struct MacroStmt : Stmt {
  explicit MacroStmt(std::size_t o) : Stmt(StmtKind::kMacro, o) {}
  int name_id = -1;  // -1: the body of a call block
  std::string name;
  struct Parameter {
    int name_id;
    std::string name;
    ExprRef default_value;  // null: none
  };
  std::vector<Parameter> parameters;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
  Block body;
};
struct CallBlockStmt : Stmt {
  explicit CallBlockStmt(std::size_t o) : Stmt(StmtKind::kCallBlock, o) {}
  const CallExpr* call = nullptr;
  const MacroStmt* caller = nullptr;
};
struct FilterBlockStmt : Stmt {
  explicit FilterBlockStmt(std::size_t o) : Stmt(StmtKind::kFilterBlock, o) {}
  ExprRef filter = nullptr;
  Block body;
};
struct WithStmt : Stmt {
  explicit WithStmt(std::size_t o) : Stmt(StmtKind::kWith, o) {}
  std::vector<std::pair<Target, ExprRef>> bindings;
  Block body;
};
struct ScopeStmt : Stmt {  // {% generation %}, {% block %}
  explicit ScopeStmt(std::size_t o) : Stmt(StmtKind::kScope, o) {}
  Block body;
};
struct JumpStmt : Stmt {  // {% break %}, {% continue %}
  using Stmt::Stmt;
};

// Names every program knows by number.
enum KnownName : int { kNameCaller, kNameVarargs, kNameKwargs, kNameLoop, kNumKnownNames };

struct Program {
  std::string source;      // as given
  std::string normalized;  // what offsets count in
  std::vector<std::string> names;
  Block body;
  std::vector<std::unique_ptr<Expr>> exprs;
  std::vector<std::unique_ptr<Stmt>> stmts;
};

// Throws SyntaxError.
std::shared_ptr<const Program> parse(std::string source);

}  // namespace millrace::jinja

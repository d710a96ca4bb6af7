#pragma once

#include "millrace/tokenizer/jinja/ast.h"
#include "millrace/tokenizer/jinja/value.h"

// Python's operators. Integers are 64 bits; a result that does not fit is an error.
namespace millrace::jinja {

Value arithmetic(Runtime& runtime, ArithmeticOp op, const Value& a, const Value& b);
Value negate(const Value& value);
bool compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b);
bool contains(Runtime& runtime, const Value& container, const Value& item);
// value[start:stop:step]; absent bounds are undefined Values.
Value slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step);
int64_t require_integer(const Value& value, std::string_view what);

}  // namespace millrace::jinja

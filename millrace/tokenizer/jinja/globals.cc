#include "millrace/tokenizer/jinja/globals.h"

#include <fmt/format.h>

#include <ctime>

#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {
namespace {

// The sandbox's bound on range().
constexpr int64_t kMaxRange = 100'000;

Dict dict_from(Runtime& runtime, std::string_view function, const CallArguments& arguments) {
  if (arguments.positional.size() > 1) fail(fmt::format("{} expected at most 1 argument, got {}", function, arguments.positional.size()));
  Dict dict;
  const auto add = [&](Value key, Value value) {
    // Keys that are not strings are found by looking at all of them.
    runtime.budget().charge_bytes(key.is_string() ? 64 : 64 + dict.entries.size() * 8);
    dict.set(std::move(key), std::move(value));
  };
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    require_defined(source);
    if (source.is_dict()) {
      for (const auto& [key, value] : source.dict().entries) add(key, value);
    } else {
      for (const Value& item : runtime.iterate(source)) {
        const std::vector<Value> pair = runtime.iterate(item);
        if (pair.size() != 2) fail(fmt::format("dictionary update sequence element has length {}; 2 is required", pair.size()));
        add(pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) add(make_text(name, arguments.user_names), value);
  return dict;
}

Value make_range(Runtime& runtime, const CallArguments& arguments) {
  const auto& given = arguments.positional;
  if (!arguments.named.empty()) fail("range() takes no keyword arguments");
  if (given.empty() || given.size() > 3) fail(fmt::format("range expected 1 to 3 arguments, got {}", given.size()));
  std::vector<int64_t> bounds;
  for (const Value& value : given) bounds.push_back(require_integer(value, "range() arguments"));
  auto range = std::make_shared<List>();
  range->kind = ListKind::kRange;
  range->start = bounds.size() > 1 ? bounds[0] : 0;
  range->stop = bounds.size() > 1 ? bounds[1] : bounds[0];
  range->step = bounds.size() > 2 ? bounds[2] : 1;
  if (range->step == 0) fail("range() arg 3 must not be zero");
  const bool up = range->step > 0;
  const auto distance = static_cast<unsigned __int128>(up ? static_cast<__int128>(range->stop) - range->start
                                                          : static_cast<__int128>(range->start) - range->stop);
  const bool empty = up ? range->start >= range->stop : range->start <= range->stop;
  const auto stride = static_cast<unsigned __int128>(up ? static_cast<__int128>(range->step) : -static_cast<__int128>(range->step));
  const auto count = empty ? 0 : (distance - 1) / stride + 1;
  if (count > kMaxRange) fail(fmt::format("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange));
  runtime.budget().charge_bytes(static_cast<std::size_t>(count) * sizeof(Value));
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) range->items.push_back(Value(range->start + i * range->step));
  return std::shared_ptr<const List>(std::move(range));
}

Value make_namespace(Runtime& runtime, const CallArguments& arguments) {
  return static_cast<Object*>(runtime.make_object<Namespace>(dict_from(runtime, "dict", arguments)));
}

Value make_dict(Runtime& runtime, const CallArguments& arguments) { return dict_from(runtime, "dict", arguments).finish(); }

class Cycler : public Object {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::string type_name() const override { return "Cycler"; }
  std::string repr(Runtime&) override { return "<Cycler>"; }
  std::optional<Value> attribute(Runtime&, std::string_view name) override {
    if (name == "current") return items_[position_];
    if (name == "pos") return Value(static_cast<int64_t>(position_));
    if (name == "items") return make_list(items_, ListKind::kTuple);
    if (name == "next")
      return method("next", [](Runtime&, const Value& self, const CallArguments&) {
        auto& cycler = static_cast<Cycler&>(*self.object());
        Value item = cycler.items_[cycler.position_];
        cycler.position_ = (cycler.position_ + 1) % cycler.items_.size();
        return item;
      });
    if (name == "reset")
      return method("reset", [](Runtime&, const Value& self, const CallArguments&) {
        static_cast<Cycler&>(*self.object()).position_ = 0;
        return Value(None{});
      });
    return std::nullopt;
  }

 private:
  Value method(std::string_view name, MethodFunction function) {
    return std::shared_ptr<const BoundMethod>(
        std::make_shared<BoundMethod>(BoundMethod{Value(static_cast<Object*>(this)), name, function}));
  }
  std::vector<Value> items_;
  std::size_t position_ = 0;
};

class Joiner : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string type_name() const override { return "Joiner"; }
  std::string repr(Runtime&) override { return "<Joiner>"; }
  bool is_callable() const override { return true; }
  Value call(Runtime&, const CallArguments&) override {
    if (used_) return separator_;
    used_ = true;
    return make_text("");
  }

 private:
  Value separator_;
  bool used_ = false;
};

Value make_cycler(Runtime& runtime, const CallArguments& arguments) {
  if (arguments.positional.empty()) fail("at least one item has to be provided");
  return static_cast<Object*>(runtime.make_object<Cycler>(arguments.positional));
}

Value make_joiner(Runtime& runtime, const CallArguments& arguments) {
  const auto bound = arguments.bind("joiner", {"sep"});
  return static_cast<Object*>(runtime.make_object<Joiner>(bound[0].has_value() ? *bound[0] : Value(make_text(", "))));
}

Value raise_exception(Runtime& runtime, const CallArguments& arguments) {
  const auto bound = arguments.bind("raise_exception", {"message"});
  if (!bound[0].has_value()) fail("raise_exception() missing 1 required argument: 'message'");
  throw RaisedByTemplate{runtime.text_of(*bound[0])->bytes};
}

// datetime.now().strftime(format): no time zone, no microseconds.
Value strftime_now(Runtime& runtime, const CallArguments& arguments) {
  const auto bound = arguments.bind("strftime_now", {"format"});
  if (!bound[0].has_value() || !bound[0]->is_string()) fail("strftime_now() needs a format string");
  std::tm fields{};
  if (runtime.options().now.has_value()) {
    const std::time_t seconds = runtime.options().now->time_since_epoch().count();
    gmtime_r(&seconds, &fields);
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &fields);
  }
  std::string format;
  const std::string& given = bound[0]->text().bytes;
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (given[i] != '%' || i + 1 >= given.size()) {
      format += given[i];
      continue;
    }
    const char code = given[++i];
    if (code == 'f')
      format += "000000";
    else if (code != 'z' && code != 'Z')
      (format += '%') += code;
  }
  if (format.size() > 4096) fail("the strftime_now format is too long");
  // A leading character tells an empty result from one that did not fit.
  std::string out(format.size() * 64 + 64, '\0');
  out.resize(std::strftime(out.data(), out.size(), (" " + format).c_str(), &fields));
  runtime.budget().charge_bytes(out.size());
  return make_text(out.empty() ? "" : out.substr(1), bound[0]->text().has_user());
}

constexpr NamedGlobal kGlobals[] = {{"range", make_range},         {"namespace", make_namespace}, {"dict", make_dict},
                                    {"cycler", make_cycler},       {"joiner", make_joiner},       {"raise_exception", raise_exception},
                                    {"strftime_now", strftime_now}};

}  // namespace

std::string Namespace::repr(Runtime& runtime) {
  TextBuilder out(runtime.budget());
  out.append("<Namespace {");
  bool first = true;
  for (const auto& [key, value] : attributes_.entries) {
    if (!first) out.append(", ");
    first = false;
    append_repr(runtime, out, key, 1);
    out.append(": ");
    append_repr(runtime, out, value, 1);
  }
  out.append("}>");
  return out.take_bytes();
}

std::optional<Value> Namespace::attribute(Runtime&, std::string_view name) {
  const Value* value = attributes_.find(name);
  return value != nullptr ? std::optional<Value>(*value) : std::nullopt;
}

void Namespace::set(std::string_view name, Value value) { attributes_.set(make_text(std::string(name)), std::move(value)); }

GlobalFunction find_global(std::string_view name) {
  for (const auto& global : kGlobals) {
    if (global.name == name) return global.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja

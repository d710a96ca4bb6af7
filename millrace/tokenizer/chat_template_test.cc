#include "millrace/tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

#include "millrace/base/test_data.h"

namespace millrace {
namespace {

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

json::value read_json(const std::filesystem::path& path) {
  Result<json::value> value = parse_json(read_text(path), {.max_depth = 128});
  EXPECT_TRUE(value.is_ok()) << path << ": " << value.status().message();
  return value.is_ok() ? std::move(*value) : json::value();
}

ChatTemplate compiled(std::string source) {
  Result<ChatTemplate> result = ChatTemplate::compile(std::move(source));
  MR_CHECK(result.is_ok(), result.status().message());
  return std::move(*result);
}

json::value parsed(std::string_view text) { return std::move(parse_json(text)).value(); }

// A conversation of one user message.
ChatTemplateInput one_message(std::string_view content) {
  ChatTemplateInput input;
  input.messages.push_back(json::object{{"role", "user"}, {"content", content}});
  return input;
}

std::string rendered(std::string source, const ChatTemplateInput& input = one_message("Hi")) {
  const Result<RenderedPrompt> prompt = compiled(std::move(source)).render(input);
  return prompt.is_ok() ? prompt->text : "error: " + prompt.status().message();
}

// The text with the client's bytes between brackets.
std::string marked(std::string source, const ChatTemplateInput& input) {
  const Result<RenderedPrompt> prompt = compiled(std::move(source)).render(input);
  if (!prompt.is_ok()) return "error: " + prompt.status().message();
  std::string out;
  std::size_t at = 0;
  for (const TextRange& range : prompt->user_ranges) {
    EXPECT_LT(range.begin, range.end);
    EXPECT_TRUE(range.begin > at || (range.begin == 0 && at == 0)) << "ranges touch";
    out += prompt->text.substr(at, range.begin - at) + "[" + prompt->text.substr(range.begin, range.end - range.begin) + "]";
    at = range.end;
  }
  return out + prompt->text.substr(at);
}

// "2025-01-02 03:04:05" as seconds since 1970.
std::chrono::sys_seconds clock_of(const std::string& text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0;
  EXPECT_EQ(std::sscanf(text.c_str(), "%d-%d-%d %d:%d:%d", &year, &month, &day, &hour, &minute, &second), 6);
  const std::chrono::year_month_day date(std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day)));
  return std::chrono::sys_days(date) + std::chrono::hours(hour) + std::chrono::minutes(minute) + std::chrono::seconds(second);
}

// Every case of one golden file, whose texts jinja2 made.
void check_golden(const std::filesystem::path& path) {
  SCOPED_TRACE(path.filename().string());
  const json::value golden = read_json(path);
  const Result<ChatTemplate> chat_template = ChatTemplate::compile(std::string(golden.at("template").as_string()));
  for (const json::value& test : golden.at("cases").as_array()) {
    SCOPED_TRACE(std::string(test.at("name").as_string()));
    // jinja2 finds some errors when it renders that are found here when the template is compiled.
    if (!chat_template.is_ok()) {
      EXPECT_TRUE(test.as_object().contains("error")) << chat_template.status().message();
      continue;
    }
    ChatTemplateInput input;
    input.messages = test.at("messages").as_array();
    if (!test.at("tools").is_null()) input.tools = test.at("tools").as_array();
    input.add_generation_prompt = test.at("add_generation_prompt").as_bool();
    input.bos_token = golden.at("bos_token").as_string();
    input.eos_token = golden.at("eos_token").as_string();
    input.variables = golden.at("variables").as_object();
    if (const json::value* more = test.as_object().if_contains("variables")) {
      for (const auto& variable : more->as_object()) {
        if (variable.key() == "documents")
          input.documents = variable.value().as_array();
        else
          input.variables[variable.key()] = variable.value();
      }
    }
    input.now = clock_of(std::string(golden.at("clock").as_string()));
    const Result<RenderedPrompt> prompt = chat_template->render(input);
    if (!test.as_object().contains("error")) {
      EXPECT_EQ(prompt.is_ok() ? prompt->text : prompt.status().message(), std::string(test.at("text").as_string()));
      continue;
    }
    EXPECT_FALSE(prompt.is_ok()) << "jinja2: " << test.at("error").as_string();
    if (prompt.is_ok()) continue;
    // "TemplateError: words" is what raise_exception was given.
    const std::string expected(test.at("error").as_string());
    const std::string_view raised = "TemplateError: ";
    EXPECT_EQ(ChatTemplate::raised_by_template(prompt.status()), expected.starts_with(raised)) << prompt.status().message();
    if (expected.starts_with(raised)) {
      EXPECT_EQ(prompt.status().message(), expected.substr(raised.size()));
    }
  }
}

std::vector<std::filesystem::path> json_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(ChatTemplate, RendersTheCommittedGoldens) {
  const auto files = json_files(source_dir() / "tests/golden/chat_templates");
  ASSERT_GE(files.size(), 5u);
  for (const auto& file : files) check_golden(file);
}

TEST(ChatTemplate, RendersAllGoldens) {
  const auto folder = source_dir() / "../shared/golden/chat_templates";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "the full set of golden chat templates is not beside the checkout";
  for (const auto& file : json_files(folder)) check_golden(file);
}

// tools/check_templates.py makes the folder from templates of its choice.
TEST(ChatTemplate, RendersGivenGoldens) {
  const char* folder = std::getenv("MILLRACE_CHAT_TEMPLATE_GOLDENS");
  if (folder == nullptr) GTEST_SKIP() << "MILLRACE_CHAT_TEMPLATE_GOLDENS names no folder (see tools/check_templates.py)";
  const auto files = json_files(folder);
  ASSERT_FALSE(files.empty());
  for (const auto& file : files) check_golden(file);
}

TEST(ChatTemplate, AgreesWithJinja2OnTheLanguageCases) {
  const json::value golden = read_json(source_dir() / "tests/golden/jinja_cases.json");
  const json::object& context = golden.at("context").as_object();
  ASSERT_GE(golden.at("cases").as_array().size(), 300u);
  for (const json::value& test : golden.at("cases").as_array()) {
    const std::string source(test.at("template").as_string());
    SCOPED_TRACE(source);
    ChatTemplateInput input;
    input.variables = context;
    input.bos_token = "<s>";
    input.eos_token = "</s>";
    input.now = clock_of("2025-01-02 03:04:05");
    const Result<ChatTemplate> chat_template = ChatTemplate::compile(source);
    const bool compiles = chat_template.is_ok();
    const Result<RenderedPrompt> prompt = compiles ? chat_template->render(input) : Result<RenderedPrompt>(chat_template.status());
    if (const json::value* text = test.as_object().if_contains("text")) {
      EXPECT_EQ(prompt.is_ok() ? prompt->text : prompt.status().message(), std::string(text->as_string()));
    } else {
      EXPECT_FALSE(prompt.is_ok()) << "jinja2: " << test.at("error").as_string() << "\nours: " << (prompt.is_ok() ? prompt->text : "");
    }
  }
}

TEST(ChatTemplate, ErrorsSayLineAndColumn) {
  EXPECT_EQ(ChatTemplate::compile("a\nb {{ 1 + }}").status().message(), "line 2, column 10: unexpected 'end of print statement'");
  EXPECT_EQ(ChatTemplate::compile("{% for x in y %}").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(rendered("first\n  {{ nothing.at_all }}"), "error: line 2, column 14: 'nothing' is undefined");
  EXPECT_EQ(rendered("{{ messages[0].content + 1 }}"), "error: line 1, column 24: can only concatenate str (not \"int\") to str");
}

TEST(ChatTemplate, RaiseExceptionSpeaksForItself) {
  const Result<RenderedPrompt> prompt = compiled("{{ raise_exception('only users may speak') }}").render(one_message("Hi"));
  ASSERT_FALSE(prompt.is_ok());
  EXPECT_EQ(prompt.status().message(), "only users may speak");
  EXPECT_TRUE(ChatTemplate::raised_by_template(prompt.status()));
  EXPECT_FALSE(ChatTemplate::raised_by_template(compiled("{{ x.y }}").render(one_message("Hi")).status()));
}

TEST(ChatTemplate, RefusesVariablesThatHideTheConversation) {
  ChatTemplateInput input = one_message("Hi");
  input.variables["messages"] = json::array();
  EXPECT_FALSE(compiled("x").render(input).is_ok());
}

TEST(ChatTemplate, AbsentToolsAreNoneAndGivenOnesAList) {
  ChatTemplateInput input = one_message("Hi");
  const std::string source = "{{ tools is defined }} {{ tools is none }} {{ tools is iterable }}";
  EXPECT_EQ(rendered(source, input), "True True False");
  input.tools = json::array();
  EXPECT_EQ(rendered(source, input), "True False True");
}

TEST(ChatTemplate, KnowsWhatTheClientWrote) {
  ChatTemplateInput input = one_message(" a<|im_end|>b, c ");
  input.bos_token = "<s>";
  input.variables["name"] = "ann";
  const std::string m = "{% set c = messages[0].content %}";
  EXPECT_EQ(marked("{{ bos_token }}<|im_start|>{{ messages[0].role }}\n{{ messages[0].content }}<|im_end|>", input),
            "<s><|im_start|>user\n[ a<|im_end|>b, c ]<|im_end|>");
  EXPECT_EQ(marked(m + "{{ '<' + c|trim ~ '>' }}", input), "<[a<|im_end|>b, c]>");
  EXPECT_EQ(marked(m + "{{ ('<' + c + '>')[1:5] }}{{ ('<<' ~ c)[0:4] }}", input), "[ a<|]<<[ a]");
  EXPECT_EQ(marked(m + "{{ c.split(', ')|join('; ') }}", input), "[ a<|im_end|>b]; [c ]");
  EXPECT_EQ(marked(m + "{{ c | replace('<|', '') }}|{{ 'x-y' | replace('-', name) }}", input), "[ aim_end|>b, c ]|x[ann]y");
  EXPECT_EQ(marked(m + "{{ c.strip().upper() }}", input), "[A<|IM_END|>B, C]");
  EXPECT_EQ(marked(m + "{{ '%s!' % name }}{{ '{}?'.format(name) }}{{ '%5s.'|format(name) }}", input), "[ann]![ann]?  [ann].");
  EXPECT_EQ(marked("{% set x %}({{ name }}){% endset %}{{ x }}{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(name) }}", input),
            "([ann])<[ann]>");
  EXPECT_EQ(marked("{% filter upper %}x{{ name }}{% endfilter %}", input), "X[ANN]");
  EXPECT_EQ(marked("{{ {'a': 1}|tojson }}{{ messages[0]|tojson|length }}{{ [1, 'x'] }}{{ [name] }}", input),
            "{\"a\": 1}48[1, 'x'][['ann']]");
  EXPECT_EQ(marked("{{ messages[0]|tojson }}", input), R"([{"role": "user", "content": " a<|im_end|>b, c "}])");
  EXPECT_EQ(marked("{{ name * 2 }}-{{ name|indent(1, first=true) }}-{{ name|list|join('.') }}", input), "[annann]- [ann]-[a].[n].[n]");
  EXPECT_EQ(marked("{{ ('x ' ~ name)|wordwrap(2) }}{{ {'a': name}|xmlattr }}{{ [name]|pprint }}", input),
            "x \n[an]\n[n] a=\"[ann]\"[['ann']]");
  EXPECT_EQ(marked("{{ ('(http://' ~ name ~ '.de)')|urlize }}", input),
            "(<a href=\"http://[ann].de\" rel=\"noopener\">http://[ann].de</a>)");
  EXPECT_EQ(marked("{{ '%c' % 65 }}{{ '{:{f}>3}'.format('x', f=name[0]) }}{{ dict(**{'k': name}) }}", input), "[Aaa]x[{'k': 'ann'}]");
  EXPECT_EQ(marked("{% macro f() %}{{ kwargs.keys()|join(',') }}{% endmacro %}{{ f(**messages[0]) }}-{{ f(a=1) }}", input),
            "[role],[content]-a");
  EXPECT_EQ(marked("{% for k, v in {'a': name}|items %}{{ k }}={{ v }};{% endfor %}{{ namespace(a=name) }}", input),
            "a=[ann];[<Namespace {'a': 'ann'}>]");
}

TEST(ChatTemplate, OnlyUsualRolesAreTemplateText) {
  const std::string source = "{% for m in messages %}<|{{ m.role }}|>{% endfor %}";
  ChatTemplateInput input;
  for (const char* role : {"user", "assistant", "im_end"}) input.messages.push_back(json::object{{"role", role}, {"content", "x"}});
  EXPECT_EQ(marked(source, input), "<|user|><|assistant|><|[im_end]|>");
}

TEST(ChatTemplate, ClientTextBeyondAsciiKeepsItsBytes) {
  ChatTemplateInput input = one_message("äß€😀");
  EXPECT_EQ(marked("{% set c = messages[0].content %}{{ c[1:3] }}|{{ c|upper }}|{{ c[-1] }}|{{ c|length }}", input),
            "[ß€]|[ÄSS€😀]|[😀]|4");
}

struct Bomb {
  const char* name;
  std::string source;
};

// Whatever a template does, it ends soon and says why.
TEST(ChatTemplate, BombsEndQuickly) {
  const auto nested = [](int depth, const std::string& open, const std::string& middle, const std::string& close) {
    std::string out;
    for (int i = 0; i < depth; ++i) out += open;
    out += middle;
    for (int i = 0; i < depth; ++i) out += close;
    return out;
  };
  const std::string loops = "{% for i in range(100000) %}";
  const Bomb bombs[] = {
      {"nested loops", loops + loops + loops + "x{% endfor %}{% endfor %}{% endfor %}"},
      {"empty nested loops", loops + loops + loops + "{% endfor %}{% endfor %}{% endfor %}"},
      {"string doubling",
       "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s|length }}"},
      {"list doubling", "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s|length }}"},
      {"huge product", "{{ 'x' * 10 ** 12 }}"},
      {"huge list product", "{{ ([1] * 10 ** 12)|length }}"},
      {"huge range", "{% for i in range(10 ** 9) %}x{% endfor %}"},
      {"wide format", "{{ '%999999999d' % 1 }}"},
      {"wide brace format", "{{ '{:999999999}'.format(1) }}"},
      {"wide center", "{{ 'x'|center(10 ** 15) }}"},
      {"wide indent", "{{ 'x\\ny'|indent(10 ** 15) }}"},
      {"big power", "{{ 10 ** 10 ** 10 }}"},
      {"endless recursion", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"},
      {"deep arguments", "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}"},
      {"recursive loop", "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}"},
      {"deep list", "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}"},
      {"replace growth",
       "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('a', 'aaaaaaaaaa') %}{% endfor %}{{ ns.s|length "
       "}}"},
      {"join growth", "{% set s = 'x' * 100000 %}{{ (range(100000)|map('string')|join(s))|length }}"},
      {"batch fill", "{{ [1]|batch(10 ** 12, 'x')|list|length }}"},
      {"long searches", "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{% if 'b' in s %}x{% endif %}{% endfor %}"},
      {"long comparisons",
       "{% set s = 'a' * 1000000 %}{% set t = s ~ '' %}{% for i in range(100000) %}{% if t == s %}{% endif %}{% endfor %}"},
      {"deep parentheses", "{{ " + nested(100000, "(", "1", ")") + " }}"},
      {"deep lists", "{{ " + nested(100000, "[", "", "]") + " }}"},
      {"many nots", "{{ " + nested(100000, "not ", "1", "") + " }}"},
      {"many signs", "{{ " + nested(100000, "-", "1", "") + " }}"},
      {"many blocks", nested(100000, "{% if true %}", "x", "{% endif %}")},
      {"long attribute chain", "{{ messages" + nested(200000, "[0:1]", "", "") + " }}"},
      {"long filter chain", "{{ 'x'" + nested(200000, "|upper", "", "") + " }}"},
      {"long call chain", "{{ dict" + nested(100000, "()", "", "") + " }}"}};
  for (const Bomb& bomb : bombs) {
    SCOPED_TRACE(bomb.name);
    const std::clock_t begin = std::clock();
    const Result<ChatTemplate> chat_template = ChatTemplate::compile(bomb.source);
    Status status = chat_template.status();
    if (chat_template.is_ok()) {
      const Result<RenderedPrompt> prompt = chat_template->render(one_message("Hi"));
      EXPECT_FALSE(prompt.is_ok());
      status = prompt.status();
    }
    EXPECT_NE(status.message().find("line 1, column "), std::string::npos) << status.message();
    // Processor time, so that a busy machine does not matter; generous for the sanitizers.
    EXPECT_LT(std::clock() - begin, 20 * CLOCKS_PER_SEC);
  }
}

TEST(ChatTemplate, LongFlatExpressionsAreFine) {
  std::string sum = "{{ 1";
  for (int i = 0; i < 5000; ++i) sum += " + 1";
  EXPECT_EQ(rendered(sum + " }}"), "5001");
  std::string chain = "{% if false %}";
  for (int i = 0; i < 2000; ++i) chain += "{% elif false %}";
  EXPECT_EQ(rendered(chain + "{% else %}x{% endif %}"), "x");
}

TEST(ChatTemplate, DeepButReasonableRecursionWorks) {
  EXPECT_EQ(rendered("{% macro f(n) %}{% if n > 0 %}{% for i in [n] %}{% if i %}({{ f(n - 1) }}){% endif %}{% endfor %}{% endif %}{% "
                     "endmacro %}{{ f(90)|length }}"),
            "180");
}

TEST(ChatTemplate, LimitsAreReportedAsSuch) {
  const ChatTemplate chat_template = compiled("{% for i in range(1000) %}xxxxxxxxxx{% endfor %}");
  EXPECT_TRUE(chat_template.render(one_message("Hi")).is_ok());
  const Result<RenderedPrompt> long_text = chat_template.render(one_message("Hi"), {.output_bytes = 5000});
  EXPECT_EQ(long_text.status().code(), StatusCode::kResourceExhausted);
  const Result<RenderedPrompt> much_work = chat_template.render(one_message("Hi"), {.fuel = 500});
  EXPECT_EQ(much_work.status().code(), StatusCode::kResourceExhausted);
}

TEST(ChatTemplate, NothingOfTheHostCanBeReached) {
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}", "{{ range.__globals__['os'] }}", "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}", "{{ messages[0].pop('role') }}", "{% include 'x' %}", "{% import 'x' as y %}",
        "{% extends 'x' %}", "{{ '{0.__class__.__mro__}'.format('') }}"}) {
    const Result<ChatTemplate> chat_template = ChatTemplate::compile(source);
    if (chat_template.is_ok()) {
      EXPECT_FALSE(chat_template->render(one_message("Hi")).is_ok()) << source;
    }
  }
}

TEST(ChatTemplate, ThreadsShareOneProgram) {
  const ChatTemplate chat_template = compiled(
      "{% macro m(x) %}<{{ x|upper }}>{% endmacro %}{% set ns = namespace(n=0) %}{% for i in range(50) %}{% set ns.n = ns.n + i %}"
      "{{ m(messages[0].content) }}{% endfor %}{{ ns.n }}{{ {'a': [1, 'b']} }}");
  const std::string expected = chat_template.render(one_message("abc"))->text;
  std::vector<std::thread> threads;
  std::vector<std::string> texts(4);
  for (std::string& text : texts) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) text = chat_template.render(one_message("abc"))->text;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const std::string& text : texts) EXPECT_EQ(text, expected);
}

// Names and keys that are found by looking at all of them are bounded, or paid for: 300,000 of either took minutes within the fuel.
TEST(ChatTemplate, ManyNamesAndKeysAreBounded) {
  std::string many_names, many_keys = "{% set d = {";
  for (int i = 0; i < 5000; ++i) many_names += "{% set a" + std::to_string(i) + " = 1 %}";
  for (int i = 0; i < 60'000; ++i) many_keys += std::to_string(i) + ": 1, ";
  const auto refused = ChatTemplate::compile(many_names);
  ASSERT_FALSE(refused.is_ok());
  EXPECT_NE(refused.status().message().find("more than 4096 names"), std::string::npos) << refused.status().message();
  EXPECT_EQ(compiled(many_keys + "} %}").render(one_message("Hi")).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(rendered("{% set d = {1: 'a', 'b': 2, 3.5: 'c'} %}{{ d[1] }}{{ d.b }}{{ d[3.5] }}", one_message("Hi")), "a2c");
}

TEST(ChatTemplate, StrftimeShowsTheGivenClock) {
  ChatTemplateInput input = one_message("Hi");
  input.now = clock_of("2024-07-26 09:05:07");
  EXPECT_EQ(rendered("{{ strftime_now('%d %b %Y %H:%M:%S %A %-d') }}", input), "26 Jul 2024 09:05:07 Friday 26");
  input.now.reset();
  EXPECT_EQ(rendered("{{ strftime_now('%Y')|length }}", input), "4");
}

TEST(ChatTemplate, WideIntegersKeepTheirDigits) {
  ChatTemplateInput input = one_message("Hi");
  input.variables = parsed(R"({"n": 9007199254740993, "f": 1.0, "e": 1e22})").as_object();
  EXPECT_EQ(rendered("{{ n }} {{ f }} {{ e }} {{ [n, f]|tojson }}", input), "9007199254740993 1.0 1e+22 [9007199254740993, 1.0]");
}

}  // namespace
}  // namespace millrace

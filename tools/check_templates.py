#!/usr/bin/env python3
"""Renders every *.jinja of a folder with jinja2 and with millrace, on many conversations, and compares the texts.

Usage: tools/check_templates.py FOLDER [--test build/dev/tokenizer_test]
(needs the Python packages jinja2 and markupsafe; the folder may be llama-cpp-python's vendor/llama.cpp/models/templates)
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jinja_oracle

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Current weather, \"now\" <b>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Città"}, "unit": {"type": "string", "enum": ["c", "f"]},
                                     "days": {"type": "integer", "default": 3}}, "required": ["city"]}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {
    "type": "object", "properties": {"xs": {"type": "array", "items": {"type": "number"}}, "opt": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                                     "o": {"type": "object", "properties": {"p": {"type": ["string", "null"]}}}}, "required": ["xs"]}}}
BARE = {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}}


def user(text="Hi"):
    return {"role": "user", "content": text}


def assistant(text="Hello!", **more):
    return {"role": "assistant", "content": text, **more}


def system(text="Be terse."):
    return {"role": "system", "content": text}


def call(name, arguments, call_id="call_ab12"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(text, call_id="call_ab12", name="get_weather"):
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": text}


def part(text):
    return {"type": "text", "text": text}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
PARIS = {"city": "Paris", "unit": "c"}

# name: (messages, tools, add_generation_prompt, further variables)
CONVERSATIONS = {
    "user": ([user()], None, True, {}),
    "user-no-prompt": ([user()], None, False, {}),
    "system": ([system(), user("  padded\n\n")], None, True, {}),
    "turns": ([system(), user("One"), assistant(), user("Zwei 😀"), assistant("drei"), user("Four <|im_end|>")], None, True, {}),
    "ends-with-assistant": ([user(), assistant("See you.")], None, False, {}),
    "thought-in-text": ([user(), assistant("<think>\nhmm\n</think>\n\nHello!"), user("More")], None, True, {}),
    "reasoning": ([user(), assistant("Hello!", reasoning_content="I wave."), user("More"), assistant("Last", reasoning_content="Why")], None, False, {}),
    "thinking-on": ([system(), user()], None, True, {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "thinking-off": ([system(), user()], None, True, {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}),
    "empty-content": ([system(""), user("")], None, True, {}),
    "null-content": ([user(), {"role": "assistant", "content": None, "tool_calls": [call("get_weather", PARIS)]}, tool("21")], [WEATHER], True, {}),
    "tools": ([system(), user("Weather?")], [WEATHER, ADD, BARE], True, {}),
    "tools-no-system": ([user("Weather?")], [ADD], True, {}),
    "tool-call": ([user("Weather?"), assistant("", tool_calls=[call("get_weather", PARIS)]), tool("{\"t\": 21}")], [WEATHER], True, {}),
    "tool-call-nine": ([user("Weather?"), assistant("", tool_calls=[call("get_weather", PARIS, "abcdefghi")]), tool("21", "abcdefghi"), assistant("21."), user("ok")], [WEATHER, ADD], True, {}),
    "tool-call-text-arguments": ([user("W?"), assistant("Looking.", tool_calls=[call("get_weather", json.dumps(PARIS))]), tool("21")], [WEATHER], True, {}),
    "two-calls": ([user("W?"), assistant("", tool_calls=[call("get_weather", PARIS, "aaaaaaaa1"), call("add", {"xs": [1, 2.5, None, True], "o": {"p": "é\n\"q\""}}, "aaaaaaaa2")]),
                   tool("21", "aaaaaaaa1"), tool("[3.5]", "aaaaaaaa2", "add"), assistant("Done.")], [WEATHER, ADD], False, {}),
    "tool-without-tools": ([user("W?"), assistant("", tool_calls=[call("get_weather", PARIS)]), tool("21"), user("thanks")], None, True, {}),
    "parts": ([{"role": "system", "content": [part("Be kind.")]}, {"role": "user", "content": [part("One"), part(" two")]}], None, True, {}),
    "image": ([{"role": "user", "content": [part("What is"), {"type": "image"}, part("this?")]}], None, True, {}),
    "image-url": ([{"role": "user", "content": [IMAGE, part("this?")]}], None, True, {}),
    "developer": ([{"role": "developer", "content": "Dev says."}, user()], None, True, {}),
    "odd-order": ([assistant("First"), user("Hi"), user("Again")], None, True, {}),
    "unknown-role": ([{"role": "narrator", "content": "Once"}, user()], None, True, {}),
    "no-messages": ([], None, True, {}),
    "no-content": ([{"role": "user"}], None, True, {}),
    "documents": ([user("Ask")], None, True, {"documents": [{"title": "T", "text": "Body <x>", "doc_id": 1}]}),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--test", default="build/dev/tokenizer_test", help="the tokenizer room's test executable")
    options = arguments.parse_args()
    env = jinja_oracle.environment()
    num_templates = num_cases = num_errors = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(options.folder.glob("*.jinja")):
            source = path.read_text(encoding="utf-8")
            cases = []
            for name, (messages, tools, prompt, more) in CONVERSATIONS.items():
                variables = dict(more)
                variables.setdefault("documents", None)
                result = jinja_oracle.render(env, source, dict(
                    variables, messages=messages, tools=tools, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"))
                cases.append({"name": name, "messages": messages, "tools": tools, "add_generation_prompt": prompt,
                              "variables": more, **result})
                num_cases += 1
                num_errors += "error" in result
            golden = {"format": 1, "template_name": path.stem, "bos_token": "<s>", "eos_token": "</s>", "clock": "2025-01-02 03:04:05",
                      "variables": {}, "template": source, "cases": cases}
            pathlib.Path(folder, path.stem + ".json").write_text(json.dumps(golden), encoding="utf-8")
            num_templates += 1
        print(f"{num_templates} templates, {num_cases} renderings, {num_errors} of them refused by jinja2", flush=True)
        environment = dict(os.environ, MILLRACE_CHAT_TEMPLATE_GOLDENS=folder)
        return subprocess.call([options.test, "--gtest_filter=ChatTemplate.RendersGivenGoldens"], env=environment)


if __name__ == "__main__":
    sys.exit(main())

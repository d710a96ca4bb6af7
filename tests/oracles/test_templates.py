"""Chat templates against jinja2, set up as transformers does (tools/jinja_oracle.py), on templates made at random.

A generator writes templates out of what published ones are made of, so that none was seen while the interpreter was written.
MILLRACE_TEMPLATES may name a folder of *.jinja files, which are rendered, too.
"""
import json
import os
import pathlib
import random
import sys

import pytest

from command import DONE, ERROR, MODELS, ROOT, millrace

pytest.importorskip("jinja2", reason="the package jinja2 is not installed (tests/requirements-full.txt)")
sys.path.insert(0, str(ROOT / "tools"))
import jinja_oracle  # noqa: E402

NUM_TEMPLATES = 120

CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {"messages": [{"role": "system", "content": "  Be <brief> & \"exact\".\n"}, {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
                  {"role": "user", "content": "naïve 東京 😀\n  indented"}]},
    {"messages": [{"role": "user", "content": "call it"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, None, True]}}}]},
                  {"role": "tool", "content": "{\"y\": 1}"}],
     "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}]},
]


class Generator:
    """Random templates. Every expression is of a known kind, so that most of them render; some are errors, which must be errors here too."""

    def __init__(self, choose):
        self.choose, self.depth, self.names = choose, 0, []

    def text(self):
        pick = self.choose.choice
        return pick(["<|a|>", "\n", " ", "x\n  ", "\t", "'", "[INST] ", "é", "", "\n\n", "{ }", "#"])

    def literal(self):
        return self.choose.choice(["'a'", "\"b c\"", "'\\n'", "'  pad '", "'A,b,C'", "''", "'é😀'"])

    def string(self):
        self.depth += 1
        if self.depth > 5:
            self.depth -= 1
            return self.literal()
        pick, some = self.choose.choice, self.string
        made = pick([
            self.literal, lambda: "m['role']", lambda: "m.content", lambda: "m['content']", lambda: f"({some()} + {some()})", lambda: f"({some()} ~ {self.number()})",
            lambda: f"{some()} | {pick(['trim', 'upper', 'lower', 'capitalize', 'title', 'string', 'safe', 'length | string'])}",
            lambda: f"({some()}).{pick(['strip()', 'upper()', 'lower()', 'lstrip()', 'rstrip()', 'title()', 'capitalize()'])}",
            lambda: f"({some()}).replace({self.literal()}, {self.literal()})" if self.choose.random() < 0.7 else f"({some()}) | replace('a', {self.literal()})",
            lambda: f"({some()}).split(',')[{pick([0, -1])}]", lambda: f"({some()})[{pick(['1:', ':3', '::-1', '-2:', '0:4:2'])}]",
            lambda: f"({some()} if {self.condition()} else {some()})", lambda: f"(m | tojson)", lambda: f"({self.number()} | tojson)",
            lambda: f"({some()} | default({self.literal()}))", lambda: f"(m.missing | default({self.literal()}))", lambda: f"({self.items()} | join({self.literal()}))",
            lambda: f"(m.get('content', {self.literal()}))", lambda: f"({some()}).join(['p', 'q'])", lambda: "bos_token", lambda: "(eos_token or '')",
            lambda: pick(self.names) if self.names else self.literal(), lambda: f"({some()} | first)", lambda: f"({some()} | last)", lambda: f"'%s-%d' % ({some()}, 3)",
        ])()
        self.depth -= 1
        return made

    def number(self):
        pick = self.choose.choice
        return pick(["1", "2.5", "loop.index", "loop.index0", "loop.revindex", "loop.length", "messages | length", "(messages | length - 1)", "7 // 2", "7 % 3", "2 ** 3", "-1", "(3 * 2 + 1)",
                     f"({self.literal()} | length)", "('12' | int)", "(7 / 2)", "[3, 1, 2] | max", "[1, 2] | sum", "(2.7 | round)", "(-3 | abs)"])

    def items(self):
        return self.choose.choice(["['c', 'a', 'b']", "(['c', 'a', 'B'] | sort)", "(['a', 'b'] | reverse | list)", "messages | map(attribute='role') | list", "(m.keys() | list)",
                                   "'abc' | list", "(messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list)", "(['a', 'a', 'b'] | unique | list)",
                                   "(messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list)", "('a b  c'.split())"])

    def condition(self):
        pick = self.choose.choice
        return pick([f"{self.string()} == 'user'", "m['role'] in ['user', 'tool']", "loop.first", "loop.last", "not loop.first", f"{self.number()} > 1", "tools", "tools is defined", "m.content is string",
                     "m['tool_calls'] is defined", "m.tool_calls is none", "loop.index0 % 2 == 0", "messages[0].role == 'system'", f"'a' in {self.string()}", f"{self.string()}.startswith('a')",
                     f"{self.string()}.endswith('b')", "m is mapping", "messages is iterable", "missing is undefined", "1 is number", "add_generation_prompt", f"({self.number()} == 2 or loop.last)",
                     "loop.previtem is defined and loop.previtem.role == 'user'", "m.role != 'user' and not loop.last"])

    def block(self, level=0):
        pick, made = self.choose.choice, []
        for _ in range(self.choose.randrange(1, 4)):
            kind = self.choose.random()
            dash = lambda: pick(["", "", "", "-"])  # noqa: E731
            if kind < 0.3:
                made.append(self.text())
            elif kind < 0.65:
                made.append(f"{{{{{dash()} {self.string()} {dash()}}}}}")
            elif kind < 0.72:
                made.append(f"{{{{ {pick([self.number, self.items])()} }}}}")
            elif kind < 0.82 and level < 3:
                made.append(f"{{%{dash()} if {self.condition()} %}}{self.block(level + 1)}{{% else %}}{self.block(level + 1)}{{% endif {dash()}%}}")
            elif kind < 0.88:
                name = pick(["v", "w"])
                made.append(f"{{% set {name} = {self.string()} %}}")
                if name not in self.names:
                    self.names.append(name)
            elif kind < 0.92:
                made.append("{# a comment #}")
            elif kind < 0.97 and level < 2:
                made.append(f"{{% for k in {self.items()} %}}{{{{ k }}}}{self.text()}{{% if loop.index > 2 %}}{{% break %}}{{% endif %}}{{% endfor %}}")
            else:
                made.append(f"{{% set ns.n = ns.n + 1 %}}{{{{ ns.n }}}}")
        return "".join(made)

    def template(self):
        head = "{%- set ns = namespace(n=0) %}" + ("{% macro tag(x, y='d') %}<{{ x }}|{{ y }}>{% endmacro %}{{ tag('t') }}" if self.choose.random() < 0.3 else "")
        self.names = []
        body = self.block()
        self.names = []  # what the loop set is not seen outside
        return f"{head}{{% for m in messages %}}\n{body}{{% endfor %}}\n{{%- if add_generation_prompt %}}<|assistant|>\n{{% endif %}}"


def check(directory, source, path):
    """Renders every conversation both ways. Gives how many rendered; both must refuse the same ones."""
    config = json.loads((MODELS / "llama/tokenizer_config.json").read_text()) | {"chat_template": source}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    rendered = 0
    for conversation in CONVERSATIONS:
        path.write_text(json.dumps(conversation))
        variables = dict(conversation, add_generation_prompt=True, bos_token=config["bos_token"], eos_token=config["eos_token"])
        variables.setdefault("tools", None)
        variables.setdefault("documents", None)
        want = jinja_oracle.render(jinja_oracle.environment(), source, variables)
        result = millrace("template", directory, "--messages", path, "--json", status={DONE, ERROR})
        if "error" in want:
            assert result.returncode == ERROR, f"jinja2 refuses ({want['error']}): {source!r}\n{conversation}\n{result.stdout}"
        else:
            assert result.returncode == DONE, f"{result.stderr}: {source!r}\n{conversation}"
            assert json.loads(result.stdout)["text"] == want["text"], f"{source!r}\n{conversation}"
            rendered += 1
    return rendered


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (made / name).symlink_to(MODELS / "llama" / name)
    return made


def test_random_templates(directory, tmp_path):
    rendered = 0
    for seed in range(NUM_TEMPLATES):
        rendered += check(directory, Generator(random.Random(seed)).template(), tmp_path / "m.json")
    assert rendered > NUM_TEMPLATES  # of three conversations each: most do render


def test_templates_of_a_folder(directory, tmp_path):
    folder = os.environ.get("MILLRACE_TEMPLATES")
    if not folder:
        pytest.skip("MILLRACE_TEMPLATES names no folder of *.jinja files")
    files = sorted(pathlib.Path(folder).glob("**/*.jinja"))
    assert files, f"{folder} holds no *.jinja file"
    for file in files:
        if "strftime_now" not in (source := file.read_text()):  # would show the clock
            check(directory, source, tmp_path / "m.json")

"""jinja2 set up as Hugging Face transformers renders chat templates: the judge of millrace/tokenizer/jinja."""
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """{% generation %}: transformers marks the assistant's tokens with it; the text is not changed."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(lineno)

    def _render(self, caller):
        return caller()


class Raised(jinja2.exceptions.TemplateError):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(clock="2025-01-02 03:04:05"):
    now = datetime.datetime.strptime(clock, "%Y-%m-%d %H:%M:%S")
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: now.strftime(fmt)
    return env


def render(env, source, variables):
    """{"text": ...} or {"error": "Kind: words"}."""
    try:
        return {"text": env.from_string(source).render(**variables)}
    except Raised as error:
        return {"error": f"TemplateError: {error}"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

#!/usr/bin/env python3
"""Writes tests/golden/jinja_cases.json: small templates and what jinja2, set up as transformers does, makes of them.

Usage: tools/make_jinja_cases.py   (needs the Python packages jinja2 and markupsafe)
"""
import json
import pathlib

import jinja2

import jinja_oracle

CONTEXT = {
    "s": "Hello, World", "t": "  padded\t\n", "u": "Grüße, Ωmega Σίσυφος 😀", "empty": "", "n": 42, "neg": -7, "big": 9007199254740993,
    "f": 2.5, "g": 1e16, "h": 0.1, "yes": True, "no": False, "nothing": None, "html": "<a href=\"x\">'&'</a>",
    "multi": "one\ntwo\r\nthree\n\nfive\n", "csv": "a,b,,c", "xs": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "none_list": [],
    "d": {"b": 1, "a": {"x": [1, {"y": "z"}]}, "items": "shadowed", "é": "ü"}, "nested": [[1, 2], [3, [4, 5]]],
    "users": [
        {"name": "Ann", "age": 30, "tags": ["x", "y"], "on": True}, {"name": "bob", "age": 25, "tags": [], "on": False},
        {"name": "Cid", "age": 30, "tags": ["z"]},
    ],
    "tool": {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"q": {"type": ["string", "null"], "enum": ["<a>", "b\"", "\u2028é"]}}, "required": []}}},
}

CASES = r"""
# output and literals
plain text
{{ 1 }}{{ 1.0 }}{{ 1e3 }}{{ 1.5e-7 }}{{ 0.00001 }}{{ 123456789012345678.0 }}{{ 1e22 }}{{ 1_000 }}{{ 0x1F }}{{ 0b101 }}{{ 0o17 }}
{{ none }}{{ true }}{{ False }}{{ None }}{{ True }}{{ false }}
{{ 'it''s' }}{{ "a" 'b' }}{{ 'a\nb\t\x41\u00e9\\\'\"\q' }}
{{ '\101\0' | length }}{{ '\U0001F600' }}{{ 'multi
line' }}
{{ [1, 'a', none, true, 2.0, [], {}, ()] }}{{ (1,) }}{{ (1, 2) }}{{ () }}{{ {'a': 1, "b": [2], 3: none, none: 1.5} }}
{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}{{ 1, 2 }}{{ 1, }}
{{ "it's" | list }}{{ ['it\'s', "q\"", 'b\'"', 'n\n', 'é', '\u200b', '\x7f', '😀'] }}
{{ undefined_thing }}|{{ undefined_thing is defined }}|{{ [undefined_thing] }}
{{ d }}
{{ users }}
{{ g }} {{ h }} {{ f }} {{ big }} {{ neg }} {{ 1e15 }} {{ 1e-4 }} {{ 12345.678 }} {{ -0.0 }}
{{ 1.0e100 }}{{ 5e-324 }}{{ 1.7976931348623157e308 }}{{ 0.1 + 0.2 }}{{ 100.0 }}{{ 1/3 }}
# operators
{{ 1 + 2 * 3 - 4 }}{{ (1 + 2) * 3 }}{{ 2 ** 3 ** 2 }}{{ -2 ** 2 }}{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 % 3 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7 / 2 }}{{ 6 / 2 }}
{{ 7.5 // 2 }}{{ -7.5 // 2 }}{{ 7.5 % 2 }}{{ -7.5 % 2 }}{{ 2 ** -1 }}{{ 2.0 ** 3 }}{{ 4 ** 0.5 }}{{ 1 - - 1 }}{{ +3 }}{{ - 3 }}
{{ 'a' + 'b' ~ 1 ~ none ~ 2.0 }}{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ 'a' * -1 }}{{ [1] * 2 + [3] }}{{ (1,) + (2,) }}
{{ 1 ~ 2 + 3 }}
{{ 1 + 2 ~ 3 }}
{{ true + true }}{{ true * 3 }}{{ -true }}{{ 1 == true }}{{ 1 == 1.0 }}{{ 'a' == 'a' }}{{ none == none }}{{ [1, 2] == [1, 2] }}{{ (1,) == [1] }}{{ {'a': 1} == {'a': 1.0} }}
{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 != 2 }}{{ 'a' < 'b' }}{{ 'Z' < 'a' }}{{ [1, 2] < [1, 3] }}{{ (1, 'a') <= (1, 'a') }}{{ 1 >= 1.0 }}{{ 2 > 1 > 0 }}
{{ 'ell' in s }}{{ 'x' not in s }}{{ 1 in xs }}{{ 9 in xs }}{{ 'a' in d }}{{ 'zz' in d }}{{ '' in s }}{{ 1 in (1, 2) }}{{ none in [none] }}{{ not 1 in xs }}
{{ 1 and 0 or 'x' }}{{ '' or none or [] }}{{ 1 and 'y' }}{{ not '' }}{{ not [] and not {} }}{{ 0 or undefined_thing }}{{ none and x.y }}
{{ 'a' if yes else 'b' }}{{ 'a' if no else 'b' }}{{ 'a' if no }}|{{ ('a' if no) is defined }}{{ 1 if no else 2 if no else 3 }}
{{ not yes == no }}{{ (not yes) == no }}{{ not not 1 }}{{ 1 in [1] and 2 in [2] }}{{ 1 == 1 == true }}
{{ undefined_thing == other_thing }}{{ undefined_thing == none }}{{ undefined_thing == '' }}{{ undefined_thing != 1 }}
{{ 10 // 3 * 3 + 10 % 3 }}{{ 2 * 3 % 4 }}{{ (2 + 3) ~ 4 * 5 }}{{ '%s-%s' % (1, 'a') }}{{ '%d%%' % 5 }}{{ '%.2f|%5d|%-5s|%05d|%+d|%x|%X|%o|%e|%g|%r|%c' % (1.005, 42, 'ab', 42, 7, 255, 255, 8, 12345.678, 0.0001, 'q', 65) }}
{{ '%(a)s %(b)05.1f' % {'a': 'x', 'b': 2.25} }}{{ '%s' % [1] }}{{ '%s %s' % ('a', none) }}{{ '%5.2s|' % 'abc' }}{{ '%*d|' % (5, 42) }}{{ '%#x' % 255 }}{{ '% d' % 5 }}
{{ '%s' % d }}
{{ '%i %u' % (3.9, -3.2) }}{{ '%G %E' % (1e-10, 1.5) }}{{ '%a' % 'x' }}
# errors in operators
{{ 1 + 'a' }}
{{ 'a' + 1 }}
{{ 'a' + none }}
{{ [] + () }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1.0 / 0 }}
{{ undefined_thing + 1 }}
{{ 'a' + undefined_thing }}
{{ undefined_thing.x }}
{{ undefined_thing['x'] }}
{{ undefined_thing() }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ undefined_thing < 1 }}
{{ {} < {} }}
{{ 1 in 5 }}
{{ 1 in 'a' }}
{{ 1 in none }}
{{ -'a' }}
{{ -none }}
{{ 'a' - 'b' }}
{{ 'a' * 'b' }}
{{ '%d' % 'a' }}
{{ '%s %s' % 'a' }}
{{ '%s' % (1, 2) }}
{{ '%q' % 1 }}
{{ 'abc' % 1 }}
{{ 1() }}
{{ 'abc'() }}
{{ none.x.y }}
{{ d.nope.more }}
{{ 2 ** 64 - 2 ** 64 + x.y }}
# attributes, items, slices
{{ d.a.x[1].y }}{{ d['a']['x'][0] }}{{ d.b }}{{ d['b'] }}{{ d.é }}{{ d['items'] }}{{ d.items() | list | length }}{{ d.nope }}{{ d['nope'] }}|{{ d.nope is defined }}
{{ xs[0] }}{{ xs[-1] }}{{ xs[9] }}{{ xs.0 }}{{ xs[9] is defined }}{{ nested.1.1.0 }}{{ s[0] }}{{ s[-1] }}{{ u[1] }}{{ u[2:4] }}{{ u[-1] }}{{ s[99] is defined }}
{{ xs[1:] }}{{ xs[:1] }}{{ xs[::-1] }}{{ xs[::2] }}{{ xs[-2:] }}{{ xs[5:] }}{{ xs[:-1] }}{{ s[7:] }}{{ s[:5] }}{{ s[::-1] }}{{ s[1:8:3] }}{{ s[-5:-2] }}{{ s[8:2:-2] }}{{ (1, 2, 3)[1:] }}
{{ u[::-1] }}{{ xs[none:2] }}{{ xs[100:] }}{{ xs[-100:2] }}{{ xs[2:0:-1] }}{{ xs[:-100:-1] }}{{ range(10)[2:8:2] | list }}{{ range(5)[1] }}{{ range(5)[-1] }}
{{ xs['length'] is defined }}{{ s.upper is defined }}{{ s['upper']() }}{{ d['get']('b') }}{{ xs[true] }}{{ xs['0'] is defined }}{{ xs[1.0] is defined }}
{{ users[0].name }}{{ users[0]['tags'][0] }}{{ users[-1].on is defined }}{{ none.x is defined }}{{ (1).x is defined }}{{ {'a b': 1}['a b'] }}{{ {1: 'x'}[1] }}{{ {true: 'x'}[1] }}{{ {1: 2}['1'] is defined }}
{{ xs[::0] }}
{{ d[1:2] is defined }}
{{ none[1:] is defined }}{{ d[[1]] is defined }}{{ 5[0] is defined }}{{ xs['a'] is defined }}
{{ undefined_thing[1:] }}
{{ d[xs] is defined }}
{{ ''.__class__ is defined }}|{{ ''.__class__ }}|{{ d.__len__ is defined }}
{{ ''.__class__.__mro__ }}
{{ xs.append is defined }}{{ xs.append(1) }}
{{ d.update({'x': 1}) }}
{{ d.pop('b') }}
{{ xs.sort() }}
{{ d.clear() }}
{{ d.setdefault('x', 1) }}
# control flow
{% if yes %}a{% elif no %}b{% else %}c{% endif %}{% if no %}a{% elif yes %}b{% else %}c{% endif %}{% if none %}a{% else %}c{% endif %}
{% if xs and d %}1{% endif %}{% if 0 %}2{% endif %}{% if 0.0 %}3{% endif %}{% if '' %}4{% endif %}{% if ' ' %}5{% endif %}{% if undefined_thing %}6{% endif %}{% if range(0) %}7{% endif %}
{% for x in xs %}{{ x }},{% endfor %}{% for x in none_list %}{{ x }}{% else %}none{% endfor %}{% for c in 'abé' %}[{{ c }}]{% endfor %}{% for k in d %}{{ k }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }} {% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}|{% endfor %}
{% for x in xs %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}{% for x in xs %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}
{% for x in xs if x > 1 %}{{ x }}{{ loop.index }}{{ loop.last }}{{ loop.length }} {% endfor %}{% for x in xs if x > 5 %}{{ x }}{% else %}no{% endfor %}
{% for x in [1, 1, 2, 2, 3] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{% if y == 3 %}{% continue %}{% endif %}{{ x }}{{ y }}{% break %}{% endfor %}{{ loop.index }}{% endfor %}
{% for x in [1, [2, [3]], 4] recursive %}{% if x is iterable %}({{ loop(x) }}){{ loop.depth }}{% else %}{{ x }}{% endif %}{% endfor %}
{% for x in [] recursive %}{{ loop(x) }}{% else %}e{% endfor %}
{% set a = 1 %}{% for x in xs %}{% set a = x %}{{ a }}{% endfor %}{{ a }}{% if yes %}{% set a = 5 %}{% endif %}{{ a }}
{% for x in xs %}{{ a }}{% set a = x %}{% endfor %}{{ a is defined }}
{% for x in xs %}{% endfor %}{{ x is defined }}{{ loop is defined }}
{% set ns = namespace(i=0, l=[]) %}{% for x in xs %}{% set ns.i = ns.i + x %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.i }}{{ ns.l }}{{ ns }}{{ ns.nope is defined }}{{ ns['i'] }}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{% set ns.c, z = 3, 4 %}{{ ns.c }}{{ z }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = [3, 4] %}{{ a }}{{ b }}{% set x = 1, 2 %}{{ x }}{% set a, (b, c) = 1, (2, 3) %}{{ a }}{{ b }}{{ c }}
{% set x %}block {{ n }}{% endset %}{{ x }}{{ x is string }}{% set x | upper | trim %} shout {% endset %}[{{ x }}]
{% set d2 = dict(a=1, b='x') %}{{ d2 }}{{ dict([('k', 1), ('l', 2)], m=3) }}{{ dict({'a': 1}, a=2) }}{{ dict() }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}{{ a is defined }}{{ c is defined }}{% with %}x{% endwith %}
{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% filter upper %}abc {{ s }}{% endfilter %}{% filter replace('a', 'b') | upper %}aac{% endfilter %}
{% generation %}text {{ n }}{% set q = 1 %}{% endgeneration %}{{ q is defined }}
{% print 1 %}{% print 'a', 'b' %}
{% for x in range(3) %}{% set outer = loop %}{% for y in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% for x in xs|sort %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}
{% for x in undefined_thing %}{{ x }}{% else %}empty{% endfor %}{% for x in d.keys() %}{{ x }}{% endfor %}{% for x in d.values() %}{{ x }}{% endfor %}
{% for x in xs %}{{ loop }}{% break %}{% endfor %}
{% set ns = namespace(n=0) %}{% for x in [1, 2, 3, 4] if x > ns.n %}{% set ns.n = x + 1 %}{{ x }}{% endfor %}
{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}{{ range(3) }}{{ range(1, 10, 3) | list }}{{ range(5) | length }}{{ 3 in range(5) }}{{ range(0, 5, 2) }}{{ range(2) == range(2) }}
# control flow errors
{% for x in 5 %}{% endfor %}
{% for x in none %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% for a, b in [(1,)] %}{% endfor %}
{% set a, b = 1 %}
{% set d.x = 1 %}
{% set undefined_thing.x = 1 %}
{% set none = 1 %}
{% set 'a' = 1 %}
{% break %}
{% if yes %}
{% endif %}
{% for x in xs %}{% endif %}{% endfor %}
{% nope %}
{% if %}x{% endif %}
{% do 1 %}
{{ 1 }
{{ 1
{{ }}
{% %}
{{ (1 }}
{{ 1) }}
{{ [1} }}
{{ 'abc }}
{# open
{% raw %} open
{{ 1 2 }}
{{ a b }}
{{ 1 + }}
{{ x | nosuchfilter }}
{{ x is nosuchtest }}
{% if no %}{{ x | nosuchfilter }}{% endif %}ok
{% if yes %}{{ x | nosuchfilter }}{% endif %}ok
{{ x | nosuchfilter if no else 'ok' }}
{{ 01 }}
{{ 1 is defined is defined }}
{% macro f(a=1, b) %}{% endmacro %}
{% for x in xs %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}
{{ loop(1) }}
{% for x in [1] %}{{ loop([2]) }}{% endfor %}
{{ range(1000001) | length }}
{{ range(1, 2, 0) }}
{{ range() }}
{{ range('a') }}
{{ range(1.5) }}
{{ dict([1]) }}
{{ raise_exception('my words') }}
{{ raise_exception(5) }}
{{ raise_exception() }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%H:%M:%S %p %j %A %B') }} {{ strftime_now('') }}|{{ strftime_now('100%%') }}
# macros
{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(a=1, c='y') }}|{{ f(1, c=5) }}|{{ f() }}
{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}{{ f() }}
{% macro f(a) %}{{ a }}{{ caller(a) if caller else 'none' }}{% endmacro %}{{ f(1) }}{% call(x) f(2) %}[{{ x }}]{% endcall %}
{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}inner {{ n }}{% endcall %}{% call f() %}{% call f() %}deep{% endcall %}{% endcall %}
{% macro fact(n) %}{% if n > 1 %}{{ n * fact(n - 1) | int }}{% else %}1{% endif %}{% endmacro %}{{ fact(5) }}
{% macro f(x) %}{{ y }}{% endmacro %}{% set y = 3 %}{{ f(1) }}{% set y = 4 %}{{ f(1) }}
{% macro f(x) %}{% set z = x %}{{ z }}{% endmacro %}{{ f(1) }}{{ z is defined }}{{ f.name }}{{ f.arguments }}{{ f.catch_kwargs }}{{ f.caller }}{{ f is callable }}
{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(*[7, 8]) }}{{ f(**{'a': 5}) }}{{ f(*[1], **{'b': 2}) }}
{% for x in xs %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}
{% macro f() %}{% for i in [1,2] %}{{ i }}{% endfor %}{% endmacro %}{% set r = f() %}{{ r }}{{ r is string }}{{ f() | length }}{{ f }}
{% macro f(a) %}{{ a is defined }}{{ a }}{% endmacro %}{{ f() }}{{ f(none) }}{{ f(undefined_thing) }}
{% macro f() %}{% endmacro %}{{ f(1) }}
{% macro f() %}{% endmacro %}{{ f(x=1) }}
{% macro f(a) %}{{ a.b }}{% endmacro %}{{ f() }}
{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}
{% macro outer() %}{% macro inner(x) %}({{ x }}){% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }}{{ inner is defined }}
{% call undefined_thing() %}x{% endcall %}
{% call 1 %}x{% endcall %}
{% macro f(x, caller=none) %}{{ x }}{{ caller is none }}{% endmacro %}{{ f(1) }}
{% macro f(a, a2='d') -%} {{ a }} {%- endmacro %}[{{ f('q') }}]
# whitespace
  {% if yes %}  x  {% endif %}  y
a\n  {% if yes %}\n  b\n  {% endif %}\nc
a\n  {%- if yes -%}\n  b\n  {%- endif -%}\nc
a\n  {%+ if yes +%}\n  b\n  {%+ endif +%}\nc
  {{ n }}  \n  {{- n -}}  \n x
a {{- ' b ' -}} c
{# comment #}x{#- c -#}  y
  {# comment #}\n  x\n  {#- c -#}\n  y  {#+ c +#}\n z
{% raw %}{{ not }} {% parsed %}{% endraw %}x
  {% raw %}\n  {{ a }}\n  {% endraw %}\n b
a\n  {%- raw -%}\n  {{ a }}\n  {%- endraw -%}\n b
{% raw -%}  x  {%- endraw %}y
\n\n{% if yes %}\n\nx\n{% endif %}\n\n
x\n
x\n\n
\ta\t{% if yes %}\tb\t{% endif %}\t\n
{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}\n{{ y }}\n
a{% if yes %}\n\n{% endif %}b\n  {% if yes %}c{% endif %}\n  d
{% for x in xs -%}\n {{ x }}\n{%- endfor %}
{% for x in xs %}\n  {{ x }}\n{% endfor %}\nend
  {%- for x in xs %}  {{ x }}  {%- endfor %}
x {#- -#} y
{{ '}}' }}{{ '{%' }}{{ "#}" }}{{ {'a': {'b': {}}} }}{{ {'a':{}}['a'] }}
{%if yes%}a{%endif%}{{n}}{{-n-}}
{{ n }}{{ '\n' }}{{ n }}
{%- set a = 1 -%}   text   {%- set b = 2 -%}
\r\nx\r{{ n }}\r\n
x {% if yes -%}   y   {%- else -%} z {%- endif %} w
{ { } } % {% raw %}{{% endraw %} {x} {
# tests
{{ n is number }}{{ f is number }}{{ yes is number }}{{ s is number }}{{ n is integer }}{{ yes is integer }}{{ f is float }}{{ n is float }}{{ yes is boolean }}{{ n is boolean }}
{{ s is string }}{{ n is string }}{{ d is mapping }}{{ xs is mapping }}{{ xs is sequence }}{{ s is sequence }}{{ d is sequence }}{{ n is sequence }}{{ xs is iterable }}{{ n is iterable }}{{ s is iterable }}{{ none is iterable }}{{ undefined_thing is iterable }}{{ undefined_thing is sequence }}
{{ nothing is none }}{{ nothing is defined }}{{ undefined_thing is none }}{{ undefined_thing is undefined }}{{ yes is true }}{{ 1 is true }}{{ no is false }}{{ 0 is false }}{{ s is not none }}{{ s is not string }}
{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 9 is divisibleby(4) }}{{ -3 is odd }}{{ 1 is eq 1 }}{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 1 is le 1 }}{{ 2 is gt 1 }}{{ 2 is ge 3 }}{{ 1 is equalto(1) }}{{ 1 is lessthan 2 }}{{ 1 is greaterthan 2 }}
{{ 1 is in [1] }}{{ 'a' is in 'abc' }}{{ 'x' is not in d }}{{ none is sameas none }}{{ yes is sameas true }}{{ 1 is sameas 1 }}{{ xs is sameas xs }}{{ 1 is sameas true }}
{{ 'abc' is lower }}{{ 'ABC' is upper }}{{ 'aB' is lower }}{{ '' is lower }}{{ '1' is upper }}{{ range is callable }}{{ s is callable }}{{ s.upper is callable }}{{ 'upper' is filter }}{{ 'nope' is filter }}{{ 'defined' is test }}{{ 'x' is test }}{{ ('x' | safe) is escaped }}{{ 'x' is escaped }}
{{ d.items() is iterable }}{{ d.items() is sequence }}{{ (xs | map('string')) is iterable }}{{ (xs | map('string')) is sequence }}{{ range(3) is sequence }}{{ namespace() is mapping }}{{ d.keys() is sequence }}{{ (1, 2) is sequence }}{{ undefined_thing is callable }}
{{ not s is defined }}{{ s is defined and n is defined }}{{ s is defined or x }}{{ s is string == true }}{{ 1 + 1 is eq 2 }}{{ (1 + 1) is eq 2 }}{{ 5 is divisibleby 5 and yes }}{{ s is not defined or yes }}
{{ 'a' is odd }}
{{ none is divisibleby 2 }}
{{ 4 is divisibleby 0 }}
{{ 1 is eq }}
{{ 1 is lt 'a' }}
{{ 1 is defined(1) }}
# filters: text
{{ s | upper }}{{ s | lower }}{{ u | upper }}{{ u | lower }}{{ 'hELLO wORLD-foo (bar) [baz] {x} <y>' | title }}{{ 'hELLO wORLD' | capitalize }}{{ 'élan' | capitalize }}{{ 'ǆ straße' | title }}{{ 'ﬁx' | upper }}
[{{ t | trim }}][{{ 'xxaxx' | trim('x') }}][{{ 'abcba' | trim('ab') }}][{{ '\u00a0\u3000x\u2003' | trim }}][{{ 5 | trim }}][{{ none | trim }}]
{{ s | replace('l', 'L') }}{{ s | replace('l', 'L', 2) }}{{ s | replace('', '-') }}{{ 'aaa' | replace('aa', 'b') }}{{ 123 | replace(2, 'x') }}{{ s | replace('o', none) }}{{ 'abc' | replace('b', '') }}{{ 'é' | replace('', '.') }}{{ 'aaa' | replace('a', 'b', 0) }}
{{ s | length }}{{ u | length }}{{ xs | count }}{{ d | length }}{{ undefined_thing | length }}{{ '' | length }}{{ range(7) | length }}
{{ s | first }}{{ s | last }}{{ xs | first }}{{ xs | last }}{{ none_list | first }}|{{ none_list | last }}|{{ '' | first }}|{{ d | first }}{{ u | last }}
{{ xs | join }}{{ xs | join(', ') }}{{ users | join('/', attribute='name') }}{{ users | map(attribute='name') | join('|') }}{{ 'abc' | join('-') }}{{ d | join(',') }}{{ [1, none, true, 2.5] | join(' ') }}{{ [] | join(',') }}{{ xs | join(1) }}{{ undefined_thing | join(',') }}
{{ multi | indent }}|{{ multi | indent(2) }}|{{ multi | indent(2, true) }}|{{ multi | indent(2, first=true, blank=true) }}|{{ multi | indent('> ') }}|{{ '' | indent }}|{{ 'a' | indent(width=3, first=true) }}
{{ html | e }}{{ html | escape }}{{ html | safe }}{{ html | e | e }}{{ html | forceescape }}{{ (html | e) | forceescape }}{{ 5 | e }}
{{ '<a>' | safe + '<b>' }}{{ '<b>' + ('<a>' | safe) }}{{ '<b>' ~ ('<a>' | safe) }}{{ ('<a>' | safe) * 2 + '&' }}{{ ['<', '>'] | join('&' | safe) }}{{ ('<' | safe)[0] + '<' }}{{ ('<a> ' | safe).strip() + '<' }}{{ ('x' | safe).replace('x', '<') }}{{ ('%s' | safe) % '<' }}{{ ('{}' | safe).format('<') }}{{ ('<' | safe | upper) + '<' }}{{ ('<' | safe | string) + '<' }}{{ ('a' | safe | replace('a', '<')) + '<' }}{{ ('-' | safe).join(['<', 'a']) }}{{ ['<' | safe] }}
{{ 'a b  c\nd-e_f é1' | wordcount }}{{ '' | wordcount }}{{ 'Hello %s, %d' | format('x', 5) }}{{ '%(a)s' | format(a=1) }}{{ '%s' | format([1]) }}
{{ 'a b/c?d=é&f' | urlencode }}{{ {'a': 1, 'b c': 'd&e'} | urlencode }}{{ [('x', '/')] | urlencode }}{{ 5 | urlencode }}
{{ 'The quick brown fox jumps' | truncate(10) }}|{{ 'The quick brown fox jumps' | truncate(10, true) }}|{{ 'The quick brown fox' | truncate(16, false, '…', 0) }}|{{ 'short' | truncate(3, leeway=5) }}|{{ 'abcdef' | truncate(4, true, '', 0) }}|{{ 'abcdefghij' | truncate(5, leeway=0) }}
[{{ 'ab' | center(5) }}][{{ 'abc' | center(6) }}][{{ 'abcdef' | center(3) }}][{{ 'ab' | center(7) }}]
{{ '<p>a  <b>b</b>\n c</p><!-- x -->' | striptags }}{{ none | string }}{{ 1.0 | string }}{{ xs | string }}{{ undefined_thing | string }}{{ yes | string }}{{ (1, 2) | string | length }}
{{ 'x' | default('y') }}{{ undefined_thing | default('y') }}{{ undefined_thing | d }}|{{ none | default('y') }}{{ '' | default('y', true) }}{{ none | d('y', boolean=true) }}{{ d.nope | default([]) }}{{ undefined_thing | default(none) }}{{ undefined_thing | default(d.b) }}
{{ 5 | truncate(3) }}
{{ none | indent }}
{{ 5 | length }}
{{ none | length }}
{{ 5 | join }}
{{ none | first }}
{{ s | replace('a') }}
{{ undefined_thing.x | default('y') }}
{{ s | upper(1) }}
{{ s | trim(1) }}
# filters: layout and markup
{{ 'The quick brown fox jumps over the lazy dog, and then some more.' | wordwrap(20) }}|{{ 'aaa bbbbbbbb ccc' | wordwrap(4) }}|{{ 'aaa bbbbbbbb ccc' | wordwrap(4, false) }}|{{ '  led  by spaces  ' | wordwrap(6) }}|{{ '' | wordwrap }}|{{ 'x' | wordwrap(1, wrapstring='/') }}
{{ "Hello there -- you goof-ball, use the -b option! e-mail--like this, a-b-c-d, well-known--isn't" | wordwrap(8) }}|{{ 'look-and-feel-of-hyphens' | wordwrap(7) }}|{{ 'look-and-feel-of-hyphens' | wordwrap(7, break_on_hyphens=false) }}|{{ '------' | wordwrap(4) }}|{{ 'a------b' | wordwrap(3) }}
{{ multi | wordwrap(3) }}|{{ multi | wordwrap(10, wrapstring=' / ') }}|{{ u | wordwrap(7) }}|{{ 'tab\tand\vmore\u00a0or\u2003less' | wordwrap(5) }}|{{ ('<b> &' | safe) | wordwrap(2, wrapstring='<' | safe) }}|{{ ('<b> &' | safe) | wordwrap(2) + '<' }}
{{ ('word ' * 30) | wordwrap }}|{{ '12-34-ab-cd' | wordwrap(4) }}|{{ 'é-éé-éé' | wordwrap(4) }}|{{ '\n\n' | wordwrap(2) }}|{{ 'a\n' | wordwrap(2) }}
{{ 5 | wordwrap }}
{{ 'a' | wordwrap(0) }}
{{ undefined_thing | wordwrap }}
{{ 'a' | wordwrap('5') }}
{{ d | pprint }}|{{ users | pprint }}|{{ tool | pprint }}
{{ nested | pprint }}{{ 5 | pprint }}{{ none | pprint }}{{ 'x' | pprint }}{{ undefined_thing | pprint }}{{ ('<' | safe) | pprint }}{{ () | pprint }}{{ {} | pprint }}{{ [1.5, true] | pprint }}
{{ {'z': 1, 'a': {'c': 1, 'b': [{'y': 2, 'x': 1}]}, 3: 'n', none: 0, (1, 'a'): 2, 2.5: 1} | pprint }}
{{ ('The quick brown fox jumps over the lazy dog. ' * 5) | pprint }}|{{ [('The quick brown fox jumps over the lazy dog. ' * 5)] | pprint }}|{{ ('x' * 100) | pprint }}|{{ ['x' * 100, 'a\nb\n' * 20, ('lorem  ipsum\t' * 12)] | pprint }}
{{ {'first': 'word ' * 30, 'second': ['a' * 30, 'b' * 30, 'c' * 30], 'third': ('t' * 79,)} | pprint }}|{{ (('long ' * 20,), ['é' * 50, '😀' * 50]) | pprint }}|{{ {'a' * 90: 1, 'b': {}} | pprint }}
{{ (multi * 8) | pprint }}|{{ ("it's \"quoted\" " * 12) | pprint }}|{{ range(50) | list | pprint }}|{{ [range(30), {'k': 'v' * 75}] | pprint }}
<ul{{ {'class': 'my list', 'missing': none, 'undef': undefined_thing, 'id': 'list-%d' | format(42), 'n': 1.5, 'q': html, 'safe': '<b>' | safe} | xmlattr }}>{{ {'a': none} | xmlattr }}|{{ {'a': 1, 'b<': 2} | xmlattr(false) }}|{{ {} | xmlattr }}|{{ {'x': ['<']} | xmlattr(autospace=false) }}
{{ {'a b': 1} | xmlattr }}
{{ {'a=': 1} | xmlattr }}
{{ {'a/': none} | xmlattr }}
{{ {1: 1} | xmlattr }}
{{ 'x' | xmlattr }}
{{ undefined_thing | xmlattr }}
{{ 'See http://example.com/a?b=c&d#e, (https://www.x.org/(y)) or www.foo.net. Mail me@b.co, <mailto:a@b.cd> x.com' | urlize }}|{{ 'http://localhost:8000/ http://1.2.3.4:80 http://[::1]:1/x http://[fe80::1] http://256.1.1 ftp://a.com a.b.com:99999 a.com:99999x' | urlize }}
{{ 'http://example.com/a/long/path www.example.com' | urlize(10) }}|{{ 'http://example.com' | urlize(nofollow=true) }}|{{ 'http://example.com' | urlize(target='_blank') }}|{{ 'http://example.com' | urlize(rel='z a nofollow', nofollow=true) }}|{{ 'tel:123 git://x tel: tel' | urlize(extra_schemes=['tel:', 'git://']) }}
{{ html | urlize }}|{{ 5 | urlize }}|{{ none | urlize }}|{{ '' | urlize }}|{{ ('<http://a.com> &' | safe) | urlize }}|{{ '((a.com)). &lt;b.org&gt;,' | urlize }}|{{ 'HTTP://A.COM Www.Foo.De xn.xn--p1ai http://xn--p1ai http://xn--p' | urlize }}|{{ '@a@b.com a@b a@b.c- a@-b.c :a@b.c a@b@c.de mailto:x mailto:ü@é.de' | urlize }}
{{ 'http://a.com/(x http://a.com/x) (http://a.com/(x)) http://a..com http://.com x..com -.com a-b.mil ä.info a%20b.gov c.info.' | urlize }}|{{ 'line\n http://a.com\t\u3000b.org  ' | urlize }}|{{ 'http://a.com' | urlize(target='"', rel='<') }}
{{ 'x' | urlize(extra_schemes=['bad scheme']) }}
{{ 'x' | urlize(trim_url_limit='a') }}
# filters: numbers
{{ '42' | int }}{{ ' 42 ' | int }}{{ '4x' | int }}{{ '4x' | int(-1) }}{{ '42.9' | int }}{{ 42.9 | int }}{{ -42.9 | int }}{{ '0x1f' | int(base=16) }}{{ '1f' | int(0, 16) }}{{ none | int }}{{ yes | int }}{{ '' | int }}{{ '1_000' | int }}{{ '-5' | int }}{{ [] | int }}{{ '1e3' | int }}{{ '١٢' | int is number }}
{{ '3.5' | float }}{{ 'x' | float }}{{ 'x' | float(1.5) }}{{ 3 | float }}{{ '1e5' | float }}{{ none | float }}{{ '-.5' | float }}{{ 'inf' | float }}{{ '1_0.5' | float }}{{ yes | float }}{{ 'nan' | float }}
{{ -5 | abs }}{{ 5.5 | abs }}{{ (-5.5) | abs }}{{ (-5) | abs }}{{ yes | abs }}{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.675 | round(2) }}{{ 1234.5678 | round(1) }}{{ 1234 | round(-2) }}{{ 1250 | round(-2) }}{{ 1350 | round(-2) }}{{ 2.1 | round(0, 'ceil') }}{{ 2.9 | round(method='floor') }}{{ 5 | round }}{{ 2.123 | round(2, 'ceil') }}{{ 1234.5 | round(-2) }}{{ -2.5 | round }}{{ 7 | round(1, 'floor') }}{{ 5 | round(2) }}
{{ xs | sum }}{{ users | sum(attribute='age') }}{{ [] | sum }}{{ [1.5, 2] | sum }}{{ xs | sum(start=10) }}{{ [[1], [2]] | sum(start=[]) }}
{{ xs | min }}{{ xs | max }}{{ words | min }}{{ words | max }}{{ words | max(case_sensitive=true) }}{{ (users | max(attribute='age')).name }}{{ (users | min(attribute='age')).name }}{{ [] | min }}|{{ [1, 2.5, true] | max }}
{{ 100 | filesizeformat }}{{ 1 | filesizeformat }}{{ 1500 | filesizeformat }}{{ 1500000 | filesizeformat }}{{ 1048576 | filesizeformat(true) }}{{ 0 | filesizeformat }}
{{ undefined_thing | int }}
{{ undefined_thing | float }}
{{ 'a' | abs }}
{{ 'a' | round }}
{{ 1.5 | round(0, 'up') }}
{{ ['a'] | sum }}
{{ [1, 'a'] | max }}
{{ 'inf' | float | int }}
# filters: sequences
{{ xs | sort }}{{ xs | sort(reverse=true) }}{{ words | sort }}{{ words | sort(case_sensitive=true) }}{{ users | sort(attribute='age') | map(attribute='name') | list }}{{ users | sort(attribute='age,name', reverse=true) | map(attribute='name') | list }}{{ 'bca' | sort }}{{ d | sort }}{{ [(2, 'a'), (1, 'b')] | sort }}{{ users | sort(attribute='tags.0') | map(attribute='name') | list if no }}
{{ words | unique | list }}{{ words | unique(case_sensitive=true) | list }}{{ [1, 1.0, true, 2] | unique | list }}{{ users | unique(attribute='age') | map(attribute='name') | list }}{{ 'aAbB' | unique | join }}
{{ xs | reverse | list }}{{ s | reverse }}{{ u | reverse }}{{ (1, 2) | reverse | list }}{{ range(3) | reverse | list }}{{ d | reverse | list }}
{{ s | list }}{{ d | list }}{{ range(3) | list }}{{ (1, 2) | list }}{{ undefined_thing | list }}
{{ d | items | list }}{{ undefined_thing | items | list }}{{ {'a': 1} | items | first }}{% for k, v in tool | items %}{{ k }}{% endfor %}
{{ d | dictsort }}{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'A': 2} | dictsort(by='value') }}{{ {'b': 1, 'A': 2} | dictsort(reverse=true) }}{{ {'b': 1, 'A': 2} | dictsort(false, 'value', true) }}
{{ words | map('upper') | list }}{{ xs | map('string') | join('') }}{{ users | map(attribute='tags.0', default='none') | list }}{{ words | map('replace', 'p', 'q') | list }}{{ nested | map('first') | list }}{{ nested | map(attribute=0) | list }}{{ users | map(attribute='nope') | list }}{{ ['1', 'x'] | map('int', default=7) | list }}{{ [] | map('nope') | list }}
{{ xs | select('odd') | list }}{{ xs | select('gt', 1) | list }}{{ [0, 1, '', 'a', none] | select | list }}{{ xs | reject('odd') | list }}{{ [0, 1] | reject | list }}{{ words | select('in', ['fig', 'pear']) | list }}{{ xs | select('divisibleby', 2) | list }}{{ words | select('equalto', 'fig') | list }}
{{ users | selectattr('on') | map(attribute='name') | list }}{{ users | rejectattr('on') | map(attribute='name') | list }}{{ users | selectattr('age', 'eq', 30) | map(attribute='name') | list }}{{ users | rejectattr('age', '>', 26) | map(attribute='name') | list }}{{ users | selectattr('on', 'defined') | list | length }}{{ users | selectattr('tags.0', 'eq', 'x') | list | length }}{{ users | selectattr('name', 'in', ['Ann']) | list | length }}
{{ range(7) | batch(3) | list }}{{ range(7) | batch(3, 'x') | list }}{{ range(7) | slice(3) | list }}{{ range(7) | slice(3, 'x') | list }}{{ [] | batch(2) | list }}{{ range(2) | slice(3) | list }}
{% for g in users | groupby('age') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join(',') }};{% endfor %}{% for k, v in words | groupby(0) %}{{ k }}{{ v | length }}{% endfor %}{{ users | groupby('on', default=false) | map('first') | list }}
{{ d | attr('items') is callable }}{{ d | attr('b') is defined }}{{ s | attr('upper')() if no else 'x' }}{{ namespace(a=1) | attr('a') }}
{% set g = xs | map('string') %}{{ g | list }}{{ g | list }}{% set g = [] | select %}{% if g %}true{% endif %}{% set g = xs | select %}{{ g | first }}{{ g | list }}{{ 1 in (xs | select) }}
{{ xs | tojson }}{{ d | tojson }}{{ tool | tojson }}{{ tool | tojson(indent=2) }}{{ s | tojson }}{{ html | tojson }}{{ none | tojson }}{{ f | tojson }}{{ 1e16 | tojson }}{{ (1, 2) | tojson }}{{ u | tojson }}{{ u | tojson(ensure_ascii=true) }}
{{ {'b': 1, 'a': [1, {}]} | tojson(sort_keys=true) }}{{ {'b': [], 'a': {}} | tojson(indent=4) }}{{ xs | tojson(separators=(',', ':')) }}{{ xs | tojson(indent='\t') }}{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}{{ '\u0001\u001f\x7f/\b\f\n\r\t"\\' | tojson }}{{ xs | tojson(indent=0) }}{{ d | tojson(indent=1, separators=(', ', ' : ')) }}{{ 'inf' | float | tojson }}
{{ undefined_thing | tojson }}
{{ range(3) | tojson }}
{{ d.items() | tojson }}
{{ {(1, 2): 3} | tojson }}
{{ xs | map | list }}
{{ xs | map('nope') | list }}
{{ xs | select('nope') | list }}
{{ users | selectattr | list }}
{{ (xs | map('string')) | length }}
{{ (xs | map('string'))[0] is defined }}
{{ (xs | map('string')) | last }}
{{ [1, 'a'] | sort }}
{{ [{}, {}] | sort }}
{{ users | sort(attribute='on') | list }}
{{ 5 | items | list }}
{{ xs | items | list }}
{{ xs | dictsort }}
{{ d | dictsort(by='x') }}
{{ [[1]] | unique | list }}
{{ 5 | list }}
{{ none | map('upper') | list }}
{{ 5 | map('upper') | list }}
# string methods
[{{ t.strip() }}][{{ t.lstrip() }}][{{ t.rstrip() }}][{{ 'xxaxx'.strip('x') }}][{{ 'xxaxx'.lstrip('x') }}][{{ 'xyaxy'.rstrip('yx') }}][{{ t.strip(none) }}][{{ '\n\x1f a \x85'.strip() }}]
{{ csv.split(',') }}{{ s.split() }}{{ '  a  b '.split() }}{{ csv.split(',', 1) }}{{ csv.rsplit(',', 1) }}{{ ' a b c '.split(none, 1) }}{{ ' a b c '.rsplit(none, 1) }}{{ 'abc'.split('x') }}{{ ''.split(',') }}{{ ''.split() }}{{ 'a--b--c'.split('--') }}{{ 'aXbXc'.split('X')[-1] }}{{ 'a b'.split(' ', maxsplit=0) }}{{ 'aaa'.split('aa') }}{{ 'aaa'.rsplit('aa') }}{{ 'a,b'.split(sep=',') }}
{{ multi.splitlines() }}{{ multi.splitlines(true) }}{{ 'a\x0bb\x1cc\u2028d'.splitlines() }}{{ ''.splitlines() }}{{ '\n'.splitlines() }}
{{ s.startswith('Hell') }}{{ s.endswith('rld') }}{{ s.startswith(('x', 'H')) }}{{ s.endswith(()) }}{{ s.startswith('ell', 1) }}{{ s.endswith('ell', 0, 4) }}{{ s.startswith('') }}{{ s.startswith('', 99) }}{{ u.startswith('ü', 2) }}
{{ s.find('o') }}{{ s.rfind('o') }}{{ s.find('zz') }}{{ s.find('o', 5) }}{{ s.index('W') }}{{ s.count('l') }}{{ s.count('') }}{{ 'aaaa'.count('aa') }}{{ u.find('Ω') }}{{ u.rfind('σ') }}{{ s.find('o', -3) }}{{ s.rindex('l') }}{{ s.find('', 5) }}{{ s.count('l', 3, 5) }}
{{ s.replace('o', '0') }}{{ s.replace('o', '0', 1) }}{{ s.replace('o', '') }}{{ 'abc'.replace('', '-', 2) }}{{ 'aaa'.replace('a', 'b', -1) }}
{{ s.upper() }}{{ s.lower() }}{{ 'hello wORLD it\'s 3x'.title() }}{{ 'hELLO'.capitalize() }}{{ 'aBc'.swapcase() }}{{ 'ß'.upper() }}{{ 'ΑΣ ΑΣΑ'.lower() }}{{ 'İ'.lower() | length }}{{ 'ǆ'.title() }}{{ 'Straße'.casefold() if no else '' }}
{{ 'abc'.isalpha() }}{{ 'ab1'.isalpha() }}{{ '123'.isdigit() }}{{ '²'.isdigit() }}{{ '²'.isdecimal() }}{{ '½'.isnumeric() }}{{ 'ab1'.isalnum() }}{{ ' \t'.isspace() }}{{ ''.isspace() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ 'Ab Cd'.istitle() }}{{ 'aé'.isascii() }}{{ 'é'.isalpha() }}{{ 'a_1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'A1'.isupper() }}{{ ''.isalpha() }}{{ ''.isascii() }}{{ '٣'.isdigit() }}
{{ ','.join(['a', 'b']) }}{{ ''.join('abc') }}{{ '-'.join(words) }}{{ ', '.join(d) }}{{ '-'.join([]) }}{{ '-'.join(('x',)) }}
{{ 'abcabc'.removeprefix('abc') }}{{ 'abcabc'.removesuffix('bc') }}{{ 'abc'.removeprefix('x') }}{{ '42'.zfill(5) }}{{ '-42'.zfill(5) }}{{ '+x'.zfill(4) }}[{{ 'ab'.center(5) }}][{{ 'ab'.ljust(4, '.') }}][{{ 'ab'.rjust(4) }}][{{ 'abc'.center(6, '*') }}]{{ 'a\tb'.expandtabs(4) }}
{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-') }}{{ 'abc'.partition('-') }}{{ 'abc'.rpartition('-') }}
{{ '{} {}'.format(1, 'a') }}{{ '{0}{1}{0}'.format('x', 'y') }}{{ '{a}-{b}'.format(a=1, b=none) }}{{ '{{}} {}'.format(1) }}{{ '{:>5}|{:<5}|{:^5}|{:*^5}'.format('a', 'b', 'c', 'd') }}{{ '{:5d}|{:05d}|{:+d}|{:x}|{:#x}|{:b}|{:o}|{:,}'.format(42, 42, 42, 255, 255, 5, 8, 1234567) }}
{{ '{:.2f}|{:8.3f}|{:e}|{:g}|{:%}|{:.1%}|{:,.2f}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.25, 0.5, 1234567.891) }}{{ '{0[a]} {0[b]} {1[0]} {1[1]}'.format({'a': 1, 'b': 2}, [3, 4]) }}{{ '{!r} {!s}'.format('q', 'q') }}{{ '{:{}}|'.format('a', 4) }}{{ '{:{w}.{p}f}'.format(3.14159, w=8, p=2) }}{{ '{} {}'.format(xs, d.b) }}{{ '{:s}'.format('x') }}{{ '{:d}'.format(true) }}{{ '{}'.format(true) }}{{ '{:5}|'.format(3) }}{{ '{:5}|'.format(2.5) }}{{ '{:<5}|'.format(3) }}{{ '{:.3}'.format('abcdef') }}{{ '{:.3}'.format(2.0) }}{{ '{:c}'.format(65) }}
{{ '{0.name}'.format(namespace(name=5)) }}{{ '{x[name]}'.format(x=users[0]) }}{{ '{:10}|{:>10}|'.format(none | string, 'é') }}
{{ s.nosuch() }}
{{ s.split('') }}
{{ s.index('zz') }}
{{ ','.join([1]) }}
{{ ','.join(5) }}
{{ s.replace('a') }}
{{ s.startswith(1) }}
{{ s.strip(1) }}
{{ '{}'.format() }}
{{ '{a}'.format(1) }}
{{ '{} {0}'.format(1) }}
{{ '{'.format(1) }}
{{ '}'.format(1) }}
{{ '{:d}'.format('a') }}
{{ '{:5}'.format(none) }}
{{ '{:.2d}'.format(1) }}
{{ '{:q}'.format(1) }}
{{ '{0.__class__}'.format('x') }}|
{{ '{0.__class__.x}'.format('x') }}
{{ s.upper(1) }}
{{ s.find() }}
# dict and list methods
{{ d.get('b') }}{{ d.get('zz') }}{{ d.get('zz', 5) }}{{ d.keys() | list }}{{ d.values() | list | length }}{{ d.items() | list | first }}{{ d.copy() == d }}{{ {'a': 1}.items() }}{{ {'a': 1}.keys() }}{{ {'a': 1}.values() }}{{ {}.items() | length }}{{ {}.items() | list }}{{ 'b' in d.keys() }}
{{ xs.index(1) }}{{ xs.count(2) }}{{ xs.copy() }}{{ (1, 2, 1).count(1) }}{{ (1, 2).index(2) }}{{ 'b' in d.get('b') | string }}{{ d.get('a').x }}{{ d.get('a', {}).get('nope', 'z') }}
{{ xs.index(99) }}
{{ d.get() }}
{{ d.nosuch() }}
{{ d.get([]) }}
{{ xs.nosuch }}|
{{ {[]: 1} }}
{{ {{}: 1} }}
# cycler, joiner
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}{% set j = joiner(', ') %}{% for x in xs %}{{ j() }}{{ x }}{% endfor %}{{ joiner()() }}
{{ cycler() }}
# precedence and odd grammar
{{ s | upper ~ 'x' | lower }}{{ 'a' ~ 'B' | lower }}{{ (1, 2) | length + 1 }}{{ -3 | abs }}{{ 2 * 3 | string }}{{ 'a' in 'abc' | upper }}{{ not 'a' | length }}{{ 1 + 2 | string if no else 'ok' }}
{{ xs | first + 1 }}{{ xs | length > 2 and s | length > 2 }}{{ 'x' if xs | length == 3 else 'y' }}{{ [1, 2] | first == 1 }}{{ s[0] | lower }}{{ d.a.x | length }}{{ users | map(attribute='name') | map('upper') | join(',') | lower }}
{{ xs is iterable and xs is not string and xs is not mapping }}{{ s is string and s | trim != '' }}{{ 'yes' if d is mapping and 'a' in d else 'no' }}{{ (xs | length) is even }}{{ xs | length is odd }}
{% if not s is defined or not n %}a{% elif s == 'x' and (n or f) %}b{% else %}c{% endif %}{% if n not in xs %}d{% endif %}{% if (s is defined) and (s | length > 3) %}e{% endif %}
{% if yes: %}x{% endif %}{% for x in xs: %}{{ x }}{% endfor %}
{{ {'a': 1}.a }}{{ [1, 2][0] }}{{ 'abc'[1] }}{{ 'abc'.upper()[0] }}{{ (s ~ 'x').split('x')[0] }}{{ {'f': 1}['f'] + 1 }}{{ dict(a=[1])['a'][0] }}
{{ s.split(',')[0].strip().lower() + '!' }}{{ (n | string).zfill(5) }}{{ 'a' * 3 ~ 'b' }}{{ 2 ** 2 * 3 }}{{ 2 * -3 }}{{ 2 - -3 }}{{ -(1 + 2) }}{{ - n | abs }}
{{ n if n is defined else 0 }}{{ (n if yes else 0) + 1 }}{{ 1 if yes else undefined_thing.x }}
{{ a.b.c is defined }}
{{ d.nope.x is defined }}
{{ bos_token }}{{ eos_token }}{{ add_generation_prompt is defined }}{{ tools is none }}{{ documents is none }}{{ messages }}
{{ true is true and 1 is number }}{{ 'True' == true | string }}{{ none is none }}{{ None is none }}{{ True == true }}
{{ f(1) if f is callable else 'not callable' }}{{ (f or g) }}{{ 1 if (1 if 1 else 0) else 2 }}
{{ "a" if 0 else "b" if 0 else "c" }}{{ (("a")) }}{{ ((1, 2), 3) }}{{ [[]] }}{{ [(), {}] }}{{ not (1 > 2) }}{{ 1 if not no and yes else 2 }}
{% set x = 'a' if yes else 'b' %}{{ x }}{% set x = [1] + [2] %}{{ x }}{% set x = xs | sort | first %}{{ x }}{% set x = {'a': 1} %}{{ x.a }}{% set x = none %}{{ x is none }}{% set x = x or 5 %}{{ x }}
{%set x=1%}{{x}}{%-set y=2-%}{{y}}
{{ 'a' 'b' ~ 'c' }}{{ 'tab\there' }}{{ "nl\\n" }}{{ 'quote\'s' }}
{{ 5.0 == 5 }}{{ 5.0 | int }}{{ 1e3 | int }}{{ 3.7 // 1 }}{{ 10 % 3.5 }}{{ 1 <= 2 <= 2 < 3 }}{{ 3 > 2 > 2 }}{{ 'b' > 'a' }}{{ 2 ** 62 }}{{ 9223372036854775807 }}
{% for m in [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}, {'type': 'image'}]}] %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% elif c['type'] == 'image' %}<img>{% endif %}{% endfor %}{% endif %}{% endfor %}
""".strip("\n").split("\n")


def main():
    env = jinja_oracle.environment()
    variables = dict(CONTEXT, bos_token="<s>", eos_token="</s>", messages=[], tools=None, documents=None, add_generation_prompt=True)
    cases, joined = [], ""
    for line in CASES:
        if line.startswith("# "):
            continue
        # A string literal that continues on the next line.
        if joined or line.endswith("'multi"):
            joined = joined + "\n" + line if joined else line
            if not joined.endswith("}}"):
                continue
            line, joined = joined, ""
        elif "{{ '" not in line and '{{ "' not in line and "('" not in line and "= '" not in line:
            line = line.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
        cases.append({"template": line, **jinja_oracle.render(env, line, variables)})
    for case in cases:
        if "error" in case:
            # Addresses and long listings say nothing to a reader.
            case["error"] = case["error"].split("\n")[0][:100]
        elif " at 0x" in case["text"]:
            raise SystemExit(f"not deterministic: {case['template']}\n{case['text']}")
    path = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/jinja_cases.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write('{\n"format": 1,\n"made_by": "tools/make_jinja_cases.py, jinja2 ' + jinja2.__version__ + '",\n')
        file.write('"context": ' + json.dumps(CONTEXT, ensure_ascii=False) + ',\n"cases": [\n')
        file.write(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n}\n")
    print(f"{len(cases)} cases, {sum('error' in c for c in cases)} of them errors")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes millrace/tokenizer/jinja/unicode_tables.inc: what Python's str methods know about characters.

Templates call s.upper(), s.isalpha() and the like with Python's meaning, so the tables come from the running Python
(Unicode version of its unicodedata module). Usage: tools/make_jinja_unicode.py > millrace/tokenizer/jinja/unicode_tables.inc
"""
import unicodedata

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def ranges(predicate):
    out = []
    for c in CODE_POINTS:
        if predicate(chr(c)):
            if out and out[-1][1] == c - 1:
                out[-1][1] = c
            else:
                out.append([c, c])
    return out


def print_ranges(name, predicate):
    rows = ranges(predicate)
    print(f"constexpr CodePointRange {name}[] = {{")
    print_rows([f"{{0x{a:x}, 0x{b:x}}}" for a, b in rows])


def print_rows(cells):
    line = " "
    for cell in cells:
        if len(line) + len(cell) > 136:
            print(line)
            line = " "
        line += " " + cell + ","
    print(line)
    print("};")


def print_mapping(name, convert):
    """Single-character results as ranges (first, last, stride, delta); longer ones as strings."""
    rows, special = [], []
    for c in CODE_POINTS:
        mapped = convert(chr(c))
        if mapped == chr(c):
            continue
        if len(mapped) != 1:
            special.append((c, mapped))
            continue
        delta = ord(mapped) - c
        if rows and rows[-1][3] == delta:
            first, last, stride, _ = rows[-1]
            step = c - last
            if step <= 2 and (first == last or stride == step):
                rows[-1] = (first, c, step, delta)
                continue
        rows.append((c, c, 1, delta))
    print(f"constexpr CaseRange {name}[] = {{")
    print_rows([f"{{0x{a:x}, 0x{b:x}, {s}, {d}}}" for a, b, s, d in rows])
    print(f"constexpr CaseSpecial {name}Special[] = {{")
    print_rows([f"{{0x{c:x}, \"" + "".join(f"\\x{b:02x}" for b in m.encode()) + '"}' for c, m in special])


print("// Made by tools/make_jinja_unicode.py from Python's tables of Unicode " + unicodedata.unidata_version + ".")
print_ranges("kSpace", str.isspace)
print_ranges("kAlpha", str.isalpha)
print_ranges("kDecimal", str.isdecimal)
print_ranges("kDigit", str.isdigit)
print_ranges("kNumeric", str.isnumeric)
print_ranges("kUpper", str.isupper)
print_ranges("kLower", str.islower)
print_ranges("kTitle", lambda s: unicodedata.category(s) == "Lt")
print_ranges("kNotPrintable", lambda s: not s.isprintable())
print_mapping("kToUpper", str.upper)
print_mapping("kToLower", str.lower)
print_mapping("kToTitle", str.title)

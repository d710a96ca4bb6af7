#!/usr/bin/env python3
"""Writes millrace/tokenizer/unicode_tables.inc: the character properties and mappings that the tokenizers need.

needs: pip install unicodedata2==16.0.0 tokenizers==0.23.3 regex
usage: make_unicode_tables.py > millrace/tokenizer/unicode_tables.inc

Categories and combining classes are Unicode 16.0's. Everything else is what Hugging Face `tokenizers` does with each single
code point, because its parts follow different versions of Unicode: its decompositions are older than 12.1, its BERT tables older still,
its case mapping newer. Asking it is the only way to be equal to it. Grapheme breaks come from `regex`.
"""
import sys
import regex
import unicodedata2 as ud
from tokenizers import Regex, normalizers, pre_tokenizers

assert ud.unidata_version == '16.0.0', ud.unidata_version
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
CATEGORIES = ['Cn', 'Cc', 'Cf', 'Co', 'Cs', 'Lu', 'Ll', 'Lt', 'Lm', 'Lo', 'Mn', 'Mc', 'Me', 'Nd', 'Nl', 'No',
              'Pc', 'Pd', 'Ps', 'Pe', 'Pi', 'Pf', 'Po', 'Sm', 'Sc', 'Sk', 'So', 'Zs', 'Zl', 'Zp']
GRAPHEME = ['Other', 'CR', 'LF', 'Control', 'Extend', 'ZWJ', 'Regional_Indicator', 'Prepend', 'SpacingMark', 'L', 'V', 'T', 'LV', 'LVT']
WORD, BERT_PUNCTUATION, BERT_CONTROL, BERT_ACCENT, COMBINING_MARK, WHITE_SPACE, PICTOGRAPHIC = (1 << i for i in range(7))


def mapping(normalizer, around=('', '')):
    """{code point: what the normalizer makes of it}, of those it changes."""
    out = {}
    for c in CODE_POINTS:
        text = normalizer.normalize_str(around[0] + chr(c) + around[1])
        text = text[len(around[0]):len(text) - len(around[1])]
        if text != chr(c):
            out[c] = text
    return out


def splits(pre_tokenizer):
    """The code points that the pre-tokenizer cuts away from letters around them."""
    return {c for c in CODE_POINTS if len(pre_tokenizer.pre_tokenize_str('a' + chr(c) + 'a')) > 1}


def matches(pattern):
    removed = pre_tokenizers.Split(Regex(pattern), 'removed')
    out = set()
    for i in range(0, len(CODE_POINTS), 4096):
        text = ''.join(map(chr, CODE_POINTS[i:i + 4096]))
        kept = set(''.join(piece for piece, _ in removed.pre_tokenize_str(text)))
        out |= {ord(c) for c in text if c not in kept}
    return out


def combining_class(c, nfd):
    """16.0's class, where `tokenizers` also knows that the character combines: a mark of class 240 before it, or 1 after it, moves."""
    ccc = ud.combining(chr(c))
    if ccc == 0:
        return 0
    known = nfd.normalize_str('a\u0345' + chr(c)) != 'a\u0345' + chr(c) or nfd.normalize_str('a' + chr(c) + '\u0334') != 'a' + chr(c) + '\u0334'
    return ccc if known else 0


def rows(values, per_line, form='{}'):
    values = [form.format(v) for v in values]
    return ''.join('    ' + ','.join(values[i:i + per_line]) + ',\n' for i in range(0, len(values), per_line))


def main():
    nfd, nfkd, nfc = normalizers.NFD(), normalizers.NFKD(), normalizers.NFC()
    canonical = {c: t for c, t in mapping(nfd).items() if not 0xAC00 <= c <= 0xD7A3}
    compatible = {c: t for c, t in mapping(nfkd).items() if not 0xAC00 <= c <= 0xD7A3}
    compatible = {c: t for c, t in compatible.items() if canonical.get(c) != t}
    lower = mapping(normalizers.Lowercase())
    clean = mapping(normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False), ('a', 'a'))
    accents = mapping(normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False), ('a', 'a'))
    marks = mapping(normalizers.StripAccents(), ('a', 'a'))
    word, punctuation, white_space = matches(r'\w'), splits(pre_tokenizers.Punctuation()), matches(r'\s')
    grapheme = {}
    for i, name in enumerate(GRAPHEME):
        if i:
            for m in regex.compile(r'\p{Grapheme_Cluster_Break=' + name + '}').finditer(''.join(map(chr, CODE_POINTS))):
                grapheme[ord(m.group())] = i
    pictographic = {ord(m.group()) for m in regex.compile(r'\p{Extended_Pictographic}').finditer(''.join(map(chr, CODE_POINTS)))}

    records, index_of, index = [], {}, []
    for c in range(0x110000):
        if 0xD800 <= c <= 0xDFFF:
            record = (CATEGORIES.index('Cs'), 0, 0, GRAPHEME.index('Control'))
        else:
            flags = (WORD * (c in word) | BERT_PUNCTUATION * (c in punctuation) | BERT_CONTROL * (clean.get(c) == '') |
                     BERT_ACCENT * (accents.get(c) == '') | COMBINING_MARK * (marks.get(c) == '') | WHITE_SPACE * (c in white_space) |
                     PICTOGRAPHIC * (c in pictographic))
            record = (CATEGORIES.index(ud.category(chr(c))), flags, combining_class(c, nfd), grapheme.get(c, 0))
        if record not in index_of:
            index_of[record] = len(records)
            records.append(record)
        index.append(index_of[record])
    assert len(records) <= 256, len(records)
    blocks, block_of, pages = [], {}, []
    for i in range(0, len(index), 128):
        block = tuple(index[i:i + 128])
        if block not in block_of:
            block_of[block] = len(blocks)
            blocks.append(block)
        pages.append(block_of[block])

    compositions = []
    for c, text in canonical.items():
        first = ud.decomposition(chr(c)).split()
        if len(first) == 2 and nfc.normalize_str(text) == chr(c):
            compositions.append((int(first[0], 16), int(first[1], 16), c))
    compositions.sort()

    out = sys.stdout.write
    out('// Generated by tools/make_unicode_tables.py from unicodedata2 16.0.0 and tokenizers 0.23.3; do not edit.\n')
    out(f'constexpr CharRecord kRecords[{len(records)}] = {{\n' + rows(['{%d,%d,%d,%d}' % r for r in records], 14) + '};\n')
    out(f'constexpr uint16_t kPages[{len(pages)}] = {{\n' + rows(pages, 32) + '};\n')
    out(f'constexpr uint8_t kBlocks[{len(blocks)}][128] = {{\n' + ''.join('    {' + ','.join(map(str, b)) + '},\n' for b in blocks) + '};\n')
    for name, table in (('Canonical', canonical), ('Compatible', compatible), ('Lower', lower)):
        pool, entries = [], []
        for c in sorted(table):
            entries.append((c, len(pool), len(table[c])))
            pool += map(ord, table[c])
        out(f'constexpr CharMapping k{name}[{len(entries)}] = {{\n' + rows(['{%d,%d,%d}' % e for e in entries], 12) + '};\n')
        out(f'constexpr char32_t k{name}Pool[{len(pool)}] = {{\n' + rows(pool, 24) + '};\n')
    out(f'constexpr CharComposition kCompositions[{len(compositions)}] = {{\n' + rows(['{%d,%d,%d}' % c for c in compositions], 10) + '};\n')
    print(len(records), 'records', len(blocks), 'blocks', len(canonical), len(compatible), len(lower), len(compositions),
          {n: len(t) for n, t in (('clean', clean), ('accents', accents), ('marks', marks), ('word', word), ('punctuation', punctuation))},
          len(white_space), file=sys.stderr)


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Writes the code books of GGUF's IQ types, one 16-bit number an entry: millrace/tensor/grid_tables.inc.

needs: pip install gguf numpy
usage: make_grid_tables.py > millrace/tensor/grid_tables.inc

An entry stands for 8 values of three levels (2 bits each, the first value in the lowest) or for 4 values of eight levels (3 bits each).
grid_tables.cc says which levels. The books are part of the file format; they are asked of the `gguf` package, which llama.cpp publishes.
"""
from gguf import quants

BOOKS = [('Iq2Xxs', quants.IQ2_XXS), ('Iq2Xs', quants.IQ2_XS), ('Iq2S', quants.IQ2_S), ('Iq3Xxs', quants.IQ3_XXS), ('Iq3S', quants.IQ3_S),
         ('Iq1', quants.IQ1_S)]

print('// Written by tools/make_grid_tables.py; the contents are facts of the GGUF format.')
for name, book in BOOKS:
    book.init_grid()
    entries, width = book.grid_shape
    levels = {value: code for code, value in enumerate(book.grid_map)}
    bits = 2 if len(levels) == 3 else 3
    rows = book.grid.reshape(entries, width)
    codes = [sum(levels[int(value)] << (bits * i) for i, value in enumerate(row)) for row in rows]
    print(f'constexpr uint16_t k{name}Codes[{entries}] = {{')
    for begin in range(0, entries, 20):
        print('    ' + ', '.join(f'{code:#x}' for code in codes[begin:begin + 20]) + ',')
    print('};')

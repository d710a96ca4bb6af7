"""What the build promises of its objects."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

BUILD = pathlib.Path(os.environ.get("MILLRACE_BUILD", "/nonexistent"))


def output(*command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_inline_function_is_compiled_for_more_than_the_baseline():
    """The linker keeps one copy of an inline function for the whole program: one compiled with AVX-512 would end it on an older CPU."""
    objects = [path for path in BUILD.rglob("*.o") if re.search(r"_(avx2|avx2vnni|avx512|avx512bf16|amx)\.cc\.o$", path.name)]
    if not objects:
        pytest.skip("MILLRACE_BUILD has no object files of kernel variants")
    for path in objects:
        shared = [line for line in output("nm", "-C", "--defined-only", str(path)).splitlines() if re.match(r"^[0-9a-f]+ ([Wu] |V (?!DW\.ref\.))", line)]
        assert not shared, f"{path.name}: {shared[:5]}"

"""The tree is formatted as .clang-format says: `clang-format -i FILE` with the version of tests/requirements.txt mends a failure."""
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Written by the programs of tools/, at their own width.
GENERATED = {"unicode_tables.inc", "unicode_scripts.inc", "grid_tables.inc"}
SUFFIXES = {".cc", ".h", ".inc", ".cu"}


def clang_format():
    beside = pathlib.Path(sys.executable).parent / "clang-format"
    return str(beside) if beside.exists() else shutil.which("clang-format-19")


def test_every_file_is_formatted():
    program = clang_format()
    if program is None:
        pytest.skip("clang-format is not installed")
    files = [path for path in sorted((ROOT / "millrace").rglob("*")) + sorted((ROOT / "tests").rglob("*"))
             if path.suffix in SUFFIXES and path.name not in GENERATED]
    assert files, "no sources found"
    found = subprocess.run([program, "--dry-run", "--Werror", *files], capture_output=True, text=True)
    unformatted = sorted({line.split(":")[0] for line in found.stderr.splitlines() if "clang-format-violations" in line})
    assert found.returncode == 0 and not unformatted, f"{program} would change {unformatted}: {found.stderr[:2000]}"

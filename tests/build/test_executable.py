"""What the build promises of the executable: ways from a bug to a stranger's code are closed."""
import os
import re
import shutil
import subprocess

import pytest

BINARY = os.environ.get("MILLRACE_BINARY")
pytestmark = pytest.mark.skipif(not BINARY, reason="MILLRACE_BINARY is not set")


def output(*command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined_symbols():
    return {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--undefined-only", BINARY).splitlines()}


def test_addresses_are_random_and_relocations_read_only():
    header = output("readelf", "-W", "-h", "-d", "-l", BINARY)
    assert re.search(r"Type:\s+DYN", header) and re.search(r"FLAGS_1.*\bPIE\b", header), "position-independent"
    assert "GNU_RELRO" in header and re.search(r"FLAGS_1.*\bNOW\b", header), "the dynamic linker's tables are filled at start, then read-only"


def test_no_memory_is_writable_and_executable():
    segments = re.findall(r"^\s+(LOAD|GNU_STACK)(?:\s+0x[0-9a-f]+){5}\s+([RWE ]{3})", output("readelf", "-W", "-l", BINARY), re.MULTILINE)
    assert "GNU_STACK" in dict(segments), "without this entry the stack is executable"
    assert not [segment for segment in segments if "W" in segment[1] and "E" in segment[1]]


def test_the_stack_is_guarded():
    if os.environ.get("MILLRACE_SANITIZED"):
        pytest.skip("a sanitized build guards the stack itself")
    assert "__stack_chk_fail" in undefined_symbols()


def test_library_calls_know_their_buffers():
    """_FORTIFY_SOURCE: such as __memcpy_chk, where the compiler knows the size of what is written to."""
    if os.environ.get("MILLRACE_SANITIZED"):
        pytest.skip("a sanitizer checks these calls itself")
    assert {name for name in undefined_symbols() if re.fullmatch(r"__\w+_chk", name)}

"""Runs the executable under test."""
import json
import os
import pathlib
import resource
import subprocess
import tempfile

ROOT = pathlib.Path(os.environ.get("MILLRACE_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODELS = ROOT / "tests/golden/models"
ENCODERS = ROOT / "tests/golden/encoders"
SEQ2SEQ = ROOT / "tests/golden/seq2seq"
BINARY = os.environ.get("MILLRACE_BINARY")
DONE, CHECK_FAILED, ERROR = 0, 1, 2

# A file that claims to be huge must be refused before memory is taken for it. AddressSanitizer reserves terabytes, so not there.
ADDRESS_SPACE_BYTES = None if os.environ.get("MILLRACE_SANITIZED") else 8 << 30


# What the commands keep between starts, for this run of the tests.
CACHE = tempfile.TemporaryDirectory(prefix="millrace-tests-")


def environment(**more):
    """A plain environment: no colours, no hub settings, nothing forced by whoever runs the tests."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MILLRACE_ISA", "MILLRACE_API_KEY", "MILLRACE_CACHE"))}
    return env | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "XDG_CACHE_HOME": CACHE.name} | more


def limit_memory():
    if ADDRESS_SPACE_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def millrace(*args, status=DONE, input="", timeout=120, **env):
    """Runs a command and returns its result. `status`: the exit status it must have, or a set of them."""
    command = [BINARY, *map(str, args)]
    result = subprocess.run(command, input=input, capture_output=True, text=True, errors="replace", timeout=timeout, env=environment(**env),
                            preexec_fn=limit_memory)
    shown = f"{' '.join(command)}\nexit status {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    expected = {status} if isinstance(status, int) else status
    assert result.returncode in expected, shown
    if result.returncode == ERROR:
        assert result.stderr.strip(), f"an error without a message: {shown}"
    return result


def answer(*args, **options):
    """The command's answer with --json."""
    return json.loads(millrace(*args, "--json", **options).stdout)


def refusal(*args, **options):
    """The message of a command that must be refused with exit status 2."""
    return millrace(*args, status=ERROR, **options).stderr

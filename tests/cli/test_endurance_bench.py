"""bench/endurance over a few requests: what it counts, and that it does not pass over what it finds."""
import json
import os
import subprocess
import sys

import pytest

from command import BINARY, ROOT


def endurance(*args, status=0):
    if os.environ.get("MILLRACE_SANITIZED"):
        pytest.skip("sanitizers keep memory of their own")
    result = subprocess.run([sys.executable, ROOT / "bench/endurance", "--millrace", BINARY, "--clients", "8", "--json", *map(str, args)],
                            capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stdout + result.stderr
    return json.loads(result.stdout)


def test_nothing_is_left_behind():
    requests = int(os.environ.get("MILLRACE_ENDURANCE_REQUESTS", "2000"))
    # Over few requests the allocator's own steps are all that is seen.
    result = endurance("--requests", requests, "--bytes-per-request", 10 if requests >= 50_000 else 10_000)
    assert result["problems"] == [] and result["requests"] >= requests
    assert sum(result["outcomes"].values()) >= requests and all(count > 0 for count in result["outcomes"].values())
    assert result["last"]["threads"] == result["first"]["threads"] > 1 and result["last"]["used_blocks"] == 0


def test_what_is_left_behind_is_reported():
    result = endurance("--requests", 50, "--max-tokens", 8, "--bytes-per-request", -1e9, status=1)
    assert "anonymous memory grew by" in result["problems"][0]

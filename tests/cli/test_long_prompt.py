"""bench/long_prompt with the demo model and a short prompt."""
import re
import subprocess
import sys

import pytest

from command import BINARY, ROOT, environment
from test_demo_model import DEMO


def bench(*args, status=0):
    done = subprocess.run([sys.executable, ROOT / "bench/long_prompt", "--millrace", BINARY, *map(str, args)], capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_every_target_is_measured():
    if not DEMO:
        pytest.skip("the demo model is not there (MILLRACE_DEMO_MODEL, or tools/fetch_demo_model.py)")
    text = bench("--model", DEMO, "--prompt-tokens", 600, "--streams", 2, "--targets", 0, 20, "--rounds", 1, "--alone-seconds", 1).stdout
    rows = re.findall(r"^\| (none|20) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \| \d+% \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["none", "20"] and all(float(number.replace(",", "")) > 0 for row in rows for number in row[1:]), text


def test_what_cannot_be_measured_is_named(tmp_path):
    assert "unknown model nobody" in bench("--model", "nobody", status=1).stderr
    assert "did not start" in bench("--model", tmp_path, status=1).stderr

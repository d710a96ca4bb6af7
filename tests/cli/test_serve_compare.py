"""bench/serve_compare over a few requests to millrace alone, and its tables. No other server is installed or run."""
import json
import os
import subprocess
import sys

import pytest

from command import BINARY, ROOT, environment

sys.path.insert(0, str(ROOT / "bench"))
from peers import serve_report, servers  # noqa: E402
from peers.peer import Unavailable  # noqa: E402


def compare(*args, status=0):
    done = subprocess.run([sys.executable, ROOT / "bench/serve_compare", "--servers", "millrace", "--millrace", BINARY, "--wait-quiet", "0", "--threads", "1", *map(str, args)],
                          capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_every_workload_is_measured_and_told(llama, tmp_path):
    kept = tmp_path / "run.json"
    text = compare("--model", llama, "--workloads", "overload", "2", "prefix", "--rounds", 2, "--lengths", "30,8", "--requests-per-client", 3, "--prefix-tokens", 96,
                   "--overload-rate", 2000, "--overload-duration", 0.3, "--queue", 1, "--json", kept).stdout
    run = json.loads(kept.read_text())
    assert set(run["cells"]) == {"2|millrace", "prefix|millrace", "overload|millrace"} and all(len(rounds) == 2 for rounds in run["cells"].values())
    for each in run["cells"]["2|millrace"]:
        assert each["figures"]["completed"] == 6 and each["figures"]["failed"] == 0 and each["figures"]["output_throughput"] > 0
    for each in run["cells"]["prefix|millrace"]:
        assert each["figures"]["failed"] == 0 and each["figures"]["ttft_first"] > 0 and each["figures"]["ttft_later"] > 0
    for each in run["cells"]["overload|millrace"]:  # refused, and nobody cut
        assert each["figures"]["refused"] > 0 and each["figures"]["completed"] > 0 and each["figures"]["cut"] == 0 and each["figures"]["refusal_p99"] > 0
        assert each["figures"]["resident_half"] > 1 and each["figures"]["resident_end"] > 1
    for words in ("2 clients, closed loop", "A long shared prefix", "Overload", "llama on ", "bench/serve_compare --servers millrace", "| 429 |"):
        assert words in text, words
    assert str(tmp_path) not in text and "/golden/" not in text  # no paths of this machine
    assert compare("--render", "--json", kept).stdout == text


def round_of(**figures):
    return {"figures": figures, "others": 0.0}


def test_ratios_say_how_many_times_better_millrace_is():
    run = {"servers": {"millrace": {"title": "millrace"}, "llama-server": {"title": "llama-server"}},
           "cells": {"8|millrace": [round_of(output_throughput=rate, ttft_p50=10.0) for rate in (100.0, 300.0, 200.0)], "8|llama-server": [round_of(output_throughput=50.0, ttft_p50=15.0)]}}
    assert serve_report.ratio(run, "8", "llama-server", "output_throughput", True) == 4
    assert serve_report.ratio(run, "8", "llama-server", "ttft_p50", False) == 1.5
    assert serve_report.ratio(run, "8", "llama-server", "itl_p99", False) is None
    lines = serve_report.table(run, "8").splitlines()
    assert "| millrace | 200 (100–300) | 10 |" in lines[2] and "| **millrace / llama-server** | **4.00** | **1.50** |" in lines[4]


def test_what_cannot_be_is_named(llama, tmp_path):
    assert "found x" in compare("--workloads", "x", status=2).stderr
    assert "--overload-rate" in compare("--workloads", "overload", status=2).stderr
    assert "unknown model nothing" in compare("--model", "nothing", status=1).stderr
    assert "nothing was measured" in compare("--model", tmp_path, "--workloads", "1", "--json", tmp_path / "run.json", status=1).stderr
    with pytest.raises(Unavailable, match="did not start: .*absent.gguf"):
        with servers.MillraceServer(BINARY).running(os.path.join(tmp_path, "absent.gguf"), {"threads": 1}):
            pass

#!/usr/bin/env python3
"""Run the test suites that ./test has built, and count.

usage: run_tests.py [--full] [--only PATTERN] [--list]

A suite is a GoogleTest executable of a build, or a pytest folder. Every single test is counted as passed, failed or skipped; skipped
tests and suites that were not run are listed with their reasons. The last line is "N passed, N failed, N skipped", and for what kinds of
reasons: "(3 for files that are not here, 1 for an instruction set that this CPU lacks)".
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO_MODEL = os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
ROOMS = ["base", "tensor", "kernels", "formats", "tokenizer", "sampling", "model", "measure", "quality", "engine", "server", "load"]
# Parsers and engine under AddressSanitizer; threads under ThreadSanitizer.
ASAN_ROOMS = ["base", "tensor", "formats", "tokenizer", "sampling", "model", "quality", "engine", "server", "load"]
TSAN_ROOMS = ["base", "engine", "server"]


def environment(**more):
    env = dict(os.environ, MILLRACE_SOURCE_DIR=ROOT, UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1", ASAN_OPTIONS="abort_on_error=0:detect_leaks=1",
               TSAN_OPTIONS="halt_on_error=1", PYTHONDONTWRITEBYTECODE="1")
    if os.path.exists(DEMO_MODEL):
        env["MILLRACE_DEMO_MODEL"] = DEMO_MODEL
    env.update(more)
    return env


class Suite:
    """name; run() -> (passed, failed, [(test, reason)], why it ended early or None), or raises OSError when it could not start"""

    def __init__(self, name, run):
        self.name, self.run = name, run


def counted(command, report_option, timeout, env):
    """Runs a test program that writes a JUnit report; (passed, failed, skipped, why it ended early or None)."""
    with tempfile.TemporaryDirectory() as scratch:
        report, output = os.path.join(scratch, "report.xml"), os.path.join(scratch, "output.txt")
        with open(output, "w") as log:
            try:
                status = subprocess.run([*command, report_option + report], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                status = f"no end within {timeout} s"
        text = open(output, errors="replace").read()
        if not os.path.exists(report):
            print(text[-6000:])
            return 0, 1, [], f"ended early: {status}"
        passed, failed, skipped = 0, 0, []
        for test in xml.etree.ElementTree.parse(report).iter("testcase"):
            name = f"{test.get('classname')}.{test.get('name')}"
            if test.find("failure") is not None or test.find("error") is not None:
                failed += 1
            elif test.find("skipped") is not None:
                # GoogleTest's message is the place of GTEST_SKIP, a line break, and the reason.
                skipped.append((name, (test.find("skipped").get("message") or "").split("\n")[-1].strip() or "no reason given"))
            else:
                passed += 1
        if status != 0 and failed == 0:
            failed = 1
        if failed:
            print(text[-12000:])
        return passed, failed, skipped, None


def gtest(path, timeout):
    return lambda: counted([path, "--gtest_brief=1"], "--gtest_output=xml:", timeout, environment())


def pytest(folder, timeout, **env):
    return lambda: counted([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder], "--junitxml=", timeout, environment(**env))


def suites(full):
    release, asan, tsan = (os.path.join(ROOT, "build", preset) for preset in ("release", "asan", "tsan"))
    for room in ROOMS:
        yield Suite(f"release/{room}", gtest(f"{release}/{room}_test", 900))
    for folder in ("build", "cli", "hub", "server"):
        yield Suite(f"release/tests/{folder}", pytest(f"tests/{folder}", 1200, MILLRACE_BINARY=f"{release}/millrace", MILLRACE_BUILD=release))
    for room in ASAN_ROOMS:
        yield Suite(f"asan/{room}", gtest(f"{asan}/{room}_test", 1200))
    yield Suite("asan/tests/server", pytest("tests/server", 1200, MILLRACE_BINARY=f"{asan}/millrace", MILLRACE_BUILD=asan, MILLRACE_SANITIZED="1"))
    if full:
        for room in TSAN_ROOMS:
            yield Suite(f"tsan/{room}", gtest(f"{tsan}/{room}_test", 1800))
        for preset, build in (("release", release), ("asan", asan), ("tsan", tsan)):
            yield Suite(f"{preset}/soak", pytest("tests/server", 1800, MILLRACE_BINARY=f"{build}/millrace", MILLRACE_BUILD=build, MILLRACE_SOAK_SECONDS="120",
                                                 MILLRACE_SANITIZED="" if preset == "release" else "1"))
        yield Suite("release/endurance", pytest("tests/cli/test_endurance_bench.py", 1200, MILLRACE_BINARY=f"{release}/millrace", MILLRACE_BUILD=release,
                                                MILLRACE_ENDURANCE_REQUESTS="100000"))
        yield Suite("oracles", pytest("tests/oracles", 3600, MILLRACE_BINARY=f"{release}/millrace", MILLRACE_BUILD=release))


FULL_ONLY = "ThreadSanitizer, the 2-minute soak, 100,000 requests, the oracles and the browser matrix: only with --full"


# What a reason is about, as the last line says it.
KINDS = [(r"this CPU (cannot run|runs no)|no instruction set here", "an instruction set that this CPU lacks"), (r"sanitize", "a sanitizer's sake"),
         (r"is not installed|not found|no Chromium|playwright", "a program or package that is not here"),
         (r"is not here|beside|no golden|no vectors|names? (a|no) |is not set|does not name|no tokenizer\.json", "a file that is not here")]


def kinds_of(reasons):
    """How many were not run for what kind of reason, in words."""
    kinds = collections.Counter(next((kind for pattern, kind in KINDS if re.search(pattern, reason)), "another reason") for reason in reasons)
    return ", ".join(f"{count} for {kind}" for kind, count in kinds.most_common())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [suite for suite in suites(options.full) if options.only in suite.name]
    if options.list:
        print("\n".join(suite.name for suite in chosen))
        return 0
    totals, not_run, start = [0, 0, 0], [], time.monotonic()
    for suite in chosen:
        begin = time.monotonic()
        try:
            passed, failed, skipped, broken = suite.run()
        except OSError as error:
            passed, failed, skipped, broken = 0, 1, [], str(error)
        if broken:
            print(f"  {suite.name}: {broken}")
        totals = [totals[0] + passed, totals[1] + failed, totals[2] + len(skipped)]
        not_run += [(f"{suite.name}: {test}", reason) for test, reason in skipped]
        print(f"{'FAILED' if failed else 'ok':>6}  {suite.name:<22} {passed:>5} passed, {failed} failed, {len(skipped)} skipped  {time.monotonic() - begin:6.1f} s", flush=True)
    if not_run or not options.full:
        print("\nNot run:")
    for test, reason in not_run:
        print(f"  {test}: {reason}")
    if not options.full:
        print(f"  {FULL_ONLY}")
    print(f"\nTook {time.monotonic() - start:.0f} s.")
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped" + (f" ({kinds_of(reason for _, reason in not_run)})" if not_run else ""))
    return 1 if totals[1] or totals[0] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

"""Comparisons with the programs whose behaviour is the definition: tokenizers, jinja2, transformers.

MILLRACE_BINARY names the executable; without it every test is skipped. Each test is skipped, and says so, where its package is not
installed (tests/requirements-full.txt).
"""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

from command import BINARY  # noqa: E402


def pytest_collection_modifyitems(items):
    if not BINARY:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="MILLRACE_BINARY is not set"))

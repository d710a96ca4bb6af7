"""What a newcomer types first."""
import subprocess
import sys

import pytest

from command import ERROR, ROOT, millrace, refusal

COMMANDS = ["serve", "run", "generate", "inspect", "embed", "tokenize", "template", "logits", "verify", "eval", "bench"]


def test_help_lists_every_command_with_examples():
    text = millrace("--help").stdout
    for command in [*COMMANDS, "probe"]:
        assert f"\n  {command} " in text, command
    assert "Examples:" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(command):
    text = millrace(command, "--help").stdout
    assert "Example" in text and f"millrace {command} " in text
    assert "MODEL" in text and "--family" in text and "--json" in text


def test_version():
    assert millrace("--version").stdout.strip().count(".") == 2


def test_no_command_is_an_error():
    assert "subcommand" in millrace(status=ERROR).stderr.lower()


def test_unknown_command_and_option_are_errors(llama):
    assert "frobnicate" in refusal("frobnicate", llama)
    assert "--frobnicate" in refusal("inspect", llama, "--frobnicate")


def test_option_out_of_range_is_an_error(llama):
    assert "--threads" in refusal("inspect", llama, "--threads", 0)
    assert "--temperature" in refusal("generate", llama, "--prompt", "a", "--temperature", -1)
    assert "--kv-cache-dtype" in refusal("inspect", llama, "--kv-cache-dtype", "f8")


def test_the_page_of_models_says_what_is_there():
    done = subprocess.run([sys.executable, ROOT / "tools/make_models_doc.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

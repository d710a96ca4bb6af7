"""What a newcomer types first."""
import subprocess
import sys

import pytest

from command import ENCODERS, ERROR, ROOT, millrace, refusal

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
    refused = refusal("inspect", llama, "--kv-cache-dtype", "f8")
    assert "--kv-cache-dtype" in refused and all(name in refused for name in ("auto", "f32", "bf16", "int8", "fp8-e4m3", "int4"))


@pytest.mark.parametrize("option, value, said", [
    ("--max-tokens", -1, "found -1, expected a whole number, at least 0"), ("--max-model-len", 0, "at least 2"), ("--max-model-len", 9999999, "the model was made for 256"),
    ("--kv-bytes", -5, "found -5, expected bytes"), ("--kv-bytes", 0, "found 0, expected bytes, at least 1"), ("--kv-bytes", "1KB", "the KV cache needs at least"),
    ("--kv-bytes", "9x", "found 9x, expected bytes"), ("--kv-bytes", "9000000000GB", "expected bytes"), ("--weight-cache-size", -1, "found -1, expected bytes"),
    ("--temperature", "nan", "found nan, expected a number from 0 to 100"), ("--top-p", "nan", "expected a number"), ("--min-p", 1.5, "found 1.5"),
    ("--presence-penalty", "nan", "from -2 to 2")])
def test_a_value_that_cannot_be_is_refused_in_a_line_with_its_option(llama, option, value, said):
    message = refusal("generate", llama, "--prompt", "a", f"{option}={value}")
    assert option in message and said in message and len(message) < 200


def test_counts_below_one_are_refused(llama):
    for command, option in (("inspect", "--max-model-len"), ("eval", "--stride"), ("eval", "--max-tokens"), ("embed", "--dimensions")):
        assert f"{option}: found 0, expected a whole number, at least 1" in refusal(command, llama, option, 0)
    assert "--skip-tokens: found -1, expected a whole number, at least 0" in refusal("eval", llama, "--skip-tokens=-1")


def test_an_option_of_many_values_takes_one_at_a_time(llama):
    for command in (["generate", "--stop", "X", "--stop", "[a,b]", llama, "--prompt", "a", "--max-tokens", 2], ["embed", "--text", "[a, b]", ENCODERS / "bert"]):
        assert len(millrace(*command, "--json").stdout.splitlines()) == 1
    # The model is reached: there is no such file.
    assert "absent.gguf" in refusal("serve", "--served-model-name", "demo", "absent.gguf")
    assert "absent.gguf" in refusal("bench", "step", "--scaling", "1,2", "absent.gguf")


def test_what_computes_nothing_has_no_options_of_computing():
    for command in ("tokenize", "template"):
        text = millrace(command, "--help").stdout
        assert "--gguf-file" in text and "--threads" not in text and "weight-cache" not in text


def test_the_page_of_models_says_what_is_there():
    done = subprocess.run([sys.executable, ROOT / "tools/make_models_doc.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

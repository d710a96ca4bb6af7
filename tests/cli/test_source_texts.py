"""Encoder-decoders on the command line: generate answers a source text, and what needs a decoder alone says so."""
import json

import pytest

from command import MODELS, SEQ2SEQ, answer, millrace, refusal

T5 = SEQ2SEQ / "t5"


@pytest.mark.parametrize("name", sorted(path.name for path in SEQ2SEQ.iterdir()))
def test_every_golden_encoder_decoder_passes(name):
    got = answer("verify", SEQ2SEQ / name, "--reference", SEQ2SEQ / name / "golden.json")
    assert got["passed"] and len(got["prompts"]) == 3
    for prompt in got["prompts"]:
        exact = prompt["exact"]
        assert 0 < exact["encoder_difference"] <= 1e-3 and exact["logit_difference"] <= 1e-3 and exact["greedy_equal"] == exact["greedy_total"] == 24


def test_a_reference_of_the_other_kind_is_named(llama):
    assert "the model is an encoder-decoder" in refusal("verify", T5, "--reference", MODELS / "llama/golden.json")
    assert "the model is a decoder" in refusal("verify", llama, "--reference", T5 / "golden.json")


def test_a_wrong_encoder_is_found(tmp_path):
    golden = json.loads((T5 / "golden.json").read_text())
    golden["results"][1]["encoder_last_hidden"]["last_token_first16"][3] += 0.01
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    text = millrace("verify", T5, "--reference", tmp_path / "golden.json", status=1).stdout
    assert "FAILED len17: exact path: encoder, token 16: number 3" in text


def test_generate_answers_and_does_not_repeat_the_prompt(tmp_path):
    options = ["--max-tokens", 8, "--temperature", 0, "--ignore-eos"]
    done = millrace("generate", T5, "--prompt", "Some words to answer", *options)
    told = answer("generate", T5, "--prompt", "Some words to answer", *options)
    assert done.stdout == told["text"] + "\n" and told["usage"]["completion_tokens"] == 8
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Other words", "Some words to answer", "a")))
    answers = [json.loads(line) for line in millrace("generate", T5, "--file", lines, *options, "--json").stdout.splitlines()]
    assert answers[1]["text"] == told["text"] and len(answers) == 3


def test_what_needs_a_decoder_alone_says_so():
    for command in (["run", T5], ["logits", T5, "--ids", "1 2"], ["eval", T5, "--text", __file__], ["bench", "step", T5], ["embed", T5, "--text", "a"]):
        message = refusal(*command)
        assert "is an encoder-decoder that answers a text with another (t5 family)" in message, command


def test_inspect_shows_both_sides():
    told = answer("inspect", T5, "--explain")
    assert told["shapes"]["num_encoder_layers"] == 2 and told["shapes"]["num_layers"] == 2 and told["shapes"]["position"] == "relative"
    assert [group.get("of_source", False) for group in told["kv_groups"]] == [False, True]
    roles = {binding["role"] for binding in told["bindings"]}
    assert {"encoder.layers.0.attention.q", "layers.1.cross.k", "layers.0.attention.position.bias"} <= roles

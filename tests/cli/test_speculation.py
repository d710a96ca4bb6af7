"""Draft tokens change no text; they change how many steps it takes."""
import json
import os
import re
import signal
import subprocess
import urllib.request

import pytest

from command import BINARY, MODELS, ROOT, answer, environment, millrace, refusal

DEMO = os.environ.get("MILLRACE_DEMO_MODEL")
if not DEMO and (ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf").exists():
    DEMO = str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")

PROMPTS = ["one two three one two three one two", "Once upon a time there was a mill. Once upon a time there was", "The"]
NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1})
SUFFIX = json.dumps({"method": "suffix", "num_speculative_tokens": 6, "suffix_decoding_max_cached_tokens": 300})


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("speculation") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS * 3))
    return path


def texts(*args):
    return [json.loads(line)["text"] for line in millrace("generate", *args, "--json", "--seed", 5).stdout.splitlines()]


@pytest.mark.parametrize("sampling", [["--temperature", 0], ["--temperature", 1], ["--temperature", 0.7, "--top-p", 0.9, "--repetition-penalty", 1.2, "--presence-penalty", 0.5]],
                         ids=["greedy", "sampled", "penalties"])
@pytest.mark.parametrize("kv", ["bf16", "int8", "fp8-e4m3", "int4", "f32"])
def test_texts_are_equal_with_and_without(endless_model, prompts, sampling, kv):
    common = [endless_model, "--file", prompts, "--max-tokens", 60, "--kv-cache-dtype", kv, *sampling]
    plain = texts(*common)
    assert texts(*common, "--speculative-config", NGRAM) == plain
    assert texts(*common, "--speculative-config", SUFFIX) == plain


def test_texts_are_equal_with_a_draft_model(endless_model, prompts):
    for sampling in ["--temperature", 0], ["--temperature", 1]:
        common = [endless_model, "--file", prompts, "--max-tokens", 60, *sampling]
        plain = texts(*common)
        for draft in endless_model, str(MODELS / "qwen3"):
            assert texts(*common, "--speculative-config", json.dumps({"method": "draft_model", "model": draft, "num_speculative_tokens": 5})) == plain


@pytest.mark.parametrize("draft, said", [
    ("models/gpt2", "it has 600 tokens, expected the target's 640"),
    ("models/lfm2", "keeps a state"),
    ("seq2seq/t5", "encoder-decoder"),
    ("models/no-such-model", "no-such-model"),
])
def test_a_draft_model_that_does_not_go_with_the_target_is_refused(llama, draft, said):
    config = json.dumps({"method": "draft_model", "model": str(ROOT / "tests/golden" / draft)})
    assert said in refusal("generate", llama, "--prompt", "x", "--speculative-config", config)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "qwen3_moe", "deepseek_v2", "mistral", "gpt2"])
def test_texts_are_equal_for_windows_experts_and_latent_attention(prompts, family):
    common = [str(MODELS / family), "--file", prompts, "--max-tokens", 40, "--temperature", 0.5]
    assert texts(*common, "--speculative-config", NGRAM) == texts(*common)


@pytest.mark.parametrize("family", ["lfm2", "mamba", "mamba2"])
def test_networks_with_a_state_refuse_drafts(family):
    message = refusal("generate", MODELS / family, "--prompt", "x", "--speculative-config", NGRAM)
    assert "ngram" in message and "state" in message


@pytest.mark.skipif(not DEMO, reason="the demo model is not there (MILLRACE_DEMO_MODEL, or tools/fetch_demo_model.py)")
def test_the_demo_model_answers_equally_and_its_copies_are_drafted():
    got = answer("bench", "speculation", DEMO, "--repeat", 1, "--new-tokens", 80, timeout=900)
    assert {task["task"] for task in got["tasks"]} >= {"copy", "edit", "extract", "summarize"}
    copied = next(task for task in got["tasks"] if task["task"] == "copy")
    assert copied["accepted_tokens"] > copied["completion_tokens"] / 4


@pytest.mark.parametrize("config, said", [
    ("eagle", "neither off, ngram nor suffix"),
    ('{"method": "eagle3"}', "eagle3"),
    ('{"num_speculative_tokens": 4}', "method"),
    ('{"method": "ngram", "model": "x"}', "model is of the method draft_model"),
    ('{"method": "draft_model"}', "model is missing"),
    ('{"method": "draft_model", "model": 7}', "model is 7"),
    ('{"method": "draft_model", "model": "x", "prompt_lookup_min": 3}', "prompt_lookup_min"),
    ("draft_model", "has no model"),
    ('{"method": "ngram", "num_speculative_tokens": 0}', "num_speculative_tokens is 0"),
    ('{"method": "ngram", "num_speculative_tokens": "four"}', "whole number"),
    ('{"method": "ngram", "prompt_lookup_min": 17}', "prompt_lookup_min is 17"),
    ('{"method": "ngram", "suffix_decoding_max_tree_depth": 8}', "of the method suffix"),
    ('{"method": "suffix", "suffix_decoding_max_tree_depth": 1}', "suffix_decoding_max_tree_depth is 1"),
    ('{"method": "suffix", "suffix_decoding_max_cached_tokens": 0}', "suffix_decoding_max_cached_tokens is 0"),
    ('[]', "JSON object"),
])
def test_a_wrong_configuration_is_refused(llama, config, said):
    assert said in refusal("generate", llama, "--prompt", "x", "--speculative-config", config)


def test_metrics_count_drafts(endless_model):
    process = subprocess.Popen([BINARY, "serve", endless_model, "--port", "0", "--speculative-config", NGRAM], stdout=subprocess.PIPE, text=True, env=environment())
    try:
        url = re.search(r"on (http://\S+)", process.stdout.readline()).group(1)
        body = json.dumps({"prompt": PROMPTS[0], "max_tokens": 300, "temperature": 0, "stream": True}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            assert b"[DONE]" in response.read()
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
            text = response.read().decode()
        counts = {name: int(value) for name, value in re.findall(r'^(vllm:spec_decode_\w+)\{model_name="[^"]*"\} (\d+)$', text, re.MULTILINE)}
        drafted = counts["vllm:spec_decode_num_draft_tokens_total"]
        assert drafted >= counts["vllm:spec_decode_num_drafts_total"] and drafted >= counts["vllm:spec_decode_num_accepted_tokens_total"]
        assert 'vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name' in text and 'position="5"' in text
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

import json
import re

import pytest

from command import ERROR, answer, millrace, refusal

PROMPTS = ["Once upon a time", "The", "A longer prompt of several words, so that its prefill has some length to it.", "Über"]


def generated(*args, **options):
    """The answers of a run with --json, one a line."""
    return [json.loads(line) for line in millrace("generate", *args, "--json", **options).stdout.splitlines()]


def test_prompt_is_continued(llama):
    got, = generated(llama, "--prompt", "Once upon", "--temperature", 0, "--max-tokens", 12)
    assert got["usage"]["completion_tokens"] <= 12 and got["finish_reason"] in ("length", "stop")
    assert got["usage"]["prompt_tokens"] == answer("tokenize", llama, "--text", "Once upon")["count"]
    assert got["seconds"] > 0 and got["ttft_ms"] > 0
    result = millrace("generate", llama, "--prompt", "Once upon", "--temperature", 0, "--max-tokens", 12)
    assert result.stdout == f"Once upon{got['text']}\n"
    assert "prompt tokens" in result.stderr and "tokens/s" in result.stderr


def test_greedy_continuation_is_what_logits_say(llama):
    """generate and logits are one computation: the argmax of logits, step by step, is the text."""
    got, = generated(llama, "--prompt", "Once upon", "--temperature", 0, "--max-tokens", 6)
    ids = answer("tokenize", llama, "--text", "Once upon")["ids"]
    count = len(ids)
    for _ in range(6):
        position, = answer("logits", llama, "--ids", " ".join(map(str, ids)))["positions"]
        ids.append(position["top20"][0][0])
    decoded = millrace("tokenize", llama, "--decode", "--text", " ".join(map(str, ids[count:]))).stdout[:-1]
    assert decoded.rstrip("\ufffd").startswith(got["text"].rstrip("\ufffd")) and got["text"]


def test_prompt_logprobs_are_those_of_logits(llama):
    ids = answer("tokenize", llama, "--text", PROMPTS[2])["ids"]
    positions = answer("logits", llama, "--ids", " ".join(map(str, ids)), "--all-positions")["positions"]
    got, = generated(llama, "--prompt", PROMPTS[2], "--prompt-logprobs", 20, "--max-tokens", 1)
    for entry, position in zip(got["prompt_logprobs"][1:], positions):
        ranked = sorted((item["rank"], int(token), item["logprob"]) for token, item in entry.items())[:20]
        assert [(token, rank) for rank, token, _ in ranked] == [(token, i + 1) for i, (token, _) in enumerate(position["top20"])]
        for (_, _, logprob), (_, logit) in zip(ranked, position["top20"]):
            assert abs((logprob - ranked[0][2]) - (logit - position["top20"][0][1])) < 1e-4
    text = millrace("generate", llama, "--prompt", "Once upon", "--prompt-logprobs", 0, "--max-tokens", 0).stdout
    assert text.startswith("Once upon\n") and " rank " in text and "mean of" in text


def write_lines(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_file_answers_in_order_and_as_alone(llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS] + ["", {"messages": [{"role": "user", "content": "Hi"}]}])
    together = generated(llama, "--file", path, "--temperature", 0, "--max-tokens", 16)
    assert [got["index"] for got in together] == [0, 1, 2, 3, 4]
    for prompt, got in zip(PROMPTS, together):
        alone, = generated(llama, "--prompt", prompt, "--temperature", 0, "--max-tokens", 16)
        assert got["text"] == alone["text"]
    chat, = generated(llama, "--chat", "--prompt", "Hi", "--temperature", 0, "--max-tokens", 16)
    assert together[4]["text"] == chat["text"]
    text = millrace("generate", llama, "--file", path, "--temperature", 0, "--max-tokens", 16).stdout
    assert text.startswith(f"[0] {together[0]['text']}\n")


def test_many_prompts(llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Number {i}"} for i in range(70)])
    got = generated(llama, "--file", path, "--max-tokens", 4, "--seed", 1)
    assert [item["index"] for item in got] == list(range(70))


def test_more_prompts_than_the_queue_holds(llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{i}"} for i in range(1200)])
    got = generated(llama, "--file", path, "--max-tokens", 1, "--temperature", 0)
    assert [item["index"] for item in got] == list(range(1200)) and all(item["usage"]["completion_tokens"] == 1 for item in got)


def test_a_line_without_an_answer_does_not_keep_the_others_from_theirs(llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", ["", {"prompt": "a"}, {"prompt": "word " * 400}, {"prompt": "b"}, {"prompt": ""}, {"messages": []}, {"prompt": "c"}])
    done = millrace("generate", llama, "--file", path, "--max-tokens", 2, "--json", status=ERROR)
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["index"] for item in got] == list(range(6))
    failed = {item["index"] for item in got if "error" in item}
    assert 1 in failed and not failed & {0, 2, 5} and all("text" in item for item in got if item["index"] not in failed)
    assert "256" in got[1]["error"] and "prompts.jsonl, line 3: " in done.stderr
    assert f"{len(failed)} of 6 prompts have no answer" in done.stderr
    text = millrace("generate", llama, "--file", path, "--max-tokens", 2, status=ERROR)
    assert "prompts.jsonl, line 3: " in text.stderr and text.stdout.startswith("[0] ") and "\n[2] " in text.stdout and "[1]" not in text.stdout


def test_a_file_of_one_line_is_answered_as_files_are(llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Once"}])
    assert millrace("generate", llama, "--file", path, "--max-tokens", 2).stdout.startswith("[0] ")


def test_a_refused_prompt_is_not_echoed(llama):
    assert millrace("generate", llama, "--prompt", "word " * 400, status=ERROR).stdout == ""


def test_json_numbers_are_plain(llama):
    line = millrace("generate", llama, "--prompt", "a", "--max-tokens", 2, "--json").stdout
    assert re.search(r'"ttft_ms":\d+\.\d+[,}]', line), line


def test_seed_decides_the_draw(llama):
    def draw(seed):
        return generated(llama, "--prompt", "Once", "--temperature", 1, "--max-tokens", 24, "--seed", seed)[0]["text"]
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_top_k_1_is_greedy(llama):
    greedy, = generated(llama, "--prompt", "Once", "--temperature", 0, "--max-tokens", 12)
    first, = generated(llama, "--prompt", "Once", "--temperature", 1.5, "--top-k", 1, "--max-tokens", 12)
    assert first["text"] == greedy["text"]


def test_stop_text_ends_the_answer_and_is_not_in_it(endless_model):
    whole, = generated(endless_model, "--prompt", "Once", "--temperature", 0, "--max-tokens", 40)
    text = whole["text"]
    stop = next(text[i:i + 3] for i in range(5, len(text)) if text[i:i + 3].isascii() and text[i:i + 3].isprintable())
    got, = generated(endless_model, "--prompt", "Once", "--temperature", 0, "--max-tokens", 40, "--stop", stop)
    assert got["finish_reason"] == "stop" and got["text"] == text[:text.index(stop)]


def test_the_context_is_the_limit(endless_model):
    got, = generated(endless_model, "--prompt", "Once", "--temperature", 0, "--max-model-len", 48)
    assert got["finish_reason"] == "length" and got["usage"]["prompt_tokens"] + got["usage"]["completion_tokens"] == 48


def test_a_prompt_longer_than_the_context_is_an_error(llama):
    message = refusal("generate", llama, "--prompt", "word " * 400)
    assert "256" in message


def test_kv_memory_is_kept(llama):
    assert refusal("generate", llama, "--prompt", "a", "--kv-bytes", "1KB")
    assert generated(llama, "--prompt", "a", "--kv-bytes", "8MB", "--max-tokens", 3)


@pytest.mark.parametrize("lines, named", [
    (['{"prompt": "a"}', '{"prompt": 3}'], "line 2"), (['{"prompt": "a"'], "line 1"), (["[]"], "line 1"), (['{"prompt": "a", "messages": []}'], "line 1"),
    (['{"text": "a"}'], '"prompt"'), (['{"prompt": "a"}', '{"prompt": "a", "max_tokens": 4}'], 'line 2: unrecognized field "max_tokens"'), ([""], "no prompt")])
def test_a_wrong_prompt_file_is_an_error_with_its_line(llama, tmp_path, lines, named):
    message = refusal("generate", llama, "--file", write_lines(tmp_path / "prompts.jsonl", lines))
    assert "prompts.jsonl" in message and named in message


def test_neither_prompt_nor_file(llama):
    assert "--prompt" in refusal("generate", llama)


def test_the_models_own_sampling_defaults_apply(copied_llama):
    config = json.loads((copied_llama / "generation_config.json").read_text())
    # top_k 1 makes every draw the likeliest token, whatever the temperature.
    (copied_llama / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "temperature": 1.5, "top_k": 1}))
    greedy, = generated(copied_llama, "--prompt", "Once", "--temperature", 0, "--max-tokens", 16)
    own, = generated(copied_llama, "--prompt", "Once", "--max-tokens", 16, "--seed", 3)
    neutral = {generated(copied_llama, "--prompt", "Once", "--max-tokens", 16, "--seed", seed, "--generation-config", "vllm")[0]["text"] for seed in (3, 4, 5)}
    assert own["text"] == greedy["text"] and neutral != {greedy["text"]}

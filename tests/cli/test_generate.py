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


BATCH = {"method": "POST", "url": "/v1/completions"}


def batch_line(custom_id, **body):
    return {"custom_id": custom_id, **BATCH, "body": {"max_tokens": 3, "temperature": 0, **body}}


def test_malformed_lines_are_errors_of_their_own(llama, tmp_path):
    lines = [{"prompt": "a"}, '{"prompt": "a"', "[]", {"prompt": "b", "max_tokens": 4}, {"text": "a"}, {"prompt": "c"}]
    done = millrace("generate", llama, "--file", write_lines(tmp_path / "prompts.jsonl", lines), "--max-tokens", 2, "--json", status=ERROR)
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["index"] for item in got] == list(range(6)) and ["text" in item for item in got] == [True, False, False, False, False, True]
    for number, said in ((2, ""), (3, "expected {"), (4, 'unrecognized field "max_tokens"'), (5, '"text"')):
        assert f"prompts.jsonl, line {number}: " in done.stderr and said in got[number - 1]["error"]
    assert "4 of 6 prompts have no answer" in done.stderr


def test_openai_batch_format(llama, tmp_path):
    lines = [batch_line("text", prompt="Once upon"), {**batch_line("chat", messages=[{"role": "user", "content": "Hi"}]), "url": "/v1/chat/completions"},
             batch_line("two", prompt=["Once upon", "The"], n=2, seed=1, model="whatever", echo=True, logprobs=1), batch_line("wrong field", prompt="a", temprature=1),
             batch_line("too long", prompt="word " * 400), batch_line("text", prompt="again"), {**batch_line("embed", input="a"), "url": "/v1/embeddings"},
             batch_line("stream", prompt="a", stream=True), {"method": "POST", "url": "/v1/completions", "body": {}}, {"prompt": "Once upon"}]
    path = write_lines(tmp_path / "batch.jsonl", lines)
    done = millrace("generate", llama, "--file", path, "--temperature", 0, "--max-tokens", 3, "--json", status=ERROR)
    text, chat, two, wrong, long, again, embed, stream, nameless, plain = map(json.loads, done.stdout.splitlines())
    for answer_, custom_id, kind in ((text, "text", "text_completion"), (chat, "chat", "chat.completion"), (two, "two", "text_completion")):
        assert answer_["custom_id"] == custom_id and answer_["error"] is None and answer_["id"].startswith("batch_req_")
        assert answer_["response"]["status_code"] == 200 and answer_["response"]["body"]["object"] == kind
    assert text["response"]["body"]["choices"][0]["text"] == plain["text"] and plain["index"] == 9
    assert chat["response"]["body"]["choices"][0]["message"]["content"] == generated(llama, "--chat", "--prompt", "Hi", "--temperature", 0, "--max-tokens", 3)[0]["text"]
    assert [choice["text"][:3] for choice in two["response"]["body"]["choices"]] == ["Onc", "Onc", "The", "The"]
    for answer_, said in ((wrong, "temprature"), (long, "256"), (stream, "stream")):
        assert answer_["response"]["status_code"] == 400 and said in answer_["response"]["body"]["error"]["message"] and answer_["error"] is None
    for answer_, said in ((again, "earlier line"), (embed, "url"), (nameless, "custom_id")):
        assert answer_["response"] is None and said in answer_["error"]["message"]
    assert nameless["custom_id"] is None and "6 of 10 prompts have no answer" in done.stderr and "batch.jsonl, line 5: " in done.stderr


def test_an_interrupted_run_is_resumed(llama, tmp_path):
    lines = [batch_line(f"r{i}", prompt=f"Number {i}") if i % 2 else {"prompt": f"Number {i}"} for i in range(40)]
    path, output = write_lines(tmp_path / "prompts.jsonl", lines), tmp_path / "answers.jsonl"
    options = ("generate", llama, "--file", path, "--output", output, "--temperature", 0, "--max-tokens", 3)

    def read():
        answers = [json.loads(line) for line in output.read_text().splitlines()]
        texts = {item["index"] if "index" in item else item["custom_id"]: item["text"] if "index" in item else item["response"]["body"]["choices"][0]["text"] for item in answers}
        assert len(texts) == len(answers), "no line twice"
        return texts

    assert millrace(*options).stdout == ""
    whole = read()
    assert set(whole) == {f"r{i}" if i % 2 else i for i in range(40)}
    kept = output.read_text().splitlines(keepends=True)
    output.write_text("".join(kept[:17]).replace('"text":"', '"text":"kept ', 1) + kept[17][:20])
    millrace(*options)
    resumed = read()
    assert set(resumed) == set(whole) and sum(resumed[key] != whole[key] for key in whole) == 1, "what was there is not made again"
    before = output.read_text()
    millrace(*options)
    assert output.read_text() == before
    output.write_text('{"something": "else"}\n')
    assert "line 1 is no answer" in millrace(*options, status=ERROR).stderr and output.read_text() == '{"something": "else"}\n'
    assert "--file" in refusal("generate", llama, "--prompt", "a", "--output", output)


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


def test_questions_that_share_a_prompt(llama, tmp_path):
    """A model of random weights keeps to no form: every question is asked again, alone, and answered as without."""
    system = {"role": "system", "content": "Answer with one word."}
    lines = [{"messages": [system, {"role": "user", "content": f"Question {i}?"}]} for i in range(5)]
    lines.insert(2, {"messages": [{"role": "user", "content": "Of its own?"}]})
    path = write_lines(tmp_path / "questions.jsonl", lines)
    options = ["--file", path, "--temperature", 0, "--max-tokens", 6, "--json"]
    want = [json.loads(line)["text"] for line in millrace("generate", llama, *options).stdout.splitlines()]
    result = millrace("generate", llama, *options, "--batch-prompting", 2, "--compare-alone")
    got = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["index"] for answer in got] == list(range(6)) and [answer["text"] for answer in got] == want
    assert all(answer["asked_alone"] for answer in got)
    assert "4 prompts, 4 questions asked again alone" in result.stderr and "6 of 6 answers agree" in result.stderr
    output = tmp_path / "answers.jsonl"
    for _ in range(2):  # the second run has nothing left to do
        millrace("generate", llama, *options, "--batch-prompting", 2, "--output", output)
        assert sorted(json.loads(line)["index"] for line in output.read_text().splitlines()) == list(range(6))


def test_batch_prompting_takes_conversations(llama, tmp_path):
    path = write_lines(tmp_path / "lines.jsonl", [{"prompt": "a"}, {"messages": [{"role": "assistant", "content": "b"}]},
                                                  {"messages": [{"role": "user", "content": "c"}] * 2}, {"messages": [{"role": "user", "content": "d"}]}])
    result = millrace("generate", llama, "--file", path, "--batch-prompting", 2, "--max-tokens", 2, "--json", status=ERROR)
    assert [line.get("error", "").split(",")[0] for line in map(json.loads, result.stdout.splitlines())] == [
        '--batch-prompting takes lines {"messages": [...]} of which the last is the user\'s'] * 2 + [
        "--batch-prompting: the last two messages are the user's", ""]
    assert "--file" in refusal("generate", llama, "--prompt", "a", "--batch-prompting", 2)

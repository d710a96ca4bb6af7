"""Several questions in one prompt: what cannot be split is asked alone, and is then what it would have been without."""
import httpx
import pytest

SYSTEM = {"role": "system", "content": "Answer with one word."}
QUESTIONS = ["What is the capital of France?", "Two and three?", "The colour of grass?", "Yes?", "The last one?"]


def ask(server, questions, **fields):
    body = {"messages": [SYSTEM, *({"role": "user", "content": q} for q in questions)], "temperature": 0, "max_tokens": 6, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def alone(server, questions):
    return [ask(server, [question]).json() for question in questions]


@pytest.mark.parametrize("pack", [1, 2, 3, 64])
def test_each_question_gets_its_answer(server, pack):
    want = alone(server, QUESTIONS)
    got = ask(server, QUESTIONS, batch_prompting=pack).json()
    assert [choice["index"] for choice in got["choices"]] == list(range(len(QUESTIONS)))
    about = got["batch_prompting"]
    assert about["prompts"] == -(-len(QUESTIONS) // pack)
    assert about["prompt_tokens_alone"] == sum(answer["usage"]["prompt_tokens"] for answer in want)
    # A model of random weights keeps to no form: everything is asked again, and answered as it would have been.
    single = {len(QUESTIONS) - 1} if len(QUESTIONS) % pack == 1 else set()
    assert about["asked_again"] == ([] if pack == 1 else [i for i in range(len(QUESTIONS)) if i not in single])
    for choice, answer in zip(got["choices"], want):
        assert choice["message"]["content"] == answer["choices"][0]["message"]["content"]
        assert choice["finish_reason"] == answer["choices"][0]["finish_reason"]
    assert got["usage"]["completion_tokens"] > 0 and got["usage"]["prompt_tokens"] >= about["prompt_tokens_alone"]


@pytest.mark.parametrize("field, value", [("stream", True), ("n", 2), ("logprobs", True), ("use_beam_search", True), ("prompt_logprobs", 1)])
def test_what_does_not_go_with_it_is_refused_by_name(server, field, value):
    answer = ask(server, QUESTIONS, batch_prompting=2, **{field: value})
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


def test_the_last_message_is_a_question(server):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    answer = ask(server, [], messages=messages, batch_prompting=2)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "batch_prompting"
    answer = ask(server, ["a"] * 257, batch_prompting=2)
    assert answer.status_code == 400 and "257 questions, expected at most 256" in answer.json()["error"]["message"]


def test_the_time_limit_is_of_the_whole(slow_server):
    answer = ask(slow_server(20), QUESTIONS, batch_prompting=3, timeout=0.2, max_tokens=200).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["timeout"] * len(QUESTIONS)

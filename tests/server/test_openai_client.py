"""The unmodified openai package against the server."""
import openai
import pytest
from conftest import user


def stream_text(stream):
    texts, finish, usage, chunks = {}, {}, None, []
    for chunk in stream:
        chunks.append(chunk)
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            piece = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
            if choice.finish_reason:
                assert choice.index not in finish, "a choice finishes once"
                finish[choice.index] = choice.finish_reason
    return texts, finish, usage, chunks


def test_models(client, model):
    models = client.models.list().data
    assert [m.id for m in models] == [model]
    assert models[0].max_model_len > 0
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=user("Hello"), max_tokens=8, temperature=0, extra_body={"ignore_eos": True})
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.created > 1_700_000_000
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_equals_whole(client, model):
    arguments = dict(model=model, messages=user("Tell me a story"), max_tokens=40, seed=5)
    whole = client.chat.completions.create(**arguments)
    texts, finish, usage, chunks = stream_text(client.chat.completions.create(**arguments, stream=True))
    assert texts == {0: whole.choices[0].message.content}
    assert finish == {0: whole.choices[0].finish_reason}
    assert usage is None
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_usage(client, model):
    arguments = dict(model=model, messages=user("Hi"), max_tokens=10, seed=1, extra_body={"ignore_eos": True})
    stream = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    _, _, usage, chunks = stream_text(stream)
    assert usage.completion_tokens == 10
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert usage.prompt_tokens == client.chat.completions.create(**arguments).usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices(client, model, stream):
    arguments = dict(model=model, messages=user("Hi"), max_tokens=12, n=4, seed=3, temperature=1)
    answer = client.chat.completions.create(**arguments, stream=stream)
    if stream:
        texts, finish, _, _ = stream_text(answer)
    else:
        texts = {choice.index: choice.message.content for choice in answer.choices}
        finish = {choice.index: choice.finish_reason for choice in answer.choices}
    assert sorted(texts) == [0, 1, 2, 3] == sorted(finish)
    assert len(set(texts.values())) > 1, "choices have random numbers of their own"


def test_seed_repeats_and_differs(client, model):
    def ask(seed):
        return client.chat.completions.create(model=model, messages=user("Hi"), max_tokens=16, seed=seed, temperature=1).choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_greedy_repeats_without_seed(client, model):
    answers = {client.chat.completions.create(model=model, messages=user("Hi"), max_tokens=16, temperature=0).choices[0].message.content for _ in range(3)}
    assert len(answers) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client, model, stream):
    arguments = dict(model=model, prompt="Once", max_tokens=24, temperature=0, extra_body={"ignore_eos": True})
    text = client.completions.create(**arguments).choices[0].text
    stop = text[len(text) // 2:len(text) // 2 + 3]  # reaches over token borders as often as not
    expected = text[:text.index(stop)]
    answer = client.completions.create(**arguments, stop=[stop, "\x00never"], stream=stream)
    if stream:
        texts, finish, _, chunks = stream_text(answer)
        assert texts[0] == expected and finish[0] == "stop"
        assert chunks[-1].choices[0].stop_reason == stop
    else:
        assert answer.choices[0].text == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == stop
    arguments["extra_body"] = {"ignore_eos": True, "include_stop_str_in_output": True}
    assert client.completions.create(**arguments, stop=stop).choices[0].text == expected + stop


def test_stop_token_ids(client, model):
    forced = dict(model=model, prompt="Once", max_tokens=12, logit_bias={"40": 100})
    answer = client.completions.create(**forced, extra_body={"ignore_eos": True, "stop_token_ids": [39, 40]})
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].stop_reason == 40
    assert answer.usage.completion_tokens == 1
    later = client.completions.create(**forced, extra_body={"ignore_eos": True, "stop_token_ids": [40], "min_tokens": 3})
    assert later.usage.completion_tokens > 3


def test_min_tokens_and_ignore_eos(client, model):
    answer = client.completions.create(model=model, prompt="a", max_tokens=20, temperature=1, seed=2, extra_body={"min_tokens": 20})
    assert answer.usage.completion_tokens == 20


def sampled(client, model, n=1, **extra):
    """The texts of 24 tokens each."""
    answer = client.completions.create(model=model, prompt="Once upon", max_tokens=24, temperature=1, seed=3, n=n, extra_body={"ignore_eos": True, **extra})
    assert answer.usage.completion_tokens == 24 * n
    return [choice.text for choice in answer.choices]


def test_allowed_token_ids(client, model):
    forced = client.completions.create(model=model, prompt="a", max_tokens=5, extra_body={"ignore_eos": True, "allowed_token_ids": [40]}).choices[0].text
    biased = client.completions.create(model=model, prompt="a", max_tokens=5, logit_bias={"40": 100}, extra_body={"ignore_eos": True}).choices[0].text
    assert forced == biased


def test_masks_that_leave_nothing_are_the_requests_fault(client, model, server):
    arguments = dict(model=model, prompt="a", max_tokens=5, extra_body={"allowed_token_ids": [40], "stop_token_ids": [40], "min_tokens": 3})
    with pytest.raises(openai.BadRequestError, match="allowed_token_ids, bad_words and min_tokens leave none"):
        client.completions.create(**arguments)
    server.wait_until_idle()


def test_bad_words(client, model):
    def tokens(**extra):
        answer = client.completions.create(model=model, prompt="Once upon", max_tokens=8, seed=3, logprobs=0, logit_bias={"40": 100, "41": 60}, extra_body={"ignore_eos": True, **extra})
        return answer.choices[0].logprobs.tokens

    favourite, = set(tokens(temperature=0))
    second, = set(tokens(temperature=0, bad_words=[favourite]))
    assert second != favourite
    assert not {favourite, second} & set(tokens(temperature=0, bad_words=[favourite, second]))
    # Of a word of two tokens only the second goes, and only behind the first.
    assert tokens(temperature=0, bad_words=[favourite + favourite])[:2] == [favourite, second]


@pytest.mark.parametrize("field", [{"mirostat": 2, "mirostat_tau": 2}, {"typical_p": 0.3}, {"top_n_sigma": 1.2}, {"xtc_probability": 1, "xtc_threshold": 0.001},
                                   {"top_k": 3}, {"min_p": 0.5}], ids=lambda field: next(iter(field)))
def test_samplers_act_and_repeat(client, model, field):
    plain, changed = sampled(client, model, n=4), sampled(client, model, n=4, **field)
    assert changed != plain
    assert changed == sampled(client, model, n=4, **field)


def test_samplers_at_their_neutral_values_change_nothing(client, model):
    neutral = {"typical_p": 1, "top_n_sigma": -1, "xtc_probability": 0, "dry_multiplier": 0, "mirostat": 0, "bad_words": [], "allowed_token_ids": None}
    assert sampled(client, model, **neutral) == sampled(client, model)


def test_dry(client, model):
    """Two tokens alone repeat each other for ever; with DRY at full strength their sequence is broken."""
    arguments = dict(model=model, prompt="a", max_tokens=12, temperature=0, logit_bias={"40": 100})
    plain = client.completions.create(**arguments, extra_body={"ignore_eos": True})
    dry = client.completions.create(**arguments, extra_body={"ignore_eos": True, "dry_multiplier": 100, "dry_base": 4, "dry_sequence_breakers": []})
    assert dry.choices[0].text != plain.choices[0].text
    broken = client.completions.create(**arguments, extra_body={"ignore_eos": True, "dry_multiplier": 100, "dry_base": 4, "dry_sequence_breakers": [plain.choices[0].text[:1]]})
    assert broken.choices[0].text == plain.choices[0].text, "a breaker is never penalized"


def test_completion_prompt_forms(client, model, server):
    import httpx

    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": "Hello there"}).json()["tokens"]
    arguments = dict(model=model, max_tokens=6, temperature=0)
    text = client.completions.create(prompt="Hello there", **arguments).choices[0].text
    assert client.completions.create(prompt=ids, **arguments).choices[0].text == text
    assert [c.text for c in client.completions.create(prompt=[ids, ids], **arguments).choices] == [text, text]
    batch = client.completions.create(prompt=["Hello there", "Other"], n=2, **arguments)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert batch.choices[0].text == batch.choices[1].text == text
    texts, finish, _, _ = stream_text(client.completions.create(prompt=["Hello there", "Other"], n=2, stream=True, **arguments))
    assert texts == {choice.index: choice.text for choice in batch.choices}
    assert sorted(finish) == [0, 1, 2, 3]


def test_completion_defaults_to_16_tokens(client, model):
    assert client.completions.create(model=model, prompt="a", extra_body={"ignore_eos": True}).usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client, model, stream):
    arguments = dict(model=model, prompt="The prompt", max_tokens=5, temperature=0)
    text = client.completions.create(**arguments).choices[0].text
    answer = client.completions.create(**arguments, echo=True, stream=stream)
    if stream:
        assert stream_text(answer)[0][0] == "The prompt" + text
    else:
        assert answer.choices[0].text == "The prompt" + text


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(client, model, server, stream):
    import httpx

    arguments = dict(model=model, prompt="Once upon a time, there was", temperature=0, logprobs=2, extra_body={"ignore_eos": True})
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": arguments["prompt"]}).json()["tokens"]
    if stream:
        parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**arguments, max_tokens=4, echo=True, stream=True) if chunk.choices]
        fields = {name: [item for part in parts if part for item in getattr(part, name)] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    else:
        choice = client.completions.create(**arguments, max_tokens=4, echo=True).choices[0]
        assert choice.text.startswith(arguments["prompt"])
        fields = choice.logprobs.model_dump()
    assert all(len(fields[name]) == len(ids) + 4 for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"))
    assert fields["token_logprobs"][0] is None and fields["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in fields["token_logprobs"][1:]) and fields["text_offset"] == sorted(fields["text_offset"])
    plain = client.completions.create(**arguments, max_tokens=4).choices[0].logprobs
    assert fields["tokens"][len(ids):] == plain.tokens and fields["token_logprobs"][len(ids):] == plain.token_logprobs
    if not stream:
        scored = client.completions.create(**arguments, max_tokens=0, echo=True).choices[0]
        assert scored.text == arguments["prompt"] and scored.finish_reason == "length"
        assert scored.logprobs.token_logprobs == fields["token_logprobs"][:len(ids)]


def test_prompt_logprobs(client, model, server):
    import httpx

    def post(path, **body):
        answer = httpx.post(f"{server.url}/v1/{path}", json={"model": model, "max_tokens": 2, "seed": 1, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    prompt = "Once upon a time, there was"
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": prompt}).json()["tokens"]
    echo = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=2).choices[0].logprobs
    answer = post("completions", prompt=ids, prompt_logprobs=2, n=2)
    for choice in answer["choices"]:
        entries = choice["prompt_logprobs"]
        assert entries[0] is None and len(entries) == len(ids)
        for token, entry, echoed in zip(ids[1:], entries[1:], echo.token_logprobs[1:]):
            own = entry[str(token)]
            assert list(entry)[0] == str(token) and own["logprob"] == echoed and own["rank"] >= 1
            assert sorted({item["rank"] for item in entry.values()})[:2] == [1, 2] and len(entry) in (2, 3)
            assert own["logprob"] == max(item["logprob"] for item in entry.values()) or own["rank"] > 1
    assert len(post("completions", prompt=ids, prompt_logprobs=0)["choices"][0]["prompt_logprobs"][1]) == 1
    assert "prompt_logprobs" not in post("completions", prompt=ids)["choices"][0]
    chat = post("chat/completions", messages=user("Hi"), prompt_logprobs=1)
    assert chat["prompt_logprobs"][0] is None and len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_best_of_gives_the_likeliest_per_token(client, model):
    arguments = dict(model=model, prompt="Once upon", max_tokens=6, temperature=1.3, seed=11, logprobs=0)
    every = client.completions.create(**arguments, n=6)
    means = {i: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for i, choice in enumerate(every.choices)}
    order = sorted(means, key=lambda i: -means[i])
    best = client.completions.create(**arguments, n=2, best_of=6)
    assert [choice.text for choice in best.choices] == [every.choices[i].text for i in order[:2]]
    assert [choice.index for choice in best.choices] == [0, 1] and best.usage.completion_tokens == every.usage.completion_tokens
    del arguments["logprobs"]
    silent = client.completions.create(**arguments, best_of=6)
    assert [choice.text for choice in silent.choices] == [best.choices[0].text] and silent.choices[0].logprobs is None
    several = client.completions.create(**arguments | {"prompt": ["Once upon", "The"]}, best_of=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**arguments, **wrong)
        assert refused.value.param == "best_of"


def test_beam_search(client, model):
    def post(**body):
        return client.completions.create(model=model, prompt="Once upon", max_tokens=8, extra_body={"use_beam_search": True, **body.pop("extra", {})}, **body)

    greedy = client.completions.create(model=model, prompt="Once upon", max_tokens=8, temperature=0).choices[0].text
    assert post().choices[0].text == greedy, "one beam is greedy"
    beams = [choice.text for choice in post(n=4).choices]
    assert len(beams) == 4 and beams[0] not in beams[1:] and [choice.text for choice in post(n=2, best_of=4).choices] == beams[:2]
    chat = client.chat.completions.create(model=model, messages=user("Hi"), n=3, max_tokens=4, extra_body={"use_beam_search": True, "early_stopping": "never", "length_penalty": 0})
    assert [choice.index for choice in chat.choices] == [0, 1, 2]
    for field, value in (("logprobs", 1), ("stop", "x"), ("presence_penalty", 1)):
        with pytest.raises(openai.BadRequestError) as refused:
            post(**{field: value})
        assert refused.value.param == field
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt="a", extra_body={"length_penalty": 2})


def test_chat_logprobs(client, model):
    arguments = dict(model=model, messages=user("Hi"), max_tokens=6, temperature=0, extra_body={"ignore_eos": True})
    choice = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert len(content) == 6
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace") == choice.message.content, "the bytes of tokens that are half a character join"
    for token in content:
        assert token.logprob <= 0 and (bytes(token.bytes).decode(errors="replace") == token.token or "\ufffd" in token.token)
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    streamed = []
    for chunk in client.chat.completions.create(**arguments, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in content]
    assert client.chat.completions.create(**arguments).choices[0].logprobs is None


def test_completion_logprobs(client, model):
    choice = client.completions.create(model=model, prompt="a", max_tokens=5, temperature=0, logprobs=2, extra_body={"ignore_eos": True}).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 5
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    assert "".join(logprobs.tokens) == choice.text or "\ufffd" in "".join(logprobs.tokens)


def test_logit_bias_forces_a_token(client, model):
    choice = client.completions.create(model=model, prompt="a", max_tokens=4, logprobs=0, logit_bias={"40": 100}).choices[0]
    assert len(set(choice.logprobs.tokens)) == 1


def test_sampling_fields_are_taken(client, model):
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1}
    answers = {client.chat.completions.create(model=model, messages=user("Hi"), max_tokens=10, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
                                              extra_body=extra).choices[0].message.content for _ in range(3)}
    assert len(answers) == 1, "top_k 1 leaves no choice, whatever the seed"


def test_conversation_fields(client, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=4, user="someone", metadata={"a": "b"}, store=False)
    assert answer.usage.completion_tokens <= 4


def test_continue_final_message(client, model, server):
    import httpx

    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    client.chat.completions.create(model=model, messages=messages, max_tokens=2, extra_body=extra)
    continued = httpx.post(f"{server.url}/tokenize", json={"messages": messages, **extra}).json()["tokens"]
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": continued}).json()["prompt"]
    assert text.endswith("Once upon")


def test_async_client(server, model):
    import asyncio

    async def ask(client, seed):
        stream = await client.chat.completions.create(model=model, messages=user("Hi"), max_tokens=10, seed=seed, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*[ask(client, seed % 4) for seed in range(16)])

    texts = asyncio.run(run())
    assert all(texts[i] == texts[i % 4] for i in range(16)), "an answer does not depend on its company"

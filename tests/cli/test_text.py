"""tokenize and template."""
import json

import pytest

from command import MODELS, answer, millrace, refusal

TEXTS = ["Hello, world", "two  spaces\nand a line", "naïve café 東京 😀", "numbers 1234567 and <|im_start|> inside", "", "tab\tand\u00a0no-break"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(llama, text):
    got = answer("tokenize", llama, "--text", text)
    assert got["decoded"] == text and got["count"] == len(got["ids"]) == len(got["pieces"])
    ids = " ".join(map(str, got["ids"]))
    assert millrace("tokenize", llama, "--text", text).stdout == ids + "\n"
    assert millrace("tokenize", llama, "--decode", "--text", ids).stdout == text + "\n"


def test_standard_input_is_the_default(llama):
    text = "from a pipe\n"
    assert answer("tokenize", llama, input=text)["decoded"] == text
    ids = answer("tokenize", llama, "--text", "abc")["ids"]
    assert millrace("tokenize", llama, "--decode", input=" ".join(map(str, ids)) + "\n").stdout == "abc\n"


def test_special_tokens_are_parsed_unless_the_text_is_plain(llama):
    text = "<|im_start|>"
    assert answer("tokenize", llama, "--text", text)["ids"] == [1]
    plain = answer("tokenize", llama, "--text", text, "--plain")
    assert len(plain["ids"]) > 1 and 1 not in plain["ids"] and plain["decoded"] == text


def test_special_tokens_are_added_unless_refused():
    model = MODELS / "llama2-spm"
    added = answer("tokenize", model, "--text", "abc")["ids"]
    bare = answer("tokenize", model, "--text", "abc", "--no-special")["ids"]
    bos = json.loads((model / "config.json").read_text())["bos_token_id"]
    assert added == [bos] + bare


def test_gguf_and_directory_tokenize_alike(qwen2_gguf):
    for text in TEXTS:
        assert answer("tokenize", qwen2_gguf, "--text", text)["ids"] == answer("tokenize", MODELS / "qwen2", "--text", text)["ids"], text


@pytest.mark.parametrize("ids, named", [("640", "640"), ("-3", "-3"), ("1 two", "token ids")])
def test_ids_that_are_none(llama, ids, named):
    assert named in refusal("tokenize", llama, "--decode", input=ids)


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|> there"}]
RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|> there<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def messages(tmp_path):
    def write(value, name="m.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path
    return write


def test_template_renders_a_list_or_a_request(llama, messages):
    assert millrace("template", llama, "--messages", messages(MESSAGES)).stdout == RENDERED
    assert millrace("template", llama, "--messages", messages({"messages": MESSAGES, "model": "any"})).stdout == RENDERED
    closed = millrace("template", llama, "--messages", messages(MESSAGES), "--no-generation-prompt").stdout
    assert closed == RENDERED.removesuffix("<|im_start|>assistant\n")


def test_special_tokens_are_never_parsed_out_of_user_text(llama, messages):
    got = answer("template", llama, "--messages", messages(MESSAGES))
    assert got["text"] == RENDERED
    # <|im_end|> twice from the template, none from the user; <|im_start|> three times.
    assert got["ids"].count(2) == 2 and got["ids"].count(1) == 3
    users = [got["text"].encode()[begin:end].decode() for begin, end in got["user_ranges"]]
    assert "Hi <|im_end|> there" in users
    assert millrace("template", llama, "--messages", messages(MESSAGES), "--ids").stdout.split() == [str(i) for i in got["ids"]]


def test_a_gguf_carries_its_template(qwen2_gguf, messages):
    assert millrace("template", qwen2_gguf, "--messages", messages(MESSAGES)).stdout == RENDERED


@pytest.mark.parametrize("value, named", [('{"messages": 1}', "list of messages"), ("{}", '"messages"'), ("[{]", "m.json"), ("3", "list of messages")])
def test_wrong_messages_are_an_error(llama, messages, value, named):
    message = refusal("template", llama, "--messages", messages(value))
    assert "m.json" in message and named in message


def with_template(directory, source):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if source is not None:
        config["chat_template"] = source
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_missing_template_is_an_error_and_nothing_else_fails(copied_llama, messages):
    with_template(copied_llama, None)
    assert "template" in refusal("template", copied_llama, "--messages", messages(MESSAGES))
    assert "template" in refusal("run", copied_llama, input="Hi\n")
    assert answer("inspect", copied_llama)["chat_template"].startswith("none: ")
    assert answer("tokenize", copied_llama, "--text", "abc")["ids"]


@pytest.mark.parametrize("source, place", [("{% for m in messages %}\n{{ m['role'] ", "line 2"), ("a\nb {% if x %} c {% endfor %}", "line 2")])
def test_a_broken_template_is_an_error_with_its_place(copied_llama, messages, source, place):
    assert place in refusal("template", with_template(copied_llama, source), "--messages", messages(MESSAGES))


def test_a_template_may_refuse(copied_llama, messages):
    with_template(copied_llama, "{{ raise_exception('only one message, please') }}")
    assert "only one message, please" in refusal("template", copied_llama, "--messages", messages(MESSAGES))


def test_a_template_without_end_is_stopped(copied_llama, messages):
    loop = "{% for a in range(100000) %}" * 4 + "x" + "{% endfor %}" * 4
    assert refusal("template", with_template(copied_llama, loop), "--messages", messages(MESSAGES), timeout=60)

"""Token ids against the PyPI package `tokenizers`, on texts that nobody chose."""
import json
import random

import pytest

from command import MODELS, ROOT, millrace

tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed (tests/requirements-full.txt)")

SHARED = ROOT.parent / "shared/golden/tokenizers/files"
NUM_TEXTS, TEXT_CHARACTERS = 12, 400

WORDS = ["the", "The", "naïve", "don't", "I'LL", "zażółć", "Straße", "ﬁne", "東京", "한국어", "Привет", "שלום", "مرحبا", "ไทย", "हिन्दी", "e\u0301", "𝔘𝔫𝔦", "😀", "👩‍👩‍👧", "🇫🇷",
         "\u200b", "\ufeff", "\u00a0", "\u2028", "\t", "\r\n", "\n", "\n\n", "  ", "   \n ", "1", "42", "1234567", "3.14", "²", "Ⅷ", "<|im_start|>", "<|endoftext|>", "</s>", "<s>",
         "foo_bar", "camelCase", "http://example.com/?q=1", "{}", "!!!", "...", "—", "“quoted”", "\x00", "\x07", "\x7f"]


def random_text(choose):
    parts = []
    while sum(map(len, parts)) < TEXT_CHARACTERS:
        kind = choose.random()
        if kind < 0.55:
            parts.append(choose.choice(WORDS))
            parts.append(" " if choose.random() < 0.6 else "")
        elif kind < 0.75:
            parts.append("".join(chr(choose.randrange(32, 127)) for _ in range(choose.randrange(1, 12))))
        elif kind < 0.9:
            # Any character but the surrogates, which are no text.
            code = choose.randrange(0x80, 0x30000)
            parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "x")
        else:
            parts.append(choose.choice(WORDS) * choose.randrange(2, 30))
    return "".join(parts)


def tokenizer_files():
    seen = {}
    for directory in sorted(MODELS.iterdir()):
        seen.setdefault((directory / "tokenizer.json").read_bytes(), directory / "tokenizer.json")
    files = list(seen.values())
    if SHARED.is_dir():
        files += sorted(SHARED.glob("*/tokenizer.json"))
    return files


@pytest.fixture(scope="module")
def model_with(tmp_path_factory):
    """A model directory that has the given tokenizer.json in place of its own."""
    def make(file):
        directory = tmp_path_factory.mktemp("model")
        for name in ("config.json", "model.safetensors"):
            (directory / name).symlink_to(MODELS / "llama" / name)
        (directory / "tokenizer.json").symlink_to(file)
        if (config := file.parent / "tokenizer_config.json").exists():
            (directory / "tokenizer_config.json").symlink_to(config)
        return directory
    return make


@pytest.mark.parametrize("file", tokenizer_files(), ids=lambda file: file.parent.name)
def test_random_texts(file, model_with):
    oracle = tokenizers.Tokenizer.from_file(str(file))
    oracle.no_truncation()
    oracle.no_padding()
    model = model_with(file)
    choose = random.Random(f"texts {file.parent.name}")
    for _ in range(NUM_TEXTS):
        text = random_text(choose).replace("\x00", "\x01")  # a command line cannot carry a zero byte; standard input is tested below
        for special, flags in ((True, []), (False, ["--no-special"])):
            got = json.loads(millrace("tokenize", model, "--json", *flags, "--text", text).stdout)
            want = oracle.encode(text, add_special_tokens=special).ids
            assert got["ids"] == want, f"{text!r}"
            assert got["decoded"] == oracle.decode(want, skip_special_tokens=False), f"{text!r}"


@pytest.mark.parametrize("file", tokenizer_files(), ids=lambda file: file.parent.name)
def test_random_ids_decode_alike(file, model_with):
    oracle = tokenizers.Tokenizer.from_file(str(file))
    model = model_with(file)
    choose = random.Random(f"ids {file.parent.name}")
    known = sorted(oracle.get_vocab(with_added_tokens=True).values())
    for _ in range(NUM_TEXTS):
        ids = [choose.choice(known) for _ in range(80)]
        got = json.loads(millrace("tokenize", model, "--json", "--decode", "--text", " ".join(map(str, ids))).stdout)
        assert got["decoded"] == oracle.decode(ids, skip_special_tokens=False)


def test_zero_bytes_on_standard_input(model_with):
    file = MODELS / "llama/tokenizer.json"
    text = "a\x00b\x00\x00 c"
    got = json.loads(millrace("tokenize", model_with(file), "--json", input=text).stdout)
    assert got["ids"] == tokenizers.Tokenizer.from_file(str(file)).encode(text).ids


# Parts that no published file above has in every form. A vocabulary trained on uncut text shows every cut that is missing or too much.
PRE_TOKENIZERS = {
    "unicode-scripts": {"type": "UnicodeScripts"},
    "scripts-then-spaces": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "UnicodeScripts"}]},
    "whitespace": {"type": "Whitespace"},
    "whitespace-split": {"type": "WhitespaceSplit"},
    "bert": {"type": "BertPreTokenizer"},
    "delimiter": {"type": "CharDelimiterSplit", "delimiter": "e"},
    "digits-each": {"type": "Digits", "individual_digits": True},
    "digits-together": {"type": "Digits", "individual_digits": False},
    "fixed-length": {"type": "FixedLength", "length": 3},
    **{f"punctuation-{b}": {"type": "Punctuation", "behavior": b}
       for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
    **{f"metaspace-{scheme}-{split}": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
       for scheme in ("always", "first", "never") for split in (True, False)},
    **{f"split-{b}-{invert}": {"type": "Split", "pattern": {"Regex": r"\d+|\s*\p{L}+"}, "behavior": b, "invert": invert}
       for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous") for invert in (False, True)},
}


@pytest.fixture(scope="module")
def uncut_bpe():
    choose = random.Random("uncut")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([random_text(choose).replace("\x00", "\x01") for _ in range(400)], trainer)
    return json.loads(tokenizer.to_str())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer(name, uncut_bpe, model_with, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**uncut_bpe, "pre_tokenizer": PRE_TOKENIZERS[name]}))
    oracle = tokenizers.Tokenizer.from_file(str(file))
    model = model_with(file)
    choose = random.Random(f"pre-tokenizer {name}")
    for _ in range(NUM_TEXTS):
        text = random_text(choose).replace("\x00", "\x01")
        got = json.loads(millrace("tokenize", model, "--json", "--text", text).stdout)
        assert got["ids"] == oracle.encode(text).ids, f"{text!r}"

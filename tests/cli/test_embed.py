"""millrace embed."""
import json

import pytest

from command import ENCODERS, millrace, refusal

GOLDEN = json.loads((ENCODERS / "bert/golden.json").read_text())["results"]
BERT = ENCODERS / "bert"


def lines(*args):
    return [json.loads(line) for line in millrace("embed", *args, "--json").stdout.splitlines()]


def test_texts_of_a_file_in_their_order(tmp_path):
    texts = [text for text in GOLDEN if text["text_pair"] is None and "\n" not in text["text"]]
    file = tmp_path / "texts.txt"
    file.write_text("".join(text["text"] + "\n" for text in texts))
    got = lines(BERT, "--file", file, "--exact")
    assert [item["index"] for item in got] == list(range(len(texts))) and [item["tokens"] for item in got] == [len(text["ids"]) for text in texts]
    for item, text in zip(got, texts):
        assert item["embedding"][:16] == pytest.approx(text["mean_pooled_normalised_first16"], abs=1e-5)
    jsonl = tmp_path / "texts.jsonl"
    jsonl.write_text("".join(json.dumps({"text": text["text"]} if i % 2 else text["text"]) + "\n" for i, text in enumerate(texts)))
    assert lines(BERT, "--file", jsonl, "--exact") == got
    assert [float(x) for x in millrace("embed", BERT, "--text", texts[0]["text"], "--exact").stdout.split()] == got[0]["embedding"]


def test_batches_threads_and_formats_change_no_digit(tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("".join(f"{'word ' * (i % 50)}{i}\n" for i in range(300)))
    want = lines(BERT, "--file", file)
    assert lines(BERT, "--file", file, "--max-num-batched-tokens", 1) == want
    assert lines(BERT, "--file", file, "--threads", 3, "--max-num-batched-tokens", 5000) == want


def test_a_classifier_gives_labels():
    item, = lines(ENCODERS / "distilbert-classify", "--text", "some words")
    assert item["label"] in ("negative", "neutral", "positive") and sum(item["probs"]) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_is_named(tmp_path, llama):
    assert "a decoder that writes text (llama family), expected an encoder" in refusal("embed", llama, "--text", "a")
    assert "no text" in refusal("embed", BERT)
    assert "reads at most 256 (--truncate cuts longer texts)" in refusal("embed", BERT, "--text", "a " * 400)
    assert lines(BERT, "--text", "a " * 400, "--truncate")[0]["tokens"] == 256
    assert "--dimensions: 65" in refusal("embed", BERT, "--text", "a", "--dimensions", 65)
    assert len(lines(BERT, "--text", "a", "--dimensions", 5)[0]["embedding"]) == 5
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"txt": "b"}\n')
    assert "line 2" in refusal("embed", BERT, "--file", broken)

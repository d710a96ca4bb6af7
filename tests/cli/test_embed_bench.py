"""millrace bench embed; bench/embed over a few texts with millrace alone, its corpus and its tables. No other engine is installed or run."""
import json
import subprocess
import sys

import pytest

from command import BINARY, ENCODERS, ROOT, environment, millrace, refusal

sys.path.insert(0, str(ROOT / "bench"))
from peers import corpus, embed_report, embedders  # noqa: E402
from peers.peer import Unavailable  # noqa: E402

BERT = ENCODERS / "bert"


def test_both_orders_are_timed(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(f"{'word ' * (i % 20)}{i}") + "\n" for i in range(70)))
    answer = json.loads(millrace("bench", "embed", BERT, "--file", file, "--batch", 16, "--threads", 2, "--seconds", 0, "--json").stdout)
    tokens = [json.loads(line)["tokens"] for line in millrace("embed", BERT, "--file", file, "--json").stdout.splitlines()]
    assert answer["texts"] == 70 and answer["tokens"] == sum(tokens) and (answer["tokens_shortest"], answer["tokens_longest"]) == (min(tokens), max(tokens))
    for order in ("arrival", "sorted"):
        measured = answer["orders"][order]
        assert measured["tokens_per_second"] > 0 and measured["passes"] == 1 and 0 < measured["tokenize_share"] < 1
    text = millrace("bench", "embed", BERT, "--file", file, "--seconds", 0.2, "--quantization", "int8").stdout
    assert "batches of 32" in text and "arrival" in text and "sorted" in text and "tokens/s" in text


def test_what_cannot_be_timed_is_named(tmp_path, llama):
    file, empty = tmp_path / "texts.txt", tmp_path / "empty.txt"
    file.write_text("a " * 1000 + "\n")
    empty.write_text("")
    assert json.loads(millrace("bench", "embed", BERT, "--file", file, "--seconds", 0, "--json").stdout)["tokens"] == 256  # cut
    assert "holds no text" in refusal("bench", "embed", BERT, "--file", empty)
    assert "expected an encoder" in refusal("bench", "embed", llama, "--file", file)
    assert "--file" in refusal("bench", "embed", BERT)


def compare(*args, status=0):
    done = subprocess.run([sys.executable, ROOT / "bench/embed", "--wait-quiet", "0", "--patience", "0", "--millrace", BINARY, *map(str, args)],
                          capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_rounds_are_kept_and_shown(tmp_path):
    kept = tmp_path / "run.json"
    text = compare(BERT, "--engines", "millrace-f32", "millrace-int8", "--texts", 20, "--batch", 8, "--rounds", 2, "--seconds", 0, "--json", kept).stdout
    run = json.loads(kept.read_text())
    assert set(run["rounds"]) == {"millrace-f32", "millrace-int8"} and all(len(rounds) == 2 for rounds in run["rounds"].values())
    assert all(each["arrival"] > 0 and each["sorted"] > 0 for rounds in run["rounds"].values() for each in rounds)
    for words in ("millrace int8", "20 texts", "in batches of 8", "2 rounds", "bench/embed bert --texts 20 --batch 8 --rounds 2 --seconds 0 --engines millrace-f32 millrace-int8"):
        assert words in text, words
    assert str(tmp_path) not in text and str(ROOT) not in text  # no paths of this machine
    assert compare("--render", "--json", kept).stdout == text


def test_what_cannot_be_compared_is_named(tmp_path):
    assert "invalid choice" in compare("--engines", "nobody", status=2).stderr
    assert "--texts: found 0, expected at least 1" in compare("--texts", 0, status=2).stderr
    assert "is not a directory" in compare(tmp_path / "absent", status=1).stderr
    assert "nothing was measured" in compare(tmp_path, "--engines", "millrace-f32", "--json", tmp_path / "run.json", status=1).stderr


def test_the_corpus_is_the_same_everywhere():
    texts = corpus.texts(512)
    counts = [len(text.replace(".", " .").split()) + 2 for text in texts]
    assert texts == corpus.texts(512) and texts != corpus.texts(512, seed=2) and texts[:100] == corpus.texts(512)[:100]
    assert min(counts) >= corpus.FEWEST_TOKENS and max(counts) <= corpus.MOST_TOKENS and 58 < sum(counts) / 512 < 70
    assert all(text.endswith(".") for text in texts) and counts != sorted(counts)
    vocabulary = {word for text in texts for word in text.replace(".", "").split()}
    assert vocabulary <= set(corpus.WORDS)


def test_cosines():
    assert embed_report.cosines([1, 0, 0, 2], [2, 0, 0, 1], 2) == {"min": 1, "mean": 1}
    assert embed_report.cosines([1, 0, 0, 2], [2, 0, 3, 0], 2) == {"min": 0, "mean": 0.5}
    with pytest.raises(ValueError, match="3 numbers beside 4"):
        embed_report.cosines([1, 2, 3], [1, 2, 3, 4], 2)


def engine(title, precision, **more):
    return {"title": title, "precision": precision, "version": "1", "setting": {}, "swept": {}, **more}


RUN = {"machine": {"cpu": "A CPU", "cpus": 2, "features": ["avx2"], "threads": 2}, "model": "m", "command": "bench/embed m", "batch": 32,
       "corpus": {"texts": 4, "tokens": 400, "tokens_shortest": 50, "tokens_longest": 150},
       "engines": {"millrace-int8": engine("millrace int8", "int8", cosine={"min": 0.9991, "mean": 0.9996}), "onnxruntime-int8": engine("onnxruntime int8", "int8", setting={"compute": "fused-int8"}, swept={"compute": ["fused-int8", "plain-int8"]}),
                   "ctranslate2-f32": engine("CTranslate2 f32", "f32"), "sentence-transformers-f32": {"title": "sentence-transformers f32", "unavailable": "no network"}},
       "rounds": {"millrace-int8": [{"arrival": rate, "sorted": 1100.0, "tokenize_share": {"arrival": 0.02}, "others": 0.0} for rate in (900.0, 1000.0, 1300.0)],
                  "onnxruntime-int8": [{"arrival": 250.0, "sorted": 500.0, "tokenize_share": {}, "others": 0.2}], "ctranslate2-f32": [{"arrival": 100.0, "sorted": 125.0, "tokenize_share": {}, "others": 0.0}]}}


def test_tables_of_a_recorded_run():
    text = embed_report.document(RUN)
    assert "| millrace int8 | 1,000 (900–1,300) | 1,100 (1,100–1,100) | 10 | 2% | 0.999100 | 0.999600 |" in text
    assert "| sentence-transformers f32 | not measured: no network |" in text and "| onnxruntime int8 | 250 | 500 | 2 | – | – | – |" in text
    assert "1 of 5 measurements were disturbed" in text and "20% at most" in text
    assert "| millrace int8 | **4.00** | 10.0 |" in embed_report.ratio_table(RUN, "arrival", "arrival")
    assert "| millrace int8 | **2.00** | 8.00 |" in embed_report.ratio_table(RUN, "arrival", "sorted")
    assert "| onnxruntime int8 | 1 | compute: fused-int8 plain-int8 | compute fused-int8 |" in text
    assert embed_report.ratio_table({**RUN, "rounds": {}}, "arrival", "arrival") is None


def test_engines_and_their_names_agree():
    assert [each.name for each in embedders.all_embedders()] == embedders.NAMES and embedders.REFERENCE in embedders.NAMES
    assert embedders.last_json('noise\n{"a": 1}\nmore\n{"a": 2}\n') == {"a": 2}
    with pytest.raises(Unavailable):
        embedders.last_json("noise")

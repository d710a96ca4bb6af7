"""eval: perplexity, divergence from a reference, files of logits. The judge is the definition, computed here from the logits themselves."""
import json
import math
import random
import re
import shutil
import struct

import pytest

from command import MODELS, ROOT, answer, millrace, refusal

QUALITY = ROOT / "tests/golden/quality"
TEXT = QUALITY / "text.txt"
FAMILIES = sorted(path.name for path in MODELS.iterdir())
NOT_COMPARED = ("seconds", "tokens_per_second", "threads")


def read_f32(path):
    """Our own format: (tokens, bos, windows, [[logits of a row]])."""
    data = path.read_bytes()
    assert data[:8] == b"MRLOGIT1"
    vocab_size, num_tokens, num_windows, bos = struct.unpack_from("<4i", data, 8)
    tokens = struct.unpack_from(f"<{num_tokens}i", data, 24)
    at = 24 + 4 * num_tokens
    windows = [struct.unpack_from("<3i", data, at + 12 * w) for w in range(num_windows)]
    at += 12 * num_windows
    num_rows = sum(count - 1 - first_row for _, count, first_row in windows)
    assert len(data) == at + 4 * vocab_size * num_rows
    return tokens, bos, windows, [struct.unpack_from(f"<{vocab_size}f", data, at + 4 * vocab_size * row) for row in range(num_rows)]


def log_softmax(logits):
    top = max(logits)
    norm = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - norm for logit in logits]


def mean(values):
    return sum(values) / len(values)


def evaluate(model, *args, text=TEXT, **options):
    return answer("eval", model, *(["--text", text] if text else []), *args, **options)


@pytest.fixture(scope="module")
def saved(llama, tmp_path_factory):
    """Exact and fast predictions of the same windows, and what eval said about the fast ones."""
    folder = tmp_path_factory.mktemp("logits")
    evaluate(llama, "--context", 40, "--exact", "--save-logits", folder / "exact")
    said = evaluate(llama, "--context", 40, "--against-exact", "--save-logits", folder / "fast")
    return folder, said


def test_the_numbers_are_their_definitions(saved):
    folder, said = saved
    tokens, _, windows, exact = read_f32(folder / "exact")
    fast = read_f32(folder / "fast")[3]
    assert [w[2] for w in windows] == [20] * len(windows) and len(windows) >= 2
    nll, exact_nll, kl, same, difference = [], [], [], [], 0
    rows = iter(zip(exact, fast, strict=True))
    for begin, count, first_row in windows:
        for row in range(first_row, count - 1):
            reference, model = next(rows)
            p, q, target = log_softmax(reference), log_softmax(model), tokens[begin + row + 1]
            nll.append(-q[target])
            exact_nll.append(-p[target])
            kl.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q)))
            same.append(p.index(max(p)) == q.index(max(q)))
            difference = max(difference, max(abs(a - b) for a, b in zip(reference, model)))
    against = said["against"]
    assert said["num_scored"] == len(nll) and said["num_windows"] == len(windows)
    assert said["perplexity"] == pytest.approx(math.exp(mean(nll)), rel=1e-6)
    assert against["perplexity"] == pytest.approx(math.exp(mean(exact_nll)), rel=1e-6)
    spread = math.sqrt(sum((x - mean(nll)) ** 2 for x in nll) / (len(nll) - 1) / len(nll))
    assert said["perplexity_standard_error"] == pytest.approx(math.exp(mean(nll)) * spread, rel=1e-5)
    assert against["log_perplexity_ratio"]["mean"] == pytest.approx(mean(nll) - mean(exact_nll), abs=1e-6)
    assert against["kl"]["mean"] == pytest.approx(mean(kl), abs=3e-7)
    assert against["kl"]["max"] == pytest.approx(max(kl), abs=3e-7)
    assert 0 < against["kl"]["median"] <= against["kl"]["p99"] <= against["kl"]["max"]
    assert against["top1_agreement"]["share"] == mean(same)
    assert against["max_logit_difference"] == pytest.approx(difference, abs=1e-6) and difference > 0
    assert mean(against["window_kl"]) == pytest.approx(mean(kl), abs=3e-7) and mean(said["window_nll"]) == pytest.approx(mean(nll), abs=1e-6)


def test_saved_logits_are_those_of_the_logits_command(llama, saved):
    tokens, bos, windows, rows = read_f32(saved[0] / "exact")
    begin, count, first_row = windows[1]
    ids = list(tokens[begin:begin + count])
    if bos >= 0:
        ids[0] = bos
    positions = answer("logits", llama, "--exact", "--all-positions", "--ids", " ".join(map(str, ids)))["positions"]
    for row in range(first_row, count - 1):
        logits = rows[count - 1 - first_row + row - first_row]
        assert positions[row]["first16"] == [pytest.approx(logit, rel=1e-6) for logit in logits[:16]]
        assert dict(positions[row]["top20"]) == {i: pytest.approx(logits[i], rel=1e-6) for i in dict(positions[row]["top20"])}


def test_a_file_of_logits_is_the_reference_that_wrote_it(llama, saved, tmp_path):
    folder, said = saved
    from_file = evaluate(llama, "--against", folder / "exact", text=None)
    assert {key: from_file["against"][key] for key in ("kl", "perplexity", "window_kl", "top1_agreement", "max_logit_difference")} == \
           {key: said["against"][key] for key in ("kl", "perplexity", "window_kl", "top1_agreement", "max_logit_difference")}
    assert from_file["perplexity"] == said["perplexity"]
    evaluate(llama, "--context", 40, "--exact", "--save-logits", tmp_path / "16-bit", "--logits-format", "llama.cpp")
    rounded = evaluate(llama, "--against", tmp_path / "16-bit")["against"]
    assert rounded["kl"]["mean"] == pytest.approx(said["against"]["kl"]["mean"], abs=1e-4) and "max_logit_difference" not in rounded
    # No rounding, no difference: the exact path against its own file.
    same = evaluate(llama, "--exact", "--against", folder / "exact")["against"]
    assert same["kl"]["max"] < 1e-12 and same["top1_agreement"]["share"] == 1 and same["max_logit_difference"] == 0


def test_it_reads_what_llama_cpp_wrote(qwen2_gguf):
    """The file is of llama-perplexity b11434 (-c 16 -b 16 --chunks 3 --kl-divergence-base), of the GGUF that the fixture makes."""
    got = evaluate(qwen2_gguf, "--against", QUALITY / "qwen2-bf16.logits", "--exact")
    assert got["num_windows"] == 3 and got["context"] == 16 and got["num_scored"] == 21
    assert got["against"]["kl"]["mean"] < 2e-3 and got["against"]["top1_agreement"]["share"] == 1


def test_threads_change_no_digit(llama):
    one, three = (evaluate(llama, "--context", 64, "--stride", 20, "--against-exact", "--threads", n) for n in (1, 3))
    assert {key: one[key] for key in one if key not in NOT_COMPARED} == {key: three[key] for key in three if key not in NOT_COMPARED}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_evaluated(name):
    got = evaluate(MODELS / name, "--context", 32, "--against-exact", "--max-tokens", 96)
    assert math.isfinite(got["perplexity"]) and got["num_scored"] == 45 and got["num_windows"] == 3
    # The golden of mamba is stored in f32 and has no keys and values: nothing of it is rounded.
    assert (name == "mamba" or 0 < got["against"]["kl"]["mean"]) and got["against"]["kl"]["mean"] < 0.02


def test_a_stride_scores_every_token_once(llama):
    got = evaluate(llama, "--context", 32, "--stride", 8)
    assert got["num_scored"] == got["num_tokens"] - 1 and got["stride"] == 8
    # The more context, the more windows, the same tokens.
    assert evaluate(llama, "--context", 32, "--stride", 31)["num_windows"] < got["num_windows"]
    assert evaluate(llama, "--context", 32, "--stride", 8, "--max-tokens", 50)["num_scored"] == 49


def test_skipped_tokens_leave_the_windows_after_them(llama):
    whole, rest = (evaluate(llama, "--context", 32, "--skip-tokens", skip) for skip in (0, 64))
    assert rest["window_nll"] == whole["window_nll"][2:] and rest["num_tokens"] == whole["num_tokens"] - 64
    assert "text has 0 tokens" in refusal("eval", llama, "--text", TEXT, "--skip-tokens", 100_000)


def test_another_model_as_reference(qwen2_gguf, qwen2_q8_gguf):
    got = evaluate(qwen2_q8_gguf, "--context", 32, "--exact", "--against", qwen2_gguf)["against"]
    assert 0 < got["kl"]["mean"] < 0.01 and "exact path" in got["reference"]
    same = evaluate(qwen2_gguf, "--context", 32, "--against", qwen2_gguf, "--against-path", "fast")["against"]
    assert same["kl"]["max"] < 1e-12 and "fast path" in same["reference"]


def test_the_text_output_says_it_all(llama):
    text = millrace("eval", llama, "--text", TEXT, "--context", 40, "--against-exact").stdout
    assert re.search(r"^perplexity  [\d.]+ \+- [\d.]+$", text, re.M)
    for said in ("windows of 40", "KL divergence", "median", "99 %", "same likeliest", "of a logit", "the exact path of the same model"):
        assert said in text, said
    result = millrace("eval", llama, "--text", TEXT, "--context", 40)
    assert "KL" not in result.stdout and result.stderr == ""  # no bar where there is no terminal


def test_a_special_token_in_the_text_is_text(llama, tmp_path):
    path = tmp_path / "text"
    path.write_text("<|im_end|> " * 30)
    plain = answer("tokenize", llama, "--plain", "--text", path.read_text())["count"]
    assert evaluate(llama, "--context", 32, text=path)["num_tokens"] == plain


@pytest.mark.parametrize("args, named", [
    ([], "--text is missing"), (["--text", "/no/such/file"], "/no/such/file"), (["--text", TEXT, "--context", 3], "--context"), (["--text", TEXT, "--context", 100_000], "at least 100000 are needed"),
    (["--text", TEXT, "--stride", 0], "--stride"), (["--text", TEXT, "--context", 32, "--stride", 33], "stride of 33"), (["--text", TEXT, "--exact", "--against-exact"], "with itself"),
    (["--text", TEXT, "--against", MODELS / "llama", "--against-exact"], "only one"), (["--text", TEXT, "--context", 32, "--stride", 4, "--save-logits", "/dev/null", "--logits-format", "llama.cpp"], "stride"),
    (["--text", TEXT, "--context", 32, "--save-logits", "/no/such/folder/file"], "/no/such/folder/file"), (["--text", TEXT, "--context", 32, "--against", "/no/such/model"], "/no/such/model"),
    (["--context", 32, "--against", QUALITY / "qwen2-bf16.logits"], "windows are fixed")])
def test_what_cannot_be_done_is_named(llama, args, named):
    assert named in refusal("eval", llama, *args)


def test_a_context_longer_than_the_models_is_an_error(copied_llama):
    config = json.loads((copied_llama / "config.json").read_text())
    config["max_position_embeddings"] = 48
    (copied_llama / "config.json").write_text(json.dumps(config))
    assert "model's context of 48" in refusal("eval", copied_llama, "--text", TEXT, "--context", 49)


def test_a_reference_of_something_else_is_an_error(llama, saved, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT.read_text()[::-1])
    assert "another text" in refusal("eval", llama, "--against", saved[0] / "exact", "--text", other)
    with_other_vocabulary = next((name for name in FAMILIES if answer("inspect", MODELS / name)["shapes"]["vocab_size"] != 640), None)
    if with_other_vocabulary:
        assert "vocabulary" in refusal("eval", MODELS / with_other_vocabulary, "--against", saved[0] / "exact")
    assert "overwrite" in refusal("eval", llama, "--against", saved[0] / "exact", "--save-logits", saved[0] / "exact")


def test_invalid_utf8_is_an_error(llama, tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"abc\xff" * 100)
    assert "binary" in refusal("eval", llama, "--text", path, "--context", 32)


@pytest.mark.parametrize("name", ["f32", "llama.cpp"])
def test_a_truncated_or_damaged_file_is_an_error(llama, saved, tmp_path, name):
    whole = saved[0] / "exact"
    if name == "llama.cpp":
        whole = tmp_path / "16-bit"
        evaluate(llama, "--context", 40, "--save-logits", whole, "--logits-format", name)
    data, generator, path = whole.read_bytes(), random.Random(5), tmp_path / "damaged"
    for size in [8, 9, 24, *(generator.randrange(8, len(data)) for _ in range(12)), len(data) - 1]:
        path.write_bytes(data[:size])
        message = refusal("eval", llama, "--against", path)
        assert "damaged" in message and "truncated" in message, size
    path.write_bytes(data + b"more")
    assert "4 bytes after" in refusal("eval", llama, "--against", path)
    shutil.copyfile(whole, path)
    with open(path, "r+b") as file:
        file.seek(len(data) - (640 * 4 if name == "f32" else 8 + 640 * 2))  # the last row's first number
        file.write(struct.pack("<f", math.nan))
    assert "row" in refusal("eval", llama, "--against", path)

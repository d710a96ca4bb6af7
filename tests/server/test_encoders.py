"""/v1/embeddings, /v1/score, /v1/rerank and /classify of encoders, through OpenAI's client and as vLLM's clients send them."""
import base64
import concurrent.futures
import json
import math
import struct

import httpx
import openai
import pytest

from conftest import BINARY, ROOT, Server

ENCODERS = ROOT / "tests/golden/encoders"
GOLDEN = json.loads((ENCODERS / "bert/golden.json").read_text())["results"]
RERANK = json.loads((ENCODERS / "bert-rerank/golden.json").read_text())["results"]
pytestmark = pytest.mark.skipif(not BINARY, reason="MILLRACE_BINARY is not set")


def serving(name):
    @pytest.fixture(scope="module")
    def running():
        server = Server(model=ENCODERS / name)
        yield server
        server.assert_alive()
        server.stop()
        assert server.process.returncode == 0
    return running


bert, reranker, classifier = serving("bert"), serving("bert-rerank"), serving("distilbert-classify")


def post(server, path, status=200, **body):
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def plain(golden):
    return [text for text in golden if text["text_pair"] is None]


def test_embeddings_are_the_references(bert):
    texts = plain(GOLDEN)
    # The client asks for base64 and decodes it by itself.
    answer = bert.client().embeddings.create(model="bert", input=[text["text"] for text in texts])
    assert [item.index for item in answer.data] == list(range(len(texts))) and answer.object == "list"
    for item, text in zip(answer.data, texts):
        assert len(item.embedding) == 64 and math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
        assert item.embedding[:16] == pytest.approx(text["mean_pooled_normalised_first16"], abs=3e-3)
    tokens = sum(len(text["ids"]) for text in texts)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_ids_texts_and_formats_give_the_same_numbers(bert):
    text = GOLDEN[0]
    client = bert.client()
    floats = client.embeddings.create(model="bert", input=text["text"], encoding_format="float").data[0].embedding
    assert client.embeddings.create(model="bert", input=text["ids"], encoding_format="float").data[0].embedding == floats
    several = client.embeddings.create(model="bert", input=[text["ids"], GOLDEN[1]["ids"]], encoding_format="float")
    assert several.data[0].embedding == floats, "in any company"
    packed = base64.b64decode(post(bert, "/v1/embeddings", input=text["text"], encoding_format="base64")["data"][0]["embedding"])
    assert [struct.pack("<f", x) for x in floats] == [packed[i:i + 4] for i in range(0, len(packed), 4)], "the text reads back as the same float"


def test_dimensions_are_the_first_numbers_normalized(bert):
    whole = bert.client().embeddings.create(model="bert", input="Hello", encoding_format="float").data[0].embedding
    short = bert.client().embeddings.create(model="bert", input="Hello", encoding_format="float", dimensions=8).data[0].embedding
    norm = math.hypot(*whole[:8])
    assert short == pytest.approx([x / norm for x in whole[:8]], abs=1e-6)
    error = post(bert, "/v1/embeddings", 400, input="Hello", dimensions=65)
    assert error["param"] == "dimensions" and "at most the 64" in error["message"]


@pytest.mark.parametrize("body, param, words", [
    ({}, "input", "missing"), ({"input": []}, "input", "not empty"), ({"input": [1.5]}, "input[0]", "token id"), ({"input": [[]]}, "input[0]", "at least one"),
    ({"input": ["a", 1]}, "input[1]", "a list of strings"), ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
    ({"input": "a", "dimensions": 0}, "dimensions", "[1,"), ({"input": "a", "temperature": 0}, "temperature", "unrecognized"),
    ({"input": ["a"] * 2049}, "input", "at most 2048"), ({"input": "a " * 400}, "input[0]", "reads at most 256"), ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
    ({"input": "a", "model": "gpt-9"}, "model", "is not served here")])
def test_wrong_fields_are_named(bert, body, param, words):
    error = post(bert, "/v1/embeddings", 404 if "model" in body else 400, **body)
    assert error["param"] == param and words in error["message"], error


def test_an_unknown_token_id_is_named(bert):
    assert "620 is outside the vocabulary" in post(bert, "/v1/embeddings", 400, input=[620])["message"]


def test_long_texts_are_cut_where_asked(bert):
    answer = post(bert, "/v1/embeddings", input="a " * 400, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 256
    assert post(bert, "/v1/embeddings", input="a " * 400, truncate_prompt_tokens=10)["usage"]["prompt_tokens"] == 10


def test_many_clients_at_once_get_what_each_gets_alone(bert):
    texts = [f"{'word ' * (i % 40)}number {i}" for i in range(60)]
    client = bert.client()
    alone = [client.embeddings.create(model="bert", input=text, encoding_format="float").data[0].embedding for text in texts]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda text: client.embeddings.create(model="bert", input=[text, "x"], encoding_format="float").data[0].embedding, texts))
    assert together == alone


def test_a_large_answer_arrives_whole(bert):
    answer = bert.client().embeddings.create(model="bert", input=["some words"] * 2048, encoding_format="float")
    assert len(answer.data) == 2048 and all(item.embedding == answer.data[0].embedding for item in answer.data)


def test_a_client_that_leaves_stops_nothing(bert):
    for _ in range(5):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{bert.url}/v1/embeddings", json={"input": ["a " * 200] * 2000}, timeout=0.3)
    assert post(bert, "/v1/embeddings", input="still here")["data"]
    bert.wait_until_idle(60)


def test_pairs_are_scored_as_the_reference_does(reranker):
    for pair in (text for text in RERANK if text["text_pair"] is not None):
        answer = post(reranker, "/v1/score", text_1=pair["text"], text_2=pair["text_pair"], use_activation=False)
        assert answer["data"][0]["score"] == pytest.approx(pair["logits"][0], abs=0.02)
        assert answer["usage"]["prompt_tokens"] == len(pair["ids"])
        scored = post(reranker, "/score", text_1=pair["text"], text_2=[pair["text_pair"]])["data"][0]
        assert scored["object"] == "score" and scored["score"] == pytest.approx(1 / (1 + math.exp(-pair["logits"][0])), abs=0.01)


def test_rerank_sorts_documents(reranker):
    documents = ["first text", {"text": "a second, longer text about something else"}, "third"]
    whole = post(reranker, "/v1/rerank", query="which?", documents=documents)
    scores = [result["relevance_score"] for result in whole["results"]]
    assert scores == sorted(scores, reverse=True) and sorted(result["index"] for result in whole["results"]) == [0, 1, 2]
    for result in whole["results"]:
        document = documents[result["index"]]
        assert result["document"]["text"] == (document["text"] if isinstance(document, dict) else document)
        alone = post(reranker, "/v1/score", text_1="which?", text_2=result["document"]["text"])["data"][0]["score"]
        assert alone == result["relevance_score"]
    top = post(reranker, "/v2/rerank", query="which?", documents=documents, top_n=1, return_documents=False)["results"]
    assert len(top) == 1 and top[0]["index"] == whole["results"][0]["index"] and "document" not in top[0]


def test_embeddings_score_by_their_cosine(bert):
    answer = post(bert, "/v1/score", text_1=["a", "b"], text_2=["a", "something else"])
    vectors = [item["embedding"] for item in post(bert, "/v1/embeddings", input=["b", "something else"])["data"]]
    assert answer["data"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert answer["data"][1]["score"] == pytest.approx(sum(x * y for x, y in zip(*vectors)), abs=1e-5)
    assert post(bert, "/rerank", query="a", documents=["b", "a"])["results"][0]["index"] == 1
    assert "one on the left or as many" in post(bert, "/v1/score", 400, text_1=["a", "b"], text_2=["a", "b", "c"])["message"]


def test_classes_have_their_labels(classifier):
    answer = post(classifier, "/classify", input=["some text", "another"])
    for i, item in enumerate(answer["data"]):
        assert item["index"] == i and item["num_classes"] == 3 and sum(item["probs"]) == pytest.approx(1, abs=1e-5)
        assert item["label"] == ["negative", "neutral", "positive"][item["probs"].index(max(item["probs"]))]


@pytest.mark.parametrize("path, body", [("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}), ("/v1/completions", {"prompt": "Hi"})])
def test_an_encoder_writes_no_text(bert, path, body):
    error = post(bert, path, 400, **body)
    assert error["code"] == "unsupported_model" and "an encoder that makes embeddings of 64 numbers (bert family)" in error["message"]
    with pytest.raises(openai.BadRequestError, match="an encoder that makes embeddings"):
        bert.client().chat.completions.create(model="bert", messages=[{"role": "user", "content": "Hi"}])


def test_what_the_model_is_not_for_is_named(bert, reranker, classifier):
    assert "expected an encoder that scores texts" in post(bert, "/classify", 400, input="a")["message"]
    assert "scores texts for 1 class (bert family), expected an encoder that makes embeddings" in post(reranker, "/v1/embeddings", 400, input="a")["message"]
    assert "for 3 classes" in post(classifier, "/v1/score", 400, text_1="a", text_2="b")["message"]


def test_a_decoder_makes_no_embeddings(server):
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "a", "documents": ["b"]}), ("/v1/score", {"text_1": "a", "text_2": "b"}), ("/classify", {"input": "a"})):
        error = post(server, path, 400, **body)
        assert error["code"] == "unsupported_model" and "a decoder that writes text (llama family)" in error["message"]


def test_models_health_metrics_and_stats_answer(bert):
    assert bert.models()["max_model_len"] == 256
    assert httpx.get(f"{bert.url}/health").status_code == 200
    before = bert.metrics()["vllm:prompt_tokens_total"]
    post(bert, "/v1/embeddings", input=GOLDEN[0]["ids"])
    assert bert.metrics()["vllm:prompt_tokens_total"] == before + len(GOLDEN[0]["ids"])
    assert httpx.get(f"{bert.url}/v1/engine/stats").json()["max_model_len"] == 256

"""Encoder-decoders over HTTP: the prompt of /v1/completions is the source text, and the answer is not its continuation."""
import concurrent.futures
import json

import httpx
import openai
import pytest

from conftest import BINARY, ROOT, Server

T5 = ROOT / "tests/golden/seq2seq/t5"
GOLDEN = json.loads((T5 / "golden.json").read_text())["results"]
pytestmark = pytest.mark.skipif(not BINARY, reason="MILLRACE_BINARY is not set")


@pytest.fixture(scope="module")
def server():
    server = Server("--exact", model=T5)
    yield server
    server.assert_alive()
    server.stop()
    assert server.process.returncode == 0


def complete(server, status=200, **body):
    response = httpx.post(server.url + "/v1/completions", json={"model": "t5", "temperature": 0, **body}, timeout=60)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_greedy_tokens_are_the_references(server, golden):
    answer = complete(server, prompt=golden["ids"], max_tokens=24, ignore_eos=True, skip_special_tokens=False)
    want = httpx.post(server.url + "/detokenize", json={"tokens": golden["greedy"]}, timeout=60).json()["prompt"]
    assert answer["choices"][0]["text"] == want
    assert answer["usage"] == {**answer["usage"], "prompt_tokens": len(golden["ids"]), "completion_tokens": 24}


def test_a_streamed_answer_is_the_whole_one(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    whole = client.completions.create(model="t5", prompt="Some words to answer", max_tokens=16, temperature=0, extra_body={"ignore_eos": True})
    pieces = client.completions.create(model="t5", prompt="Some words to answer", max_tokens=16, temperature=0, stream=True, extra_body={"ignore_eos": True})
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text != ""


def test_answers_do_not_depend_on_company(server):
    bodies = [{"prompt": golden["ids"], "max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 7, "n": 2} for golden in GOLDEN]
    alone = [complete(server, **body)["choices"] for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda body: complete(server, **body)["choices"], bodies * 3))
    texts = [[choice["text"] for choice in choices] for choices in alone]
    assert [[choice["text"] for choice in choices] for choices in together] == texts * 3


def test_what_does_not_go_together_is_refused_by_name(server):
    assert "do not continue their prompts" in complete(server, status=400, prompt="a", echo=True)["message"]
    assert "reads at most 2048" in complete(server, status=400, prompt=[5] * 2049)["message"]
    assert "at most 2047 tokens" in complete(server, status=400, prompt="a", max_tokens=2048)["message"]
    # Prompt and answer have a context each.
    assert complete(server, prompt=[5] * 2048, max_tokens=2)["usage"]["prompt_tokens"] == 2048

"""What the tests of the command line share.

MILLRACE_BINARY names the executable; without it every test is skipped. MILLRACE_DEMO_MODEL names the demo model's GGUF file, for the
tests of test_demo_model.py. All other tests use the tiny models of tests/golden/models.
"""
import json
import shutil
import struct

import pytest

import tiny_gguf
from command import BINARY, MODELS


def pytest_collection_modifyitems(items):
    if not BINARY:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="MILLRACE_BINARY is not set"))


@pytest.fixture(scope="session")
def llama():
    """A Hugging Face directory with a chat template."""
    return str(MODELS / "llama")


@pytest.fixture(scope="session")
def qwen2_golden():
    return MODELS / "qwen2" / "golden.json"


@pytest.fixture(scope="session")
def qwen2_gguf(tmp_path_factory):
    """The golden qwen2 model as a GGUF file, its matrices as bf16: the same numbers."""
    return tiny_gguf.write(MODELS / "qwen2", tmp_path_factory.mktemp("gguf") / "qwen2-bf16.gguf", "BF16")


@pytest.fixture(scope="session")
def qwen2_q8_gguf(tmp_path_factory):
    return tiny_gguf.write(MODELS / "qwen2", tmp_path_factory.mktemp("gguf") / "qwen2-q8_0.gguf", "Q8_0")


@pytest.fixture
def copied_llama(tmp_path):
    """A copy of the directory that a test may change."""
    copy = tmp_path / "llama"
    shutil.copytree(MODELS / "llama", copy)
    return copy


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory):
    """A model whose greedy answer never ends: the head's row of the end-of-sequence token is zero, and the context is long."""
    copy = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(MODELS / "llama", copy)
    config = json.loads((copy / "config.json").read_text())
    eos, width = config["eos_token_id"], 2 * config["hidden_size"]
    config["max_position_embeddings"] = 100_000
    (copy / "config.json").write_text(json.dumps(config))
    data = bytearray((copy / "model.safetensors").read_bytes())
    header_bytes, = struct.unpack_from("<Q", data)
    head = json.loads(data[8:8 + header_bytes])["lm_head.weight"]
    assert head["dtype"] == "BF16"
    row = 8 + header_bytes + head["data_offsets"][0] + eos * width
    data[row:row + width] = bytes(width)
    (copy / "model.safetensors").write_bytes(data)
    return str(copy)

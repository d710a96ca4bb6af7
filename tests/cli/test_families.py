"""--family: a network that the binary was not built with."""
import json
import shutil

import pytest

from command import MODELS, ROOT, answer, millrace, refusal

OUTSIDE = sorted(path.parent.name for path in (ROOT / "tests/golden/outside").glob("*/millrace_family.json"))


@pytest.fixture
def renamed(tmp_path):
    """The llama golden under an architecture that nobody has heard of, and its family as a file: (directory, family)."""
    copy = tmp_path / "model"
    shutil.copytree(MODELS / "llama", copy)
    config = json.loads((copy / "config.json").read_text()) | {"architectures": ["MarbleForCausalLM"], "model_type": "marble"}
    (copy / "config.json").write_text(json.dumps(config))
    family = json.loads((ROOT / "millrace/model/families/llama.json").read_text()) | {"family": "marble", "architectures": ["MarbleForCausalLM"]}
    return copy, family


def test_an_unknown_architecture_is_an_error_that_names_it(renamed):
    assert "MarbleForCausalLM" in refusal("inspect", renamed[0])


def test_a_family_file_adds_it(renamed, tmp_path):
    directory, family = renamed
    (tmp_path / "marble.json").write_text(json.dumps(family))
    assert answer("inspect", directory, "--family", tmp_path / "marble.json")["family"] == "marble"
    assert answer("verify", directory, "--family", tmp_path / "marble.json", "--reference", MODELS / "llama/golden.json")["passed"]


def test_a_family_file_beside_the_weights_adds_it(renamed):
    directory, family = renamed
    (directory / "millrace_family.json").write_text(json.dumps(family))
    assert answer("verify", directory, "--reference", MODELS / "llama/golden.json")["passed"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_families_that_the_binary_does_not_have(name, tmp_path):
    model = tmp_path / name
    shutil.copytree(ROOT / "tests/golden/outside" / name, model)
    family = (model / "millrace_family.json").rename(tmp_path / "family.json")
    assert "ForCausalLM" in refusal("inspect", model)
    assert answer("verify", model, "--family", family, "--reference", model / "golden.json")["passed"]


@pytest.mark.parametrize("change, named", [
    (lambda f: f.update(colour="green"), "colour"), (lambda f: f.pop("layers"), "layers"), (lambda f: f["head"].update(weight="lm_hat"), "lm_hat"),
    (lambda f: f["layers"][0]["mlp"].update(activation="'sillu'"), "sillu"), (lambda f: f["layers"][0].update(count="num_hidden_layers +"), "num_hidden_layers +")])
def test_a_wrong_family_file_is_an_error_that_names_the_place(renamed, tmp_path, change, named):
    directory, family = renamed
    change(family)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(family))
    message = refusal("inspect", directory, "--family", path)
    assert named in message and "wrong.json" in message


def test_a_family_file_that_is_no_json(renamed, tmp_path):
    (tmp_path / "wrong.json").write_text("{ family")
    assert "wrong.json" in refusal("inspect", renamed[0], "--family", tmp_path / "wrong.json")
    assert "absent.json" in millrace("inspect", renamed[0], "--family", tmp_path / "absent.json", status=2).stderr

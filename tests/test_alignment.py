"""A tower that knows no text gets a projection fitted to the training images, for every step after the first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from lfm.backbones.openclip import image_tower
from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.data.images import open_split
from lfm.jobs.alignment import aligned, first_of_each
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.serving.predictor import Predictor
from lfm.storage.artifact import publishing
from lfm.storage.import_closure import source_hash
from lfm.training.model_artifact import new_model
from lfm.training.task import METHOD, WorkerTask
from lfm.training.worker import train
from tests.photos import PHOTOS

pytestmark = pytest.mark.slow


class Prepared(NamedTuple):
    """What training begins from."""

    config: RunConfig
    dataset: Path
    text: Path
    backbone: Path
    given: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    base = tmp_path_factory.mktemp("aligned")
    for (name, k), data in PHOTOS.items():
        (base / "photos" / name).mkdir(parents=True, exist_ok=True)
        (base / "photos" / name / f"{k}.jpg").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(base / "home"))
        settings = {"data.source": str(base / "photos"), "model.image_size": 32, "train.precision": "fp32"}
        config = load("custom-small", settings | {"stage1.epochs": 0, "stage2.epochs": 0})
        dataset, _ = dataset_for(config.data, config.model, 0)
        given, _ = backbone_for(config.model, 0, config.text)
        text, _ = embeddings_for(config.text, dataset, given)
        backbone, reused = aligned(dataset, text, given)
        assert not reused and aligned(dataset, text, given) == (backbone, True)
        yield Prepared(config, dataset, text, backbone, given)


def test_the_model_begins_as_scikit_learns_ridge_of_its_features(prepared: Prepared) -> None:
    config, dataset, text, backbone, given = prepared
    images = open_split(dataset, "train")
    label_N = images.label_N.numpy()
    with torch.no_grad():
        feature_NF = image_tower(given).get_submodule("trunk")(images.exact(torch.arange(len(images)))).double().numpy()
        cosine_NC = new_model(config, dataset, text, backbone).eval()(images.exact(torch.arange(len(images))))
    text_CD = load_file(text / "text.safetensors")["text_CD"].double().numpy()
    each_N = 1 / (3 * np.bincount(label_N)[label_N])
    ridge = json.loads((backbone / "info.json").read_text())["ridge"]
    oracle = Ridge(alpha=ridge["penalty"]).fit(feature_NF, text_CD[label_N], sample_weight=each_N).predict(feature_NF)
    expected_NC = oracle / np.linalg.norm(oracle, axis=1, keepdims=True) @ text_CD.T
    assert np.abs(cosine_NC.numpy() - expected_NC).max() < 1e-3
    assert (expected_NC.argmax(1) == label_N).mean() > 0.95
    assert ridge["images"] == len(images) and len(ridge["errors"]) == len(ridge["strengths"])


def test_all_but_the_projection_is_the_backbones(prepared: Prepared) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (prepared.given, prepared.backbone))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert before.keys() == after.keys() and changed == {"visual.head.proj.weight", "visual.head.proj.bias"}


def test_what_is_served_answers_as_the_model(prepared: Prepared, tmp_path: Path) -> None:
    config, dataset, text, backbone, _ = prepared
    with publishing(tmp_path / "model", "model", {}) as aside:
        task = WorkerTask(
            config=config, stage=1, alpha=0.5, dataset=dataset, text=text, backbone=backbone, previous=None,
            work=tmp_path / "work", out=aside, processes=1, remote=None, code=source_hash(*METHOD),
        )  # fmt: skip
        train(task, lambda values, epoch: None)
    images = open_split(dataset, "test")
    some = torch.arange(len(images))
    predictor = Predictor(tmp_path / "model", precision="fp32")
    pixels = images.fetch(some).permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        expected_NC = (new_model(config, dataset, text, backbone).eval()(images.exact(some)) / 0.05).softmax(1).numpy()
    assert np.abs(predictor.probabilities(pixels) - expected_NC).max() < 1e-3
    assert predictor.to.size == 32 and "chance" in predictor.not_placed


def test_of_very_many_images_the_first_of_each_class_are_taken() -> None:
    label_N = torch.tensor([0, 0, 1, 0, 2, 1, 0, 1])
    assert first_of_each(label_N, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(label_N, 0).tolist() == [0, 2, 4], "one at least"
    assert first_of_each(label_N, 9).tolist() == list(range(8))

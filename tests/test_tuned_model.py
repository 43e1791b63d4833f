"""A model that keeps only what was tuned: megabytes, the same answers, and where the rest of it is found."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lfm.backbones.assembly import Assembly
from lfm.backbones.model import load_weights
from lfm.config.schema import RunConfig
from lfm.data.artifact import read_info
from lfm.data.images import Images, open_split
from lfm.errors import InputError
from lfm.evaluation.inference import image_features
from lfm.jobs.base import base_of
from lfm.jobs.packaging import served
from lfm.serving.predictor import TEXT_HALF, Predictor
from lfm.storage.artifact import publishing
from lfm.training.model_artifact import model_info, new_model
from tests.small_task import changed, make_task, train

pytestmark = pytest.mark.slow

LIFT = {"tune": "adaptformer", "optimizer": "sgd", "lr": 0.05, "epochs": 2}


@dataclass
class Run:
    """Stage 1 with adapters and a head of classes, its artifact for serving, and where it was made."""

    config: RunConfig
    dataset: Path
    text: Path
    backbone: Path
    model: Path
    folder: Path
    test: Images


@pytest.fixture(scope="module", params=["classes", "text"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    base = tmp_path_factory.mktemp(f"tuned-{request.param}")
    task = changed(changed(make_task(base), "stage1", **LIFT), "model", head=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(base / "home"))
        trained = train(task, base / "trained")
        with publishing(base / "model", "model", {}) as aside:
            for path in trained.task.out.glob("*.*"):
                shutil.copy(path, aside / path.name)
        folder = served(task.config, str(task.dataset), str(task.backbone), str(base / "model"))
        test = open_split(task.dataset, "test")
        yield Run(task.config, task.dataset, task.text, task.backbone, base / "model", folder, test)


def test_it_keeps_what_was_tuned_and_answers_as_the_model_that_trained(run: Run) -> None:
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in run.backbone.rglob("*.safetensors"))
    assert size < whole / 10 and not (run.folder / TEXT_HALF).exists()
    config = run.config
    net = new_model(config, run.dataset, run.text, run.backbone)
    untouched = image_features(net, run.test, config)
    load_weights(net, run.model / "model.safetensors")
    trained = image_features(net, run.test, config)
    assert not torch.allclose(untouched, trained)
    predictor = Predictor(run.folder, precision="fp32")
    x = run.test.exact(torch.arange(len(run.test)))
    with torch.inference_mode():
        assert torch.equal(predictor.encode(x), net.unit(net.image(x)))
    assert torch.equal(predictor.unit_CD, net.unit_CD)


def test_kept_whole_it_needs_no_tower(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = run.config.model.model_copy(update={"keep": "whole"})
    config = run.config.model_copy(update={"model": model})
    net = new_model(config, run.dataset, run.text, run.backbone)
    load_weights(net, run.model / "model.safetensors")
    assembly = Assembly.of(config, len(net.text_CD))
    with publishing(tmp_path / "model", "model", {}) as aside:
        save_file({k: v.contiguous() for k, v in assembly.state(net).items()}, aside / "model.safetensors")
        images = open_split(run.dataset, "train")
        even = [1 / len(net.text_CD)] * len(net.text_CD)
        about = model_info(config, read_info(run.dataset), images, run.backbone, even)
        (aside / "info.json").write_text(json.dumps(about))
    folder = served(config, str(run.dataset), str(run.backbone), str(tmp_path / "model"))
    expected = Predictor(run.folder, precision="fp32")
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "empty"))
    whole = Predictor(folder, precision="fp32")
    x = run.test.exact(torch.arange(len(run.test)))
    assert torch.equal(whole.encode(x), expected.encode(x)) and torch.equal(whole.unit_CD, expected.unit_CD)
    assert torch.equal(whole.classes_of(["red roses"])[2], expected.classes_of(["red roses"])[2])


def test_new_classes_are_placed_by_their_names(run: Run) -> None:
    predictor = Predictor(run.folder, precision="fp32")
    names, _, unit_CD = predictor.classes_of(["red_roses"])
    own = read_info(run.dataset)["classes"].index("red rose")
    assert names[-1] == "red_roses" and torch.allclose(unit_CD.norm(dim=1), torch.ones(4), atol=1e-5)
    if predictor.model.rows_CF is None:
        assert (unit_CD[-1] @ unit_CD[own]) > 0.5
    pixels = np.stack([predictor.fit(np.zeros((70, 80, 3), np.uint8))])
    assert len(predictor.answers(predictor.features(pixels), 4, ["red_roses"])[0]) == 4


def test_without_its_tower_it_says_what_is_missing_and_fetches_it_where_it_can(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"keeps only what was tuned, and .* has not the tower .*tower\.json with"):
        Predictor(run.folder)
    found = base_of(run.folder)
    assert found and found.is_relative_to(tmp_path)
    assert torch.equal(Predictor(run.folder, precision="fp32").unit_CD, Predictor(run.folder, backbone=found).unit_CD)
    aside = tmp_path / "other"
    shutil.copytree(run.folder, aside)
    info = json.loads((aside / "info.json").read_text())
    info["base"]["content"] = "0" * 64
    (aside / "info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"tuned from .* of content 000000000000; what is found under that name here"):
        base_of(aside)

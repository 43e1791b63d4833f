"""A plain folder that grows: its made test split stays fair to the champion, so that the gate may promote."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfm.config.presets import load
from lfm.jobs.champion import unseen_images
from lfm.pipelines.local_run import Result, run_retraining
from lfm.storage.handover import resolve
from lfm.tracking import registry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]
PRESET = "custom-scratch"
COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 60), "bird": (40, 60, 210)}
SETTINGS = {
    "model.image_size": 16, "stage1.epochs": 1, "stage2.epochs": 0, "train.validate_every": 0, "train.device": "cpu",
}  # fmt: skip


def put(root: Path, images: range) -> None:
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in images:
            noise = np.random.default_rng([k, len(name), colour[0]]).integers(-40, 40, (16, 16, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:03d}.png")


def night(root: Path, epochs: int) -> Result:
    return run_retraining(load(PRESET, SETTINGS | {"data.source": str(root), "stage1.epochs": epochs}))


def dataset_of(result: Result) -> str:
    (pointer,) = result.folder.rglob("dataset/pointer.json")
    return resolve(str(pointer.parent), "prepare")


def test_the_gate_compares_although_the_test_split_has_grown(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "photos"
    put(root, range(20))
    first = night(root, 1)
    assert first.outcome == "champion"
    champion = registry.with_alias(PRESET, "champion")
    assert champion and champion.tags["lfm.test_share"] == "0.2"
    put(root, range(20, 60))
    second = night(root, 2)
    tests = [champion.tags["lfm.test_images"]]
    newest = registry.version_of(PRESET, second.model_uri.rpartition("/")[2])
    assert newest.tags["lfm.test_images"] not in tests, "test images have come"
    assert "noise" in newest.tags["lfm.decision"], "the gate has decided: both outcomes are fair"
    # By an oracle of the bytes: the champion has trained on none of the test images of now.
    dataset = dataset_of(second)
    assert unseen_images(dataset, 0.2).all() and len(unseen_images(dataset, 0.2)) > 15
    lowest = {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.png")}
    assert sum(int(digest[:13], 16) < 0.2 * 16**13 for digest in lowest) >= len(unseen_images(dataset, 0.2))


def test_a_class_of_one_image_is_trained_without_a_score(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "photos"
    put(root, range(20))
    (root / "owl").mkdir()
    Image.new("RGB", (16, 16), (200, 180, 40)).save(root / "owl" / "0.png")
    values = SETTINGS | {"data.source": str(root), "data.without_test": "keep"}
    found = run_retraining(load(PRESET, values))
    scores = json.loads((found.metrics / "metrics.json").read_text())["test"]
    assert scores["classes"] == ["bird", "cat", "dog", "owl"] and scores["counts"][3] == 1
    assert scores["per_class"][3] is None and None not in scores["per_class"][:3]
    assert (found.metrics / "report.html").is_file()

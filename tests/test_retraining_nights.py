"""Ten nights of the scheduled job on data that grow, shrink, gain and lose a class: page, gate and registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from lfm.config.presets import load
from lfm.pipelines.local_run import Result, run_local, run_retraining
from lfm.tracking import registry
from tests.reader import Reader

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]
PRESET = "custom-scratch"
COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 60), "bird": (40, 60, 210), "horse": (200, 180, 40)}
TINY = {
    "model.image_size": 16, "stage1.epochs": 1, "stage2.epochs": 1, "train.validate_every": 0,
    "shots.many": 30, "shots.few": 14, "train.device": "cpu",
}  # fmt: skip


class Photos:
    """A folder with its own test split, whose classes can be given any images."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, split: str, name: str, numbers: range) -> None:
        """Exactly these images of a class; none takes the class away."""
        folder = self.root / split / name
        for path in folder.glob("*.png"):
            path.unlink()
        if not numbers:
            return folder.rmdir()
        folder.mkdir(parents=True, exist_ok=True)
        for k in numbers:
            rng = np.random.default_rng([k, len(name), split == "test"])
            pixels = np.array(COLOURS[name]) + rng.integers(-40, 40, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k:03d}.png")


class Nights:
    """The job night after night, and what MLflow knows after each."""

    def __init__(self, home: Path, photos: Photos) -> None:
        self.home, self.photos = home, photos
        self.changes = {**TINY, "data.source": str(photos.root)}

    def night(self, **more: Any) -> tuple[Result, Any, set[str]]:
        """Retrain; the result, the run in MLflow, and the names in the page's table of scores."""
        changes = self.changes | {name.replace("__", "."): value for name, value in more.items()}
        result = run_retraining(load(PRESET, changes))
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(PRESET).experiment_id
        run = client.search_runs([experiment], "tags.`lfm.pipeline_run` LIKE '%'", max_results=1)[0]
        assert run.info.status == "FINISHED"
        assert run.data.tags["lfm.outcome"] in ("champion", "challenger", "unchanged")
        if result.news == "unchanged":
            return result, run, set()
        scores = json.loads((result.metrics / "metrics.json").read_text())
        assert scores["test_images"] == run.data.tags["lfm.test_images"]
        assert run.data.metrics["test/all"] == pytest.approx(scores["test"]["all"])
        page = Reader((result.metrics / "report.html").read_text())
        names = {row[0] for row in page.tables[0][1:]}
        images = sum(len(list(folder.iterdir())) for folder in (self.photos.root / "test").iterdir())
        assert f"on {images:,} test images" in " ".join(" ".join(page.texts["p"].split()).split())
        version = registry.version_of(PRESET, result.model_uri.rpartition("/")[2])
        assert version.aliases == (result.outcome,) and version.tags["lfm.decision"]
        for tag in ("lfm.dataset", "lfm.train_images", "lfm.test_images"):
            assert version.tags[tag] == run.data.tags[tag]
        return result, run, names

    def aliases(self) -> dict[str, str]:
        found = {alias: version.number for version in registry.versions(PRESET) for alias in version.aliases}
        return found

    def reason(self) -> str:
        """Why the newest challenger is none."""
        version = registry.with_alias(PRESET, "challenger")
        assert version
        return version.tags["lfm.decision"]


@pytest.fixture
def nights(home: Path, tmp_path: Path) -> Nights:
    """Three classes, and what `lfm run --baseline` has made of them."""
    photos = Photos(tmp_path / "photos")
    for name, count in (("cat", 40), ("dog", 20), ("bird", 12)):
        photos.put("train", name, range(count))
        photos.put("test", name, range(20))
    nights = Nights(home, photos)
    for changes in ({"mixup.name": "none", "loss.name": "ce"}, {}):
        run_local(load(PRESET, nights.changes | changes))
    return nights


def test_ten_nights_of_data_that_grow_shrink_gain_and_lose_a_class(nights: Nights) -> None:
    photos = nights.photos
    # 1: there is no champion yet. The baseline of the same images stands beside the run.
    first, _, names = nights.night()
    champion = first.model_uri.rpartition("/")[2]
    assert (first.news, first.outcome) == ("changed", "champion") and "ce" in names
    # 2: nothing is new.
    assert nights.night()[0].news == "unchanged"
    # 3: a class is gained, with 15 test images. The champion knows other classes, the baseline answered other images.
    photos.put("train", "horse", range(16))
    photos.put("test", "horse", range(15))
    gained, run, names = nights.night()
    assert gained.outcome == "challenger" and "ce" not in names
    assert "knows other classes" in nights.reason() and nights.aliases()["champion"] == champion
    # 4: tried once, not every night.
    assert nights.night()[0].news == "unchanged"
    # 5: it is promoted by hand; then training images come, and the test images stay: the two are compared in pairs.
    champion = gained.model_uri.rpartition("/")[2]
    registry.promote(PRESET, champion, "by hand")
    photos.put("train", "bird", range(18))
    grown, compared, names = nights.night(stage1__epochs=2)
    assert compared.data.tags["lfm.test_images"] == run.data.tags["lfm.test_images"]
    assert {"gate/all_gain", "gate/all_low", "champion/all"} <= compared.data.metrics.keys()
    assert "ce" not in names
    before = nights.aliases()["champion"]
    assert before == (grown.model_uri.rpartition("/")[2] if grown.outcome == "champion" else champion)
    # 6: test images come: the champion is scored on them, but may have trained on some.
    photos.put("test", "cat", range(25))
    other_test, run, _ = nights.night()
    assert other_test.outcome == "challenger" and "the test images are not those of champion" in nights.reason()
    assert "champion/all" in run.data.metrics and "gate/all_gain" not in run.data.metrics
    # 7: as many others in the place of some.
    photos.put("test", "cat", range(5, 30))
    replaced, again, _ = nights.night()
    assert again.data.tags["lfm.test_images"] != run.data.tags["lfm.test_images"]
    assert replaced.outcome == "challenger" and "the test images are not those" in nights.reason()
    # 8: a class is lost.
    photos.put("train", "dog", range(0))
    photos.put("test", "dog", range(0))
    lost, _, _ = nights.night()
    assert lost.outcome == "challenger" and "knows other classes" in nights.reason()
    # 9: and training images of another.
    photos.put("train", "cat", range(30))
    shrunk, _, _ = nights.night()
    assert shrunk.outcome == "challenger"
    # 10: all is as it was when the champion was trained.
    photos.put("train", "cat", range(40))
    for split, count in (("train", 20), ("test", 20)):
        photos.put(split, "dog", range(count))
    photos.put("test", "cat", range(20))
    if before == champion:
        photos.put("train", "bird", range(12))
    assert nights.night()[0].news == "unchanged"
    assert nights.aliases()["champion"] == before, "no night took the champion's place without a comparison"

"""One registered name for two data sets: the champion of the other is named before training and never compared."""

import re
from pathlib import Path

import numpy as np
import pytest

from lfm.config.presets import load
from lfm.data.table import open_table
from lfm.jobs import champion, prepare
from lfm.jobs.retrain import _compared
from lfm.jobs.scoring import CHAMPION_PREDICTIONS
from lfm.jobs.training_inputs import tell_other_data
from lfm.tracking import registry
from lfm.tracking.client import connect
from tests.pictures import encoded, photo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]
CLASSES = ("cat", "dog")


def dataset_of(root: Path, seeds: range) -> str:
    """The artifact of a folder with photos of these seeds for each class; those that are there stay."""
    for k, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (root / name / f"{seed}.png").write_bytes(encoded(photo(1000 * k + seed, 12, 12)))
    config = load("custom-scratch", {"data.source": str(root), "model.image_size": 0})
    return str(prepare.dataset_for(config.data, config.model, config.seed)[0])


def register(dataset: str) -> registry.Version:
    """Make a version trained on these data champion, as the steps register and evaluate leave it."""
    client = connect()
    if not registry.versions("custom-scratch"):
        client.create_registered_model("custom-scratch")
    tags = champion.data_tags(dataset) | {registry.INPUT: champion.input_of(dataset)}
    number = str(client.create_model_version("custom-scratch", "file:///nowhere", tags=tags).version)
    registry.promote("custom-scratch", number, "a test")
    return registry.version_of("custom-scratch", number)


def test_a_champion_of_other_data_is_named_and_not_compared(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = dataset_of(tmp_path / "first", range(20))
    version = register(first)
    other = dataset_of(tmp_path / "other", range(500, 520))
    assert champion.input_of(first) == champion.input_of(other), "by its form alone it could be scored"
    capsys.readouterr()
    tell_other_data("custom-scratch", other)
    said = capsys.readouterr().out
    words = "champion 1 of custom-scratch was trained on other data: of 32 of its images none is here"
    assert f"warning: {words}. Models of the two are not compared" in said and said.count("\n") == 1
    assert champion.present_champion("custom-scratch", other) is None
    (metrics := tmp_path / "metrics").mkdir()
    np.save(metrics / CHAMPION_PREDICTIONS, np.zeros(8, np.int64))
    promoted, why = _compared(version, other, metrics, None)
    assert not promoted and why == f"{words}, so the two are not compared; decide with lfm promote"


def test_data_that_grow_shrink_or_move_are_the_same_data(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = register(dataset_of(tmp_path / "photos", range(20)))
    grown = dataset_of(tmp_path / "photos", range(20, 60))
    moved = dataset_of(tmp_path / "elsewhere", range(20))
    shrunk = dataset_of(tmp_path / "few", range(10, 20))
    for dataset in (grown, moved, shrunk):
        assert not champion.other_data(version, dataset)
        capsys.readouterr()
        tell_other_data("custom-scratch", dataset)
        assert capsys.readouterr().out == ""
        assert champion.present_champion("custom-scratch", dataset)


def test_a_version_from_before_samples_were_kept_counts_as_these_data(home: Path, tmp_path: Path) -> None:
    version = register(dataset_of(tmp_path / "first", range(20)))
    version.tags.pop(registry.SAMPLE)
    assert not champion.other_data(version, dataset_of(tmp_path / "other", range(500, 520)))


def test_the_sample_is_of_the_images(home: Path, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", range(20))
    sample = champion.image_sample(dataset).split(" ")
    shas = [sha for split in ("train", "val", "test") for sha in open_table(Path(dataset), split).column("sha256")]
    assert len(sample) == 32 and all(re.fullmatch("[0-9a-f]{12}", one) for one in sample)
    assert sample == sorted({sha[:12] for sha in shas})[:32]

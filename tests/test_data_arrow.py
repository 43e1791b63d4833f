"""The Arrow files of a data set: read by others, found over shards, built in spite of kills."""

import signal
import subprocess
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.data.table import open_table
from tests import warm
from tests.conftest import read_fashion
from tests.data_cases import AS_IS, files, made
from tests.pictures import encoded, photo

# --- the Arrow files ---


def test_hugging_face_datasets_opens_the_artifact_with_images_and_class_names(
    small_fashion: Path, tmp_path: Path
) -> None:
    arrays = read_fashion(small_fashion)
    folder = made(tmp_path / "data", arrays.source(), DataConfig(name="fashion-mnist", profile="as-is"))
    found = datasets.load_from_disk(str(folder))
    assert set(found) == {"train", "val", "test"} and found["train"].num_rows == 600
    assert isinstance(found["train"].features["image"], datasets.Image)
    assert found["train"].features["label"].names == list(CLASSES)
    for k in (0, 311, 599):
        row = found["train"][k]
        assert np.array_equal(np.asarray(row["image"]), arrays.train_images[k])
        assert row["label"] == arrays.train_labels[k] and (row["width"], row["height"], row["mode"]) == (28, 28, "L")
    assert found["test"].filter(lambda row: row["label"] == 9).num_rows == 10


def test_encoded_bytes_are_kept_as_they_were_and_found_over_shards_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfm.data.table.SHARD", 7)
    monkeypatch.setattr("lfm.data.table.BATCH_BYTES", 3000)
    data = [encoded(photo(k, 24, 24), "jpeg" if k % 2 else "png") for k in range(40)]
    source = files(tmp_path / "raw", data)
    folder = made(tmp_path / "data", source, AS_IS)
    table = open_table(folder, "train")
    assert len(table.batches) > 6 and len(table) == 38
    for i in range(38):
        assert bytes(table.encoded(i)) == data[i + 2] and table.name(i) == f"{i + 2:05d}.img"
    assert table.column("label").tolist() == [k % 2 for k in range(2, 40)]
    assert len(list((folder / "train").glob("data-*-of-00006.arrow"))) == 6
    with pa.memory_map(str(folder / "train" / "data-00005-of-00006.arrow")) as file:
        assert len(pa.ipc.open_stream(file).read_all()) == 3


@pytest.mark.slow
def test_a_build_killed_at_any_moment_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    data = [encoded(photo(k, 400, 300), "jpeg") for k in range(120)]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        files(tmp_path / name / "raw", data)
    command = warm.program("build_data.py")
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    work, kills = tmp_path / "killed" / "work", 0
    for stage in ("train-00003.arrow", "train-00009.arrow", "train_images.npy.done"):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (work / stage).exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    before = {p.name: p.stat().st_mtime_ns for p in work.glob("train-0000[0-3].arrow")}
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, timeout=120)
    assert before and all((work / name).stat().st_mtime_ns == at for name, at in before.items()), "kept, not redone"
    for path in (tmp_path / "whole" / "data").rglob("*"):
        if path.is_file():
            other = tmp_path / "killed" / "data" / path.relative_to(tmp_path / "whole" / "data")
            assert other.read_bytes() == path.read_bytes(), path

"""Every kind of source through the whole pipeline, with a small open_clip model of random weights."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import datasets
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from lfm.data.sources.cifar_files import CIFAR10
from lfm.storage.artifact import verify
from tests.cifar_archives import layout, members, small, write_archive
from tests.photos import COLOURS, COUNTS, PHOTOS, TOWER
from tests.s3 import S3
from tests.warm import lfm

# At the alpha that `auto` finds, a class keeps half of its own label, and six test images are a toss of coins.
TRAINING = (
    "stage1.epochs=6", "stage1.lr=1e-3", "stage1.alpha=0.5", "stage2.epochs=2", "stage2.alpha=0.5",
    "loss.temperature=0.05", "train.precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own-data")


@pytest.fixture(scope="module")
def tower(home: Path) -> Path:
    path = home / "small-vit.json"
    path.write_text(json.dumps(TOWER))
    return path


def run(home: Path, tower: Path, preset: str, *changes: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sets = [part for change in (f"model.tower={tower}", "model.weights=random", *changes) for part in ("--set", change)]
    command = [*lfm(), "run", preset, "--home", str(home), "--json", str(home / "result.json"), *sets]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **environment})


def image_tree(home: Path) -> str:
    root = home / "photos"
    for (name, k), data in PHOTOS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{k:03d}.JPEG").write_bytes(data)
    return str(root)


@pytest.fixture(scope="module")
def tree(home: Path, tower: Path) -> subprocess.CompletedProcess[str]:
    return run(home, tower, "custom", f"data.source={image_tree(home)}", *TRAINING)


def scores(home: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((home / "result.json").read_text())["methods"]
    return found


@pytest.mark.slow
def test_a_folder_of_photos_becomes_a_registered_model(home: Path, tree: subprocess.CompletedProcess[str]) -> None:
    assert tree.returncode == 0, tree.stdout + tree.stderr
    assert "has no test split" in tree.stdout and "(2 a class)" in tree.stdout
    assert "9 more images of larger classes are neither trained on nor scored" in tree.stdout
    assert "warning: 2 test images a class make coarse scores" in tree.stdout
    found = scores(home)
    assert list(found) == ["untrained", "lfm"] and found["lfm"]["all"] == 100
    assert "no adjusted row: 0 validation images are in no other split, fewer than 50; data.val_per" in tree.stdout
    (data,) = (path for path in (home / "store" / "dataset").iterdir() if path.is_dir())
    info = json.loads((data / "info.json").read_text())
    assert info["classes"] == ["blue sea", "green leaf", "red rose"] and info["counts"] == [10, 21, 30]
    assert (info["pixels"], info["preprocess"]["size"]) == ("fitted", 64)
    models = [path for path in (home / "store" / "model").iterdir() if path.is_dir()]
    assert {verify(path)["made_by"]["stage"] for path in models} == {1, 2}


@pytest.mark.slow
@pytest.mark.usefixtures("tree")
def test_the_registered_model_takes_images_of_any_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/custom/1")
    for size in ((64, 64), (50, 200)):
        images = [np.full((*size, 3), COLOURS[name], np.uint8) for name in COLOURS]
        answer = model.predict(pd.DataFrame({"image": images}), params={"top": 4, "new_classes": ["grey stone"]})
        assert [top[0]["label"] for top in answer.top.map(seen)] == ["red rose", "green leaf", "blue sea"]
        assert all([c["label"] for c in top if c["zero_shot"]] == ["grey stone"] for top in answer.top)
    weights = MlflowClient(uri).search_runs(["1"], "tags.`lfm.weights` != ''")[0].data.tags["lfm.weights"]
    assert weights.endswith("small-vit.json random")


def seen(top: list[dict[str, object]]) -> list[dict[str, object]]:
    """Classes of training among those of an answer."""
    return [one for one in top if not one["zero_shot"]]


@pytest.fixture
def csv_in_s3(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3.use(monkeypatch)
    s3.client().create_bucket(Bucket="photos")
    rows = ["path,label"]
    for (name, k), data in sorted(PHOTOS.items()):  # the order of the folder
        s3.client().put_object(Bucket="photos", Key=f"{name}/{k:03d}.JPEG", Body=data)
        rows.append(f"s3://photos/{name}/{k:03d}.JPEG,{name.replace('_', ' ')}")
    s3.client().put_object(Bucket="photos", Key="list.csv", Body="\n".join(rows).encode())
    yield "s3://photos/list.csv"


@pytest.mark.slow
@pytest.mark.usefixtures("tree")
def test_the_same_photos_listed_in_s3_give_the_same_data_and_nothing_is_trained_again(
    home: Path, tower: Path, csv_in_s3: str
) -> None:
    before = scores(home)
    done = run(home, tower, "custom", f"data.source={csv_in_s3}", *TRAINING)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("backbone", "text embeddings", "stage 1", "stage 2"):
        assert f"{step}: unchanged, reused" in done.stdout, step
    assert scores(home) == before
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in "".join(
        path.read_text(errors="ignore") for path in home.rglob("*") if path.suffix in (".json", ".txt", ".yaml", ".db")
    )


@pytest.mark.slow
@pytest.mark.usefixtures("tree")
def test_an_arrow_data_set_as_hugging_face_saves_it(home: Path, tower: Path) -> None:
    names = sorted(COUNTS)
    splits = {}
    for split, chosen in (("train", range(2, 40)), ("test", range(2))):
        rows = [(name, k) for name in names for k in chosen if (name, k) in PHOTOS]
        splits[split] = datasets.Dataset.from_dict(
            {
                "photo": [{"bytes": PHOTOS[row], "path": None} for row in rows],
                "kind": [names.index(name) for name, _ in rows],
            },
            features=datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=names)}),
        )
    datasets.DatasetDict(splits).save_to_disk(home / "arrow")
    # Every image is decoded while training, at no size known before.
    done = run(home, tower, "custom", f"data.source={home / 'arrow'}", "data.decode=each-time", *TRAINING)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "70 train, 0 val, 6 test" in done.stdout and scores(home)["lfm"]["all"] == 100


@pytest.mark.slow
def test_zero_shot_is_a_method_without_training(home: Path, tower: Path) -> None:
    (home / "binary").mkdir()
    at = layout(CIFAR10, "binary")
    write_archive(home / "binary" / at.archive, at.folder, members(CIFAR10, "binary", *small(CIFAR10)))
    done = run(
        home, tower, "cifar10-lt", f"data.source={home / 'binary'}", "data.verify=false", "data.imbalance=4",
        "stage1.epochs=0", "stage2.epochs=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cifar10-lt: zero-shot, seed 0" in done.stdout
    result = scores(home)
    assert result["zero-shot"] == result["untrained"], "the model after no training is the one before"
    rows = re.findall(r"^(untrained|zero-shot) +(.*)$", done.stdout.split("Top-1")[1], re.MULTILINE)
    assert len(rows) == 2 and rows[0][1] == rows[1][1]


@pytest.mark.slow
@pytest.mark.usefixtures("tree")
def test_what_cannot_work_is_refused_before_any_step(home: Path, tower: Path) -> None:
    for changes, message in {
        ("model.tower=ViT-B-33",): "unknown .*ViT-B-33.*did you mean ViT-B-32",
        ("model.tower=ViT-B/32", "model.weights=opnai"): "opnai",
        ("model.tower=conv4",): "conv4 has no text tower; set text.encoder=minilm",
        ("model.image_size=64",): "model.image_size is for conv4",
        ("data.name=cifar11",): "unknown data set 'cifar11'; did you mean cifar10",
    }.items():
        done = run(home, tower, "custom", f"data.source={home}", *changes)
        assert done.returncode == 2 and re.fullmatch(rf"error: .*{message}.*\n", done.stderr), done.stderr
        assert "[1/1]" not in done.stdout


@pytest.mark.slow
def test_a_tower_with_random_weights_is_drawn_with_the_dimensions_of_the_text(home: Path, tower: Path) -> None:
    done = run(home, tower, "custom", f"data.source={image_tree(home)}", "text.encoder=minilm")
    assert done.returncode == 0 and "registered as models:/custom/" in done.stdout, done.stdout + done.stderr

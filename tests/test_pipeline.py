"""The pipeline for real: kfp.local, MLflow on SQLite, the registered model."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from lfm.cli.run import _write_json
from lfm.config.overrides import flatten
from lfm.config.presets import load
from lfm.storage.artifact import verify
from lfm.storage.handover import POINTER
from tests import warm

ROOT = Path(__file__).parent.parent
SMALL = ["data.max_per_class=60", "data.imbalance=10", "stage1.epochs=2", "stage2.epochs=1", "shots.many=30"]


def command(
    home: Path, *changes: str, before: tuple[str, ...] = (), after: tuple[str, ...] = (), lfm: tuple[str, ...] = ()
) -> list[str]:
    sets = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return [*(lfm or warm.lfm()), *before, "run", "fashion-mnist-lt", "--home", str(home), *sets, *after]


@pytest.fixture(scope="module")
def home(home_with_data: Path) -> Path:
    return home_with_data


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    table = ("--baseline", "--json", str(home / "demo.json"))
    whole = command(home, after=table, lfm=(str(warm.INSTALLED),))  # the way of a user, imports and all
    return subprocess.run(whole, capture_output=True, text=True, timeout=600)


def client(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def parents(home: Path) -> list[Run]:
    api = client(home)
    runs = api.search_runs([api.get_experiment_by_name("fashion-mnist-lt").experiment_id], order_by=["start_time"])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


@pytest.mark.slow
def test_one_command_trains_both_methods_and_shows_them_side_by_side(
    home: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads((home / "demo.json").read_text())
    assert list(found["methods"]) == ["untrained", "ce", "ce, adjusted", "lfm", "lfm, adjusted"]
    for name, scores in found["methods"].items():
        shown = name.replace("lfm", "lfm + ce") + (
            f" (strength {scores['strength']:g})" if "strength" in scores else ""
        )
        row = "".join(f"{scores[k]:9.1f}" for k in ("many", "medium", "few", "all"))
        assert re.search(rf"^{re.escape(shown)} +{row.strip()}$", first.stdout.split("Top-1")[1], re.MULTILINE)
    assert found["model_uri"] == "models:/fashion-mnist-lt/1" and found["model_uri"] in first.stdout
    assert len(client(home).search_model_versions("name = 'fashion-mnist-lt'")) == 1, "the baseline is no version of it"
    ce, lfm_ = parents(home)[:2]
    for run, name in ((ce, "ce, seed 0"), (lfm_, r"lfm \+ ce, seed 0")):
        assert re.search(rf"^Run +{run.info.run_id}  {name}$", first.stdout, re.MULTILINE)
    assert found["methods"]["ce"]["all"] > found["methods"]["untrained"]["all"] + 10
    for part in ("stage 1", "100%", "own-label mass", "Registered model", "make ui"):
        assert part in first.stdout
    assert "text embeddings: unchanged, reused" in first.stdout  # the second method takes the first one's
    assert "Traceback" not in first.stdout + first.stderr
    kept = {path: path.stat().st_size for path in (home / "pipelines").rglob("*") if path.is_file()}
    small = sum(size for path, size in kept.items() if "evaluate" not in path.parts)
    assert {path.name for path in kept if path.parent.name in ("dataset", "embeddings", "backbone", "model")} == {
        POINTER
    }
    assert small < 300_000 < sum(p.stat().st_size for p in (home / "store" / "dataset").rglob("*.npy")), "no copies"


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_mlflow_has_a_parent_with_everything_and_a_child_for_each_step(home: Path) -> None:
    api = client(home)
    runs = parents(home)[:2]
    assert [run.info.run_name for run in runs] == ["ce, seed 0", "lfm + ce, seed 0"]
    scores = json.loads((home / "demo.json").read_text())["methods"]
    for run, method in zip(runs, ("ce", "lfm"), strict=True):
        assert run.info.status == "FINISHED"
        for group in ("all", "many", "medium", "few"):
            assert run.data.metrics[f"test/{group}"] == pytest.approx(scores[method][group])
            assert run.data.metrics[f"adjusted/{group}"] == pytest.approx(scores[f"{method}, adjusted"][group])
        assert run.data.metrics["adjusted/strength"] == scores[f"{method}, adjusted"]["strength"]
        curve = api.get_metric_history(run.info.run_id, "stage1/loss")
        assert [point.step for point in curve] == [1, 2]
        names = {item.path for item in api.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "report.html", "metrics.json"} <= names
        for tag in ("data", "split", "shots", "weights", "seed", "commit", "dataset", "train_images", "test_images"):
            assert run.data.tags[f"lfm.{tag}"]
        children = api.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", order_by=["start_time"]
        )
        ran = [child.info.run_name for child in children]
        assert ran[:4] == ["configure", "fetch backbone", "prepare data", "embed text"], "parts of one step"
        registered = ["register"] if method == "lfm" else []
        assert ran[4:] == ["stage 1", "stage 2", "evaluate", *registered]
        assert ("lfm.model" in run.data.tags) == bool(registered)
        assert {child.info.status for child in children} == {"FINISHED"}
    changed = {
        "data.max_per_class": 60, "data.imbalance": 10, "stage1.epochs": 2, "stage2.epochs": 1, "shots.many": 30
    }  # fmt: skip
    config = load("fashion-mnist-lt", changed)
    assert {k: v for k, v in runs[1].data.params.items() if k in flatten(config)} == {
        k: str(v) for k, v in flatten(config).items()
    }
    kept = yaml.safe_load(Path(api.download_artifacts(runs[1].info.run_id, "config.yaml")).read_text())
    assert kept == config.model_dump(mode="json")


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_the_registered_model_loads_without_pickles_and_classifies(home: Path) -> None:
    data = next(path for path in (home / "store" / "dataset").iterdir() if path.is_dir())
    done = subprocess.run(
        [*warm.program("classify.py"), f"sqlite:///{home / 'mlflow.db'}", str(data)],
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = json.loads((home / "demo.json").read_text())["methods"]["lfm"]["all"]
    accuracy = 100 * float(re.findall(r"accuracy (\S+)", done.stdout)[0])
    assert accuracy == pytest.approx(expected, abs=12)  # 200 of the 10,000 images
    assert "refused" in done.stdout
    version = client(home).get_model_version("fashion-mnist-lt", "1")
    assert version.run_id == parents(home)[1].info.run_id, "the model hangs on its run"
    assert list((home / "mlartifacts").rglob("packaged_model.py")) and not (ROOT / "mlruns").exists()
    assert not [path for path in home.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_a_second_run_reuses_everything_and_says_so_and_agrees(home: Path) -> None:
    """Though the pipeline root was emptied, as a bucket's lifecycle rule does."""
    shutil.rmtree(home / "pipelines")
    done = subprocess.run(
        command(home, after=("--json", str(home / "again.json"))), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("data", "text embeddings", "stage 1", "stage 2", "evaluation"):
        assert f"{step}: unchanged, reused" in done.stdout
    again, before = (json.loads((home / name).read_text()) for name in ("again.json", "demo.json"))
    assert again["methods"]["lfm"] == before["methods"]["lfm"]
    # The run in MLflow is as whole as the first, though nothing was trained for it.
    newest = parents(home)[-1]
    assert newest.data.metrics["test/all"] == pytest.approx(again["methods"]["lfm"]["all"])
    assert len(client(home).get_metric_history(newest.info.run_id, "stage1/loss")) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_a_run_killed_in_stage_1_goes_on_from_its_checkpoint_to_the_same_weights(home: Path) -> None:
    changes = ("seed=3", "stage1.epochs=30", "train.checkpoint_steps=10")
    process = subprocess.Popen(command(home, *changes), stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(list((home / "work").glob("*/checkpoints/step-*"))) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command(home, *changes), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "stage 1 resumes from step" in done.stdout, done.stdout + done.stderr
    newest = parents(home)[-1]
    assert len(client(home).get_metric_history(newest.info.run_id, "stage1/loss")) == 30
    assert not list((home / "work").glob("*/checkpoints/step-*"))
    models = {model_seed(path): path for path in (home / "store" / "model").iterdir() if path.is_dir()}
    resumed = models[3, 2]
    weights = (resumed / "model.safetensors").read_bytes()
    shutil.rmtree(resumed)
    shutil.rmtree(models[3, 1])
    subprocess.run(command(home, *changes), check=True, capture_output=True, timeout=300)
    assert (resumed / "model.safetensors").read_bytes() == weights


def model_seed(path: Path) -> tuple[int, int]:
    made_by = verify(path)["made_by"]
    return made_by["seed"], made_by["stage"]


def wait_for(ready: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_an_error_inside_a_step_is_one_line_and_leaves_the_run_failed(home: Path) -> None:
    broken = home / "broken"
    shutil.copytree(home / "downloads" / "fashion-mnist", broken)
    path = next(broken.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:100_000])
    done = subprocess.run(command(home, f"data.source={broken}", "seed=8"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S*train-images\S* is truncated .*; delete .* run again.*\n", done.stderr)
    assert "Traceback" not in done.stdout + done.stderr and "stage 1" not in done.stdout
    assert parents(home)[-1].info.status == "FAILED"
    done = subprocess.run(
        command(home, f"data.source={broken}", "seed=8", before=("--debug",)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" in done.stdout + done.stderr and done.returncode != 0


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_small_alpha_trouble_is_named_before_training_and_auto_avoids_it(home: Path) -> None:
    done = subprocess.run(
        command(home, "data.max_per_class=1000", "data.imbalance=100", "mixup.tau=0.05", "stage1.alpha=1.0",
                "stage2.alpha=auto", "stage1.epochs=1"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout
    assert "own-label mass under 0.5 for T-shirt/top, Trouser:" in shown
    assert shown.index("own-label mass under") < shown.index("stage 1  100% ")
    alpha = float(re.findall(r"stage 2: alpha = (\S+) keeps", shown)[0])
    assert 0.3 < alpha < 0.4
    assert parents(home)[-1].data.params["stage2.alpha_used"] == str(alpha)


def test_the_short_names_of_the_json_file(tmp_path: Path) -> None:
    scores: dict[str, Any] = {"all": 1.0, "many": None, "medium": 2.0, "few": 3.0, "per_class": []}
    _write_json(tmp_path / "x.json", {"ce": scores, "lfm + ce": scores}, {}, "models:/a/1", 1.23)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["methods"]["lfm"] == {"all": 1.0, "medium": 2.0, "few": 3.0}  # absent, never null or 0


@pytest.fixture(scope="module")
def server(home: Path, first: subprocess.CompletedProcess[str]) -> Iterator[str]:
    assert first.returncode == 0
    port = "58731"
    process = subprocess.Popen(
        [warm.INSTALLED, "ui", "--home", str(home), "--port", port], stdout=subprocess.DEVNULL, start_new_session=True
    )
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(20)


@pytest.mark.slow
def test_the_ui_serves_the_runs_and_the_registered_model(server: str) -> None:
    api = MlflowClient(server)

    def answers() -> bool:
        try:
            return bool(api.search_registered_models())
        except Exception:
            return False

    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    wait_for(answers, 60)
    model = api.get_registered_model("fashion-mnist-lt")
    assert [version.version for version in model.latest_versions]


@pytest.mark.slow
def test_the_database_of_runs_is_plain_sqlite(home: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0
    with sqlite3.connect(home / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone()[0] >= 14
    assert np.load(next((home / "store" / "dataset").glob("*/train_labels.npy")), allow_pickle=False).size

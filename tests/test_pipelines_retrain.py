"""Retraining and retries for real: kfp.local, MLflow on SQLite, data that change under a schedule's feet."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from lfm.config.overrides import flatten
from lfm.config.presets import load
from lfm.data.sources.fashion_mnist import read_idx
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.local_run import Result, run_local, run_pipeline, run_retraining
from lfm.pipelines.training import training_pipeline
from lfm.storage.handover import resolve
from lfm.tracking import registry
from lfm.tracking.client import connect
from lfm.tracking.other_runs import going_on
from tests.conftest import write_idx
from tests.small_run import PRESET, SMALL


def retrain(source: Path, **more: Any) -> Result:
    overrides = {**SMALL, "data.source": str(source), **{k.replace("__", "."): v for k, v in more.items()}}
    return run_retraining(load(PRESET, overrides))


def newest_run(home: Path) -> Any:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PRESET)
    return client.search_runs([experiment.experiment_id], "tags.`lfm.pipeline_run` LIKE '%'", max_results=1)[0]


def change(folder: Path, name: str, first: int) -> None:
    """Turn every 20th image of a file upside down: the same classes, other pixels."""
    path = next(folder.glob(f"{name}*images*"))
    array = read_idx(path).copy()
    array[first::20] = array[first::20, ::-1]
    write_idx(path, array)


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_year_of_schedules(home: Path, small_fashion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = retrain(small_fashion)
    assert (first.news, first.outcome, first.model_uri) == ("changed", "champion", f"models:/{PRESET}/1")
    champion = registry.with_alias(PRESET, "champion")
    assert champion and champion.tags["lfm.decision"] == "there was no champion"

    capsys.readouterr()
    same = retrain(small_fashion, stage1__epochs=9)
    shown = capsys.readouterr().out
    assert same.news == "unchanged" and "unchanged: champion 1 of fashion-mnist-lt was trained on these very" in shown
    assert "stage 1" not in shown and len(registry.versions(PRESET)) == 1
    run = newest_run(home)
    assert run.info.status == "FINISHED" and run.data.tags["lfm.outcome"] == "unchanged"

    change(small_fashion, "train", 0)  # the source is read again, and its new content found
    better = retrain(small_fashion, stage1__epochs=25)
    assert (better.news, better.outcome) == ("changed", "champion")
    found = json.loads((better.metrics / "metrics.json").read_text())
    assert found["champion"]["version"] == "1" and found["test"]["all"] > found["champion"]["all"]
    champion = registry.with_alias(PRESET, "champion")
    assert champion and champion.number == "2" and champion.tags["lfm.champion_before"] == "1"
    assert "is better by more than the noise" in champion.tags["lfm.decision"]
    check_predictions(better, found)
    run = newest_run(home)
    gain = found["test"]["all"] - found["champion"]["all"]
    assert run.data.metrics["gate/all_gain"] == pytest.approx(gain) and run.data.metrics["gate/all_low"] > 0
    assert run.data.metrics["champion/all"] == pytest.approx(found["champion"]["all"])

    change(small_fashion, "train", 1)
    worse = retrain(small_fashion, stage1__epochs=0)
    assert worse.outcome == "challenger"
    challenger = registry.with_alias(PRESET, "challenger")
    assert challenger and challenger.number == "3" and "is not better" in challenger.tags["lfm.decision"]
    assert retrain(small_fashion, stage1__epochs=30).news == "unchanged", "tried once, not every night"

    change(small_fashion, "t10k", 0)
    change(small_fashion, "train", 2)
    other_test = retrain(small_fashion, stage1__epochs=2)
    challenger = registry.with_alias(PRESET, "challenger")
    assert other_test.outcome == "challenger" and challenger
    assert "the test images are not those of champion 2" in challenger.tags["lfm.decision"]
    champion = registry.with_alias(PRESET, "champion")
    assert champion and champion.number == "2"


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("champion", ["of a retraining", "of lfm run"])
def test_files_that_the_champion_was_trained_on_are_not_read_again(
    champion: str, home: Path, small_fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the volume was emptied, or none is shared: a night without news lists the files, and no more."""
    if champion == "of lfm run":
        run_local(load(PRESET, {**SMALL, "data.source": str(small_fashion)}))
        registry.promote(PRESET, "1", "looked at its mistakes")
        assert retrain(small_fashion).news == "unchanged", "by the images themselves"
    else:
        assert retrain(small_fashion).news == "changed"
    shutil.rmtree(home / "store")
    capsys.readouterr()
    assert retrain(small_fashion, stage1__epochs=9).news == "unchanged"
    assert "champion 1 of fashion-mnist-lt was trained on these very files" in capsys.readouterr().out
    assert not (home / "store").exists()
    assert newest_run(home).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_retraining_that_goes_on_is_not_begun_twice(
    home: Path, small_fashion: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule that catches up starts at once what a person may have started already."""
    config = load(PRESET, {**SMALL, "data.source": str(small_fashion)})
    client, minute, now = connect(), 60_000, time.time_ns() // 1_000_000
    where = client.create_experiment(PRESET, artifact_location=(home / "mlartifacts").as_uri())

    def begin(name: str, began: int, **other: str) -> str:
        tags = {"lfm.kind": "retraining", "lfm.pipeline_run": name}
        run = client.create_run(where, began, tags, name)
        for field, value in {**{key: str(one) for key, one in flatten(config).items()}, **other}.items():
            client.log_param(run.info.run_id, field, value)
        return str(run.info.run_id)

    begin("another configuration", now - minute, seed="7")
    begin("never closed, and not heard of for days", now - 3 * 24 * 60 * minute)
    own = begin("own", now)
    begin("begun after it", now + minute)
    monkeypatch.setenv("LFM_PIPELINE_RUN", "own")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert going_on(config) == ""
    person = begin("a person's", now - minute)
    assert going_on(config).startswith('"a person\'s" of ') and person[:12] in going_on(config)
    client.set_terminated(own)
    monkeypatch.delenv("LFM_PIPELINE_RUN")
    assert run_retraining(config).news == "unchanged"
    assert 'left to "a person\'s" of' in capsys.readouterr().out and not (home / "store").exists()
    left = client.search_runs([where], "tags.`lfm.outcome` = 'unchanged' and tags.`lfm.pipeline_run` LIKE '%'")
    assert [one.info.status for one in left] == ["FINISHED"]
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    monkeypatch.setenv("LFM_PIPELINE_RUN", "own")
    assert going_on(config) == "", "here a run that was killed goes on by the same command"


def check_predictions(result: Result, found: dict[str, Any]) -> None:
    """The kept predictions give the very scores of the metrics."""
    (pointer,) = result.folder.rglob("dataset/pointer.json")
    label_N = np.load(Path(resolve(str(pointer.parent), "prepare")) / "test_labels.npy", allow_pickle=False)
    for name, file in (("test", "predictions.npy"), ("champion", "champion_predictions.npy")):
        predicted_N = np.load(result.metrics / file, allow_pickle=False)
        assert predicted_N.dtype == np.int32 and predicted_N.shape == label_N.shape
        assert (predicted_N == label_N).mean() * 100 == pytest.approx(found[name]["all"])


@pytest.fixture
def killer(home: Path) -> Iterator[list[int]]:
    """Kills the step that writes the first checkpoint, once."""
    killed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if list((home / "work").glob("*/checkpoints/step-*")):
                server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
                children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
                if children:
                    os.kill(int(children[-1]), signal.SIGKILL)
                    killed.append(int(children[-1]))
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield killed
    stop.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_killed_step_is_retried_and_goes_on_where_it_was(
    home: Path, small_fashion: Path, killer: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {
        **SMALL, "data.source": str(small_fashion), "stage1.epochs": 60, "train.checkpoint_steps": 5,
    }  # fmt: skip
    config = load(PRESET, overrides)
    result = run_pipeline(training_pipeline(config, ClusterSettings(backoff_seconds=0)), config)
    assert len(killer) == 1
    shown, log = capsys.readouterr().out, result.log.read_text()
    assert "\nerror: the step was ended from outside by SIGKILL" in log
    assert "stage 1 resumes from step" in shown
    assert result.model_uri == f"models:/{PRESET}/1"
    run = newest_run(home)
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert [p.step for p in client.get_metric_history(run.info.run_id, "stage1/loss")] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_the_exit_handler_closes_a_run_that_failed(home: Path, small_fashion: Path) -> None:
    overrides = {**SMALL, "data.source": str(small_fashion), "data.max_per_class": 56}
    with pytest.raises(ValueError, match="class 0 has 55 images, 56 were asked for"):
        run_local(load(PRESET, overrides))
    assert newest_run(home).info.status == "FAILED"
    logs = list((home / "pipelines").glob("*/log.txt"))
    assert len(logs) == 1 and "'finish'" in logs[0].read_text(), "by its own step"

"""`lfm clean` on a real MLflow database and store: what goes, what stays, and that what stays still works."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.storage.artifact import read_manifest, verify
from lfm.storage.old_entries import DAY
from lfm.storage.store import build_once
from lfm.tracking import pipeline_run, registration, registry
from lfm.tracking.client import connect
from lfm.tracking.membership import KEY_VARIABLE
from lfm.tracking.step_logger import StepLogger
from lfm.tracking.uri import tracking_uri

pytestmark = pytest.mark.slow


@pytest.fixture
def used(home: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of some weeks: six versions of a model, each of a run of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connect().create_registered_model("birds")
    for number in range(1, 7):
        run_and_register(home, monkeypatch, str(number))
    return home


def test_what_machines_share_is_said_to_stay(home: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_STORE", "s3://lfm/store")
    done = CliRunner().invoke(app, ["clean"])
    assert done.exit_code == 0
    assert "LFM_STORE=s3://lfm/store is left alone" in done.output and "a rule of the bucket" in done.output
    monkeypatch.delenv("LFM_STORE")
    assert "LFM_STORE" not in CliRunner().invoke(app, ["clean"]).output


def run_and_register(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> str:
    """What a pipeline leaves: a run with a step below, data, a model, both in the store, and a version."""
    monkeypatch.setenv(KEY_VARIABLE, f"run-{key}")
    pipeline_run.begin_pipeline_run("birds", f"run {key}")
    with pipeline_run.step_run("register") as step:
        data, _ = build_once("dataset", {"n": key}, lambda aside: write(aside, f"data {key}"))
        inputs = {"dataset": read_manifest(data)["content"]}
        model, _ = build_once("served", inputs, lambda aside: write(aside, f"weights {key}"))
        source = log_model(step, model, as_mlflow_3=int(key) % 2 == 1)
        tags = {"lfm.content": read_manifest(model)["content"], "lfm.dataset": inputs["dataset"]}
        with pytest.MonkeyPatch.context() as patch:  # MLflow looks for a logged model where the process logs to
            patch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
            step.client.create_model_version("birds", source, step.parent, tags=tags)
        run = step.parent
    pipeline_run.end_well()
    folder = home / "pipelines" / f"run-{key}"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("log")
    return run


def log_model(step: StepLogger, model: Path, as_mlflow_3: bool) -> str:
    """Keep a model as a logged model, whose files lie beside those of its run, or as files of the run; its source."""
    client = step.client
    if not as_mlflow_3:
        client.log_artifacts(step.parent, str(model), "model")
        return f"{client.get_run(step.parent).info.artifact_uri}/model"
    logged = client.create_logged_model(client.get_run(step.parent).info.experiment_id, "model", step.parent)
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}"


def write(aside: Path, text: str) -> None:
    (aside / "data").write_text(text * 1000)


def age(home: Path, days: float) -> None:
    """Make all there is older."""
    then = time.time() - days * DAY
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET start_time = ?, end_time = ?", (1000 * then, 1000 * then + 1))
        database.execute("UPDATE model_versions SET creation_time = ?", (1000 * then,))
    for folder in ("store", "pipelines", "work"):
        for path in sorted((home / folder).rglob("*"), reverse=True):
            os.utime(path, (then, then))


def clean(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["clean", *arguments])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def versions() -> list[str]:
    return sorted(version.number for version in registry.versions("birds"))


def load(number: str, folder: Path) -> str:
    model = registration.fetch_model(f"models:/birds/{number}", folder)
    verify(model)
    return (model / "data").read_text()[:9]


def all_files(home: Path) -> list[str]:
    return sorted(str(path) for path in home.rglob("*") if path.is_file() and "mlflow" not in path.name)


def test_nothing_young_goes_and_nothing_goes_unasked(used: Path) -> None:
    assert clean().startswith(f"nothing in {used} is older than 30 days")
    age(used, 40)
    before = all_files(used)
    shown = clean()
    assert "nothing was removed: --yes removes them" in shown
    assert [line.split()[-1] for line in shown.splitlines() if " version " in line] == [
        f"models:/birds/{number}" for number in (3, 2, 1)
    ]
    assert all_files(used) == before and versions() == list("123456")
    assert clean("--days", "50").startswith("nothing in ")


def test_what_a_champion_a_rollback_or_any_version_needs_stays(used: Path, tmp_path: Path) -> None:
    registry.promote("birds", "1", "the first")
    registry.promote("birds", "3", "better")
    registry.challenge("birds", "2", "not better")
    # By hand, as in MLflow's UI: the files of run 4 under another name, without a word of the run.
    client = connect()
    source = client.get_model_version("birds", "4").source
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", source)
    age(used, 40)
    kept = {run: connect().get_model_version("birds", run).run_id for run in "123456"}
    said = clean("--keep", "1", "--yes")
    assert "things removed, about" in said
    assert versions() == ["1", "2", "3", "6"], "4 and 5 had no part to play"
    assert clean("--keep", "1").startswith("nothing in ")
    for number in versions():
        assert load(number, tmp_path / number) == f"weights {number}"
    assert registry.rollback("birds")[1].number == "1"
    by_hand = registration.fetch_model("models:/by-hand/1", tmp_path / "by-hand")
    assert (by_hand / "data").read_text().startswith("weights 4"), "its run stays, though its own version went"
    active = {run.info.run_id for run in client.search_runs([client.get_experiment_by_name("birds").experiment_id])}
    assert {kept[number] for number in "12346"} <= active and kept["5"] not in active
    assert not (used / "mlartifacts" / kept["5"]).exists() and (used / "mlartifacts" / kept["4"]).is_dir()
    of_versions = [client.get_model_version("birds", number).source for number in "13"]
    logged = client.search_logged_models([client.get_experiment_by_name("birds").experiment_id])
    assert sorted(f"models:/{model.model_id}" for model in logged) == sorted(of_versions), "not that of version 5"
    assert len(list((used / "mlartifacts" / "models").iterdir())) == 2
    texts = {path.read_text()[:9].strip("0") for path in (used / "store").glob("*/*/data")}
    assert {f"weights {n}" for n in "1236"} <= texts and not {"weights 4", "weights 5"} & texts
    assert {path.read_text()[:6] for path in (used / "store" / "dataset").glob("*/data")} == {
        f"data {n}" for n in "1236"
    }, "what they were made from"
    assert not list((used / "pipelines").iterdir())


def test_what_is_at_work_or_used_again_stays(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(used, 40)
    monkeypatch.setenv(KEY_VARIABLE, "at-work")
    pipeline_run.begin_pipeline_run("birds", "a run that goes on")
    with closing(sqlite3.connect(used / "mlflow.db")) as database, database:  # it began before what follows was used
        database.execute("UPDATE runs SET start_time = ? WHERE end_time IS NULL", (1000 * (time.time() - 20 * DAY),))
    build_once("dataset", {"n": "1"}, lambda aside: pytest.fail("built again"))
    busy = used / "store" / "served"
    (one, *_) = [
        path for path in busy.iterdir() if path.is_dir() and (path / "data").read_text().startswith("weights 2")
    ]
    with FileLock(one.with_suffix(".lock")):
        said = clean("--days", "5", "--keep", "3", "--yes")
    assert f"served {one.name[:12]} is in use and stayed" in said and one.is_dir()
    assert "data 1" in {path.read_text()[:6] for path in (used / "store" / "dataset").glob("*/data")}
    assert "a run that goes on" not in said and connect().search_runs(
        [connect().get_experiment_by_name("birds").experiment_id], "attributes.status = 'RUNNING'"
    )


def test_leftovers_of_killed_steps_go_and_what_others_logged_stays(used: Path) -> None:
    client = connect()
    theirs = client.create_experiment("theirs", artifact_location=(used / "mlartifacts").as_uri())
    run = client.create_run(theirs).info.run_id
    client.log_text(run, "x", "note.txt")
    client.set_terminated(run)
    half = used / "store" / "model" / ".0123456789abcdef.00ff00ff.tmp"
    half.mkdir(parents=True)
    (half / "weights").write_bytes(bytes(100_000))
    (used / "work" / "0123456789abcdef").mkdir(parents=True)
    (used / "work" / "0123456789abcdef" / "curves.jsonl").write_text("[]")
    age(used, 40)
    shown = clean("--keep", "9")
    assert "100.0 kB  half of an entry, of a killed step" in shown
    assert "checkpoints of a stage that was never finished 0123456789ab" in shown
    clean("--keep", "9", "--yes")
    assert not half.exists() and not list((used / "work").iterdir())
    assert client.get_run(run).info.lifecycle_stage == "active" and list((used / "mlartifacts").rglob("note.txt"))


def test_a_home_that_was_moved_is_cleaned_where_it_is(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(used, 40)
    new = used.rename(tmp_path / "new home")
    monkeypatch.setenv("LFM_HOME", str(new))
    clean("--yes")
    texts = sorted(path.read_text()[:9] for path in (new / "mlartifacts").rglob("data"))
    assert texts == ["weights 4", "weights 5", "weights 6"]
    assert load("6", tmp_path / "six") == "weights 6"

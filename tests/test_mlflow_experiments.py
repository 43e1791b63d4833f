"""Experiments and listings in MLflow: deleted ones, their kind, more than a page; the port of the UI."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from lfm.errors import InputError
from lfm.tracking import pipeline_run
from lfm.tracking.client import connect
from lfm.tracking.membership import KEY_VARIABLE
from tests import warm
from tests.s3 import free_ports


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "a-test")
    client = connect()
    number = client.create_experiment("fashion-mnist-lt")
    client.delete_experiment(number)
    with pytest.raises(InputError, match="'fashion-mnist-lt' was deleted in MLflow, which keeps its name") as refused:
        pipeline_run.begin_pipeline_run("fashion-mnist-lt", "a run")
    variable, *command = str(refused.value).partition("restore it: ")[2].split()
    name, _, value = variable.partition("=")
    subprocess.run([sys.executable, "-m", *command], env={**os.environ, name: value}, check=True, capture_output=True)
    assert pipeline_run.begin_pipeline_run("fashion-mnist-lt", "a run") == "a-test"


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_experiments_are_shown_as_model_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    client.create_experiment("of before")
    for name in ("of before", "new"):
        monkeypatch.setenv(KEY_VARIABLE, name)
        pipeline_run.begin_pipeline_run(name, "a run")
        found = client.get_experiment_by_name(name)
        assert found and found.tags["mlflow.experimentKind"] == "custom_model_development"
    # MLflow's page knows the kind by these words.
    built = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    pages = [path.read_text() for path in built.glob("main.*.js")]
    assert any("mlflow.experimentKind" in page and '"custom_model_development"' in page for page in pages)


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_the_port_of_the_ui_that_is_taken_is_said(home: Path) -> None:
    connect()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*warm.lfm(), "ui", "--port", str(port)], env={**os.environ}, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: port {port} cannot be used (Address already in use); end what listens")
    (free,) = free_ports(1)
    with subprocess.Popen([*warm.lfm(), "ui", "--port", str(free)], env={**os.environ}, start_new_session=True) as ui:
        try:
            until = time.monotonic() + 300
            while True:
                try:
                    socket.create_connection(("127.0.0.1", free)).close()
                    break
                except OSError:
                    assert ui.poll() is None and time.monotonic() < until
                    time.sleep(0.2)
        finally:
            ui.terminate()


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_listings_do_not_end_with_a_page(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's pages hold 100 models and 100 experiments; the champion is behind the first of them."""
    from lfm.tracking import registry

    client = connect()
    for number in range(105):
        client.create_registered_model(f"model-{number:03}")
    client.create_model_version("model-104", "file:///nowhere")
    registry.promote("model-104", "1", "the best")
    assert len({version.name for version in registry.versions()}) == 1
    assert registry.only_one() == "models:/model-104/1"
    assert registry.resolve("models:/model-104@champion") == "models:/model-104/1"
    with pytest.raises(InputError, match=r"unknown registered model 'model-1O4'; did you mean model-104"):
        registry.resolve("models:/model-1O4@champion")


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_run_is_found_behind_a_thousand_experiments(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow lists the experiments that changed last, 1,000 a page."""
    from lfm.tracking import past_runs

    monkeypatch.setenv(KEY_VARIABLE, "behind")
    pipeline_run.begin_pipeline_run("birds", "a run")
    with pipeline_run.step_run("evaluate") as step:
        step.params({"preset": "birds"}, on_parent=True)
        step.log({"test/all": 80.0}, 0)
        run = step.parent
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET last_update_time = 1")
        columns = [row[1] for row in database.execute("PRAGMA table_info(experiments)")]
        row = dict(zip(columns, database.execute("SELECT * FROM experiments").fetchone(), strict=True))
        for number in range(1000, 2010):
            new = row | {"experiment_id": number, "name": f"other {number}", "last_update_time": number}
            marks = ", ".join("?" * len(columns))
            database.execute(f"INSERT INTO experiments VALUES ({marks})", [new[column] for column in columns])
    assert len(connect().search_experiments()) == 1000, "one page"
    assert past_runs.id_of("behind") == run and run in [past.run_id for past in past_runs.evaluated()]
    assert pipeline_run.begin_pipeline_run("birds", "the same run") == "behind"
    assert (
        len(connect().search_runs([connect().get_run(run).info.experiment_id], "attributes.run_name LIKE '%run'")) == 1
    )

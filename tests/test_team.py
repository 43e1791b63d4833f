"""Runs on the servers of a team: a real MLflow with basic-auth on PostgreSQL and S3, killed and brought back."""

import base64
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.browser import visit
from tests.conftest import Fashion, first_images, write_files
from tests.s3 import S3
from tests.team_server import TeamServer, team_server
from tests.warm import lfm

EPOCHS = 10


@pytest.fixture(scope="module")
def team(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    with team_server(tmp_path_factory.mktemp("team"), s3) as server:
        yield server


@dataclass
class Survived:
    """A run whose server died in the middle of training, and what was said."""

    home: Path
    first: str
    code: int
    astray: "subprocess.CompletedProcess[str]"
    synced: str
    unsent: list[Path]
    """What the outbox held after that."""
    second: str
    client: MlflowClient

    def parents(self) -> list[Any]:
        """The pipeline runs, oldest first."""
        experiment = self.client.get_experiment_by_name("fashion-mnist-lt")
        found = self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
        return [run for run in found if "mlflow.parentRunId" not in run.data.tags]

    def children(self, parent: Any) -> dict[str, Any]:
        """Step name -> run."""
        where = [parent.info.experiment_id]
        found = self.client.search_runs(where, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def survived(team: TeamServer, fashion: Fashion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survived]:
    """MLflow dies once stage 1 has logged an epoch, and stays down to the end; then `lfm sync` and the run again."""
    home = tmp_path_factory.mktemp("home")
    source = tmp_path_factory.mktemp("small")
    write_files(source, first_images(fashion, 200, 10))
    environment = {**os.environ, **team.environment, "LFM_HOME": str(home), "LFM_MLFLOW_PATIENCE": "1"}
    settings = {
        "data.source": source, "data.verify": "false", "data.val_per_class": 40, "data.max_per_class": 60,
        "data.imbalance": 10, "stage1.epochs": EPOCHS, "stage2.epochs": 3,
    }  # fmt: skip
    command = [*lfm(), "run", "fashion-mnist-lt", *(f"--set={k}={v}" for k, v in settings.items())]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in team.environment.items():
            patch.setenv(name, value)
        client = MlflowClient(team.uri)
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_for_an_epoch(client, running)
            team.kill()
            first, _ = running.communicate(timeout=300)
        finally:
            running.kill()
        team.start()
        nowhere = {k: v for k, v in environment.items() if k not in team.environment}
        astray = subprocess.run([*lfm(), "sync"], env=nowhere, capture_output=True, text=True, timeout=120)
        synced = subprocess.run(
            [*lfm(), "sync"], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        unsent = list((home / "outbox").iterdir())
        environment.pop("LFM_MLFLOW_PATIENCE")
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stdout + again.stderr
        # On a busy machine the server's answer to the last record may come after the step's patience.
        subprocess.run([*lfm(), "sync"], env=environment, capture_output=True, timeout=120, check=True)
        yield Survived(home, first, running.returncode, astray, synced.stdout, unsent, again.stdout, client)


def wait_for_an_epoch(client: MlflowClient, running: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until and running.poll() is None:
        experiment = client.get_experiment_by_name("fashion-mnist-lt")
        if experiment and client.search_runs([experiment.experiment_id], "metrics.`stage1/loss` > 0"):
            return
        time.sleep(1)
    running.kill()
    raise AssertionError(f"no epoch of stage 1 reached MLflow: {running.communicate()[0]}")


@pytest.mark.slow
def test_training_outlives_the_server_and_nothing_is_lost(survived: Survived) -> None:
    assert survived.code == 2, survived.first
    assert "stage 2: done" in survived.first, "training went on without the server"
    assert "has not answered for 1 s" in survived.first and "it goes on" in survived.first
    assert "Traceback" not in survived.first
    count = int(survived.synced.split()[0])
    rule = "set MLFLOW_TRACKING_URI to it, then sync again"
    wait = rf"error: {count} records wait for MLflow at http://127\.0\.0\.1:\d+; {rule}\n"
    assert survived.astray.returncode == 2, "another server gets nothing"
    assert re.search(wait, survived.astray.stderr), survived.astray.stderr
    assert count > EPOCHS // 2 and survived.synced.endswith("records sent\n")
    assert not survived.unsent and not list((survived.home / "outbox").iterdir())
    died, finished = survived.parents()
    assert died.info.status == "FAILED" and finished.info.status == "FINISHED"
    steps = survived.children(died)
    assert {name: run.info.status for name, run in steps.items() if name.startswith("stage")} == {
        "stage 1": "FINISHED", "stage 2": "FINISHED"
    }  # fmt: skip
    for run in (died, steps["stage 1"]):
        points = survived.client.get_metric_history(run.info.run_id, "stage1/loss")
        assert [point.step for point in points] == list(range(1, EPOCHS + 1))
    assert steps["stage 1"].info.end_time <= steps["stage 2"].info.start_time + 1000, "times are those of the work"


@pytest.mark.slow
def test_the_same_command_reuses_all_that_was_trained(survived: Survived) -> None:
    assert "stage 1: unchanged, reused" in survived.second and "stage 2: unchanged, reused" in survived.second
    assert "Registered model  models:/fashion-mnist-lt/1" in survived.second


@pytest.mark.slow
def test_the_run_names_its_data_and_everything_that_decides_a_score(survived: Survived) -> None:
    run = survived.parents()[-1]
    tags, metrics = run.data.tags, run.data.metrics
    assert tags["lfm.split"] == "test" and "many > 100" in tags["lfm.shots"]
    assert {"lfm.commit", "lfm.dataset", "lfm.backbone", "lfm.weights", "lfm.model"} <= tags.keys()
    assert {"test/all", "test/few", "untrained/all"} <= metrics.keys()
    assert run.data.params["stage1.epochs"] == str(EPOCHS)
    inputs = {use.tags[0].value: use.dataset for use in run.inputs.dataset_inputs}
    assert inputs.keys() == {"training", "validation", "testing"}
    shape = json.loads(json.loads(inputs["training"].schema)["mlflow_tensorspec"]["features"])
    assert shape[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 1, 28, 28]}
    profile = json.loads(inputs["training"].profile)
    assert profile["classes"] == 10 and profile["images"] > 100 and profile["imbalance_factor"] == 10.0
    names = {item.path for item in survived.client.list_artifacts(run.info.run_id)}
    assert {"report.html", "config.yaml", "classes.json", "metrics.json", "figures"} <= names


@pytest.mark.slow
def test_artifacts_are_in_s3_and_the_password_is_nowhere(survived: Survived, team: TeamServer, s3: S3) -> None:
    keys = [item["Key"] for item in s3.client().list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(key.endswith("report.html") for key in keys) and any(key.endswith("model.safetensors") for key in keys)
    written = [path for path in survived.home.rglob("*") if path.is_file()]
    secrets = (team.password.encode(), base64.b64encode(f"admin:{team.password}".encode()))
    assert written and not [path for path in written if any(secret in path.read_bytes() for secret in secrets)]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{team.uri}/api/2.0/mlflow/experiments/get?experiment_id=0")


@pytest.mark.slow
def test_a_wrong_password_is_refused_before_any_work(survived: Survived, team: TeamServer, tmp_path: Path) -> None:
    environment = {**os.environ, **team.environment, "MLFLOW_TRACKING_PASSWORD": "wrong-one-indeed"}
    done = subprocess.run(
        [*lfm(), "models", "--home", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith("error: the MLflow server at http://127.0.0.1:"), done.stderr
    with pytest.raises(MlflowException), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-one-indeed")
        MlflowClient(team.uri).search_experiments()


@pytest.mark.slow
def test_the_ui_shows_runs_comparison_model_and_report(survived: Survived, team: TeamServer) -> None:
    environment = {**os.environ, **team.environment, "LFM_HOME": str(survived.home)}
    subprocess.run(
        [*lfm(), "promote", "fashion-mnist-lt", "1", "--why", "looked at its mistakes"], env=environment, check=True
    )
    died, finished = survived.parents()
    experiment, run = finished.info.experiment_id, finished.info.run_id
    both = json.dumps([died.info.run_id, run], separators=(",", ":"))
    shown = {
        "mlflow-runs": (f"#/experiments/{experiment}/runs", ["lfm + ce, seed 0"]),
        "mlflow-compare": (
            f"#/compare-runs?runs={both}&experiments=[%22{experiment}%22]", ["stage1.epochs", "test/all"],
        ),
        "mlflow-model": ("#/models/fashion-mnist-lt", ["champion", "Version 1"]),
        "mlflow-report": (f"#/experiments/{experiment}/runs/{run}/artifacts/report.html", ["report.html"]),
    }  # fmt: skip
    with visit("admin", team.password) as page_of:
        for name, (place, words) in shown.items():
            page_of(f"{team.uri}/{place}", name, words, frame="Top-1 accuracy" if name == "mlflow-report" else "")

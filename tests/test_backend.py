"""Every pipeline on the model of a KFP backend (tests/backend): what has become of its run in MLflow is looked at.

The tests of a kind share a cluster, so that what one run prepared the next takes from KFP's cache or from LFM_HOME.
"""

import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from lfm.config.presets import load
from lfm.config.sweeps import variants_of
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, write
from lfm.pipelines.compiled import Spec
from lfm.pipelines.sweep import parts
from lfm.storage.handover import POINTER
from tests.backend.launcher import Accident
from tests.backend.run import Cluster, Run
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PRESET = "custom-scratch"
TINY = {
    "stage1.epochs": 2, "stage2.epochs": 1, "stage1.batch_size": 8, "stage2.batch_size": 8, "stage1.alpha": 0.5,
    "stage2.alpha": 0.5, "model.image_size": 16, "train.validate_every": 0,
}  # fmt: skip
COUNTS = {"red": 12, "green": 8, "blue": 6}


def photos(folder: Path) -> Path:
    """A folder a class with pictures of 16 pixels in one colour, under noise."""
    for channel, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng([channel, k]).integers(0, 90, (16, 16, 3))
            pixels[..., channel] += 150
            out = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(out, "png")
            (folder / name / f"{k}.png").write_bytes(out.getvalue())
    return folder


SWEEP_OF_3 = variants_of("alpha", (0.0, 0.5, 1.0))


class Site(NamedTuple):
    """A cluster with infra/cluster.yaml, its volume and its MLflow, and the kind of pipeline that runs there."""

    cluster: Cluster
    settings: ClusterSettings
    kind: str

    @property
    def database(self) -> str:
        return self.cluster.held["lfm-endpoints", "MLFLOW_TRACKING_URI"]

    @property
    def volume(self) -> Path:
        """LFM_HOME of every step."""
        assert self.settings.home
        return Path(self.settings.home.path)

    def start(self, source: Path, *accidents: Accident, **changes: Any) -> Run:
        """Run the pipeline as `lfm compile --cluster infra/cluster.yaml` writes it.

        Args:
            source: The pictures.
            accidents: What befalls the steps.
            changes: Fields of the configuration, __ for the point.
        """
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        config = load(PRESET, {**TINY, "data.source": str(source), **changed})
        file = self.cluster.folder / "pipeline.yaml"
        write(KINDS[self.kind](config, self.settings), file)
        arguments = {"variants": SWEEP_OF_3} if self.kind == "sweep" else {}
        return self.cluster.start(Spec.read(file), arguments, accidents)

    def in_training(self) -> Callable[[str], bool]:
        """Whether a checkpoint was written since."""
        before = set(self.volume.glob("work/*/checkpoints/step-*"))
        return lambda log: bool(set(self.volume.glob("work/*/checkpoints/step-*")) - before)

    def end(self, run: Run) -> str:
        """How a run ended in MLflow; nothing below it may be without an end."""
        client = MlflowClient(self.database)
        experiment = client.get_experiment_by_name(PRESET)
        assert experiment
        runs = {one.info.run_id: one for one in client.search_runs([experiment.experiment_id])}
        (top,) = (one for one in runs.values() if one.data.tags.get("lfm.pipeline_run") == run.id)
        left = [
            one for one in runs.values() if self._below(one, top.info.run_id, runs) and one.info.status == "RUNNING"
        ]
        assert not left or top.info.status == "RUNNING", [one.info.run_name for one in left]
        return str(top.info.status)

    @staticmethod
    def _below(run: Any, top: str, runs: dict[str, Any]) -> bool:
        while above := run.data.tags.get("mlflow.parentRunId"):
            if above == top:
                return True
            run = runs[above]
        return False


def make_site(folder: Path, kind: str, tables: Path) -> Site:
    values = yaml.safe_load((REPOSITORY / "infra" / "cluster.yaml").read_text())
    values["home"]["path"] = str(folder / "volume")
    (folder / "volume").mkdir()
    shutil.copyfile(tables, folder / "mlflow.db")
    settings = ClusterSettings.model_validate(values | {"image": "lfm:test"})
    held = {(one.name, key): "unused" for one in (*settings.secrets, *settings.config_maps) for key in one.keys}
    held["lfm-endpoints", "MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    held["lfm-endpoints", "LFM_S3_ENDPOINT_URL"] = "http://127.0.0.1:9"
    return Site(Cluster(folder, held), settings, kind)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def other(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Other data than any test had: in a retraining, they are trained on."""
    folder = Path(shutil.copytree(source, tmp_path / "photos"))
    pixels = np.random.default_rng(len(request.node.nodeid)).integers(0, 255, (16, 16, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "red" / "0.png")
    return folder


class Trained(NamedTuple):
    """A cluster on which one run went well."""

    site: Site
    run: Run


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, source: Path, empty_database: Path
) -> Trained:
    site = make_site(tmp_path_factory.mktemp(request.param), request.param, empty_database)
    run = site.start(source)
    assert run.state == "SUCCEEDED", run.errors or list(run.logs.items())[-2:]
    return Trained(site, run)


pytestmark = pytest.mark.slow


def ran(run: Run) -> list[str]:
    """The steps that had a program, in order."""
    return [pod.split("/")[-1] for pod in run.pods if not pod.startswith("driver")]


def preparing(run: Run) -> list[str]:
    """What each attempt of the step printed that reads the pictures."""
    return [log for path, log in run.logs.items() if path.split("/")[-1].startswith("prepare")]


def test_a_run_that_went_well(trained: Trained) -> None:
    assert trained.run.told == ["COMPLETE"]
    assert trained.site.end(trained.run) == "FINISHED"


def test_the_bucket_gets_pointers_and_the_logs_plain_lines(trained: Trained) -> None:
    """The volume has the data already; a carriage return would make one line of a whole training."""
    cluster = trained.site.cluster
    handed = ("dataset", "embeddings", "backbone", "model")
    files = [path for path in cluster.bucket.rglob("*") if path.is_file() and path.parent.name in handed]
    assert len(files) >= len(handed) and {path.name for path in files} == {POINTER}
    logs = {path.parent.name: path.read_bytes() for path in (cluster.folder / "pods").rglob("log.txt")}
    assert b"stage 1  100% " in b"".join(logs.values())
    assert not [name for name, log in logs.items() if b"\r" in log]


def test_a_run_with_nothing_new(trained: Trained, source: Path) -> None:
    run = trained.site.start(source)
    assert run.state == "SUCCEEDED", run.logs
    assert ("train-stage1" in ran(run)) == (trained.site.kind != "retrain")
    assert trained.site.end(run) == "FINISHED"


def test_images_that_came_to_the_same_place_are_trained_on(trained: Trained, other: Path) -> None:
    before = trained.site.start(other)
    shutil.copy(other / "green" / "1.png", other / "blue" / "90.png")
    run = trained.site.start(other)
    assert before.state == run.state == "SUCCEEDED", run.logs
    assert "stage 1: done" in run.log("train-stage1"), "not the result of the images that were there before"


def test_a_bucket_that_was_emptied(trained: Trained, source: Path, other: Path) -> None:
    bucket = trained.site.cluster.bucket
    kept = bucket.rename(bucket.with_name("kept"))
    try:
        run = trained.site.start(other if trained.site.kind == "retrain" else source)
    finally:
        shutil.rmtree(bucket, ignore_errors=True)
        kept.rename(bucket)
    assert run.state == "SUCCEEDED", run.logs
    assert trained.site.end(run) == "FINISHED"


def test_a_mistake_of_the_user(trained: Trained, other: Path) -> None:
    (other / "red" / "0.png").write_text("no picture")
    run = trained.site.start(other)
    assert (run.state, run.told) == ("FAILED", ["FAILED"])
    logs = preparing(run)
    # A sweep stops at the first configuration that fails: how many had begun by then depends on the order of pods.
    assert 1 <= len(logs) <= (len(SWEEP_OF_3) if trained.site.kind == "sweep" else 1)
    assert all("error: " in log and "0.png" in log for log in logs)
    assert trained.site.end(run) == "FAILED"


def test_a_mistake_is_not_made_again_where_failures_are_retried(trained: Trained, other: Path) -> None:
    (other / "green" / "1.png").write_text("no picture")
    cluster = trained.site.cluster
    cluster.policy = "Always"
    try:
        run = trained.site.start(other)
    finally:
        cluster.policy = "OnError"
    logs = preparing(run)
    errors = [next(line for line in log.splitlines() if line.startswith("error: ")) for log in logs]
    begun = len(errors) // 3
    assert 1 <= begun <= (len(SWEEP_OF_3) if trained.site.kind == "sweep" else 1)
    assert len(errors) == 3 * begun and len(set(errors)) == 1
    assert sum("│" in log for log in logs) <= begun, "nothing was begun again"
    assert (run.state, trained.site.end(run)) == ("FAILED", "FAILED")


def test_a_program_that_crashes(trained: Trained, other: Path) -> None:
    run = trained.site.start(other, Accident("evaluate", "killed", lambda log: True, signal.SIGSEGV))
    assert (run.state, run.told, ran(run)[-2:]) == ("FAILED", ["FAILED"], ["evaluate", "finish"])
    assert trained.site.end(run) == "FAILED"


def test_no_memory_in_training_and_retry(trained: Trained, other: Path) -> None:
    site = trained.site
    out_of_memory = Accident("train-stage1", "killed", site.in_training())
    run = site.start(other, out_of_memory, stage1__epochs=30, train__checkpoint_steps=2)
    assert (run.state, run.told) == ("FAILED", ["FAILED"])
    assert site.end(run) == "FAILED"
    pods = len(run.pods)
    run.retry([Accident("train-stage1", "lost", site.in_training())])
    assert run.state == "SUCCEEDED", run.logs
    assert ran(run).count("train-stage1") >= 3, "a pod that was lost is tried again"
    assert "finish" not in str(run.pods[pods:]), "the exit handler keeps its first end"
    assert re.search("stage 1 .* from step [1-9]", run.log("train-stage1")), "from its checkpoint"
    assert site.end(run) == "FINISHED"


def test_terminate_in_training(trained: Trained, other: Path) -> None:
    site = trained.site
    run = site.start(
        other, Accident("train-stage1", "terminated", site.in_training()), stage1__epochs=600, train__checkpoint_steps=5
    )
    assert (run.state, run.told, ran(run)[-2:]) == ("FAILED", ["RUNNING"], ["train-stage1", "finish"])
    assert site.end(run) == "KILLED"


def test_terminate_between_register_and_decide(trained: Trained, other: Path) -> None:
    """Seen on KFP 2.17.0: from `register` to `decide` the run was FINISHED, and another retraining did not see it."""
    site = trained.site
    if site.kind != "retrain":
        pytest.skip("has no step after register")
    run = site.start(other, Accident("decide", "terminated", lambda log: True))
    assert ran(run)[-3:] == ["register", "decide", "finish"]
    assert site.end(run) == "KILLED"


def test_few_pods(trained: Trained, source: Path) -> None:
    most = {"train": 15, "retrain": 8}
    kind = trained.site.kind
    if kind not in most:
        pytest.skip("no figure is promised for a sweep")
    pods = trained.site.start(source).pods if kind == "retrain" else trained.run.pods
    assert len(pods) <= most[kind], pods


def test_the_parts_of_a_large_sweep_are_compared_as_one_by_whichever_ends_last(
    source: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part fails and is retried after the second has ended: then all three seeds of a label are compared."""
    monkeypatch.setattr("lfm.pipelines.sweep.MOST", 2)
    site = make_site(tmp_path, "sweep", empty_database)
    config = load(PRESET, {**TINY, "data.source": str(source)})
    lists = parts(variants_of("alpha", (0.5,), seeds=3))
    assert [len(one) for _, one in lists] == [1, 2]
    runs: list[Run] = []
    for (part, listed), accidents in zip(lists, ([CRASH], []), strict=True):
        file = tmp_path / "sweep.yaml"
        write(KINDS["sweep"](config, site.settings, listed, part), file)
        runs.append(site.cluster.start(Spec.read(file), {}, accidents))
        assert part
        status, compared, rows = whole_sweep(site, part.sweep, runs)
        assert (status, compared) == ("FAILED", "" if len(runs) == 1 else "2 of 3")
    assert [run.state for run in runs] == ["FAILED", "SUCCEEDED"], runs[1].logs
    assert rows == [("alpha 0.5", 2)]
    runs[0].retry()
    assert runs[0].state == "SUCCEEDED", runs[0].logs
    assert part and whole_sweep(site, part.sweep, runs) == ("FINISHED", "3 of 3", [("alpha 0.5", 3)])
    assert "3 of 3 configurations of the sweep are compared" in runs[0].log("compare")


CRASH = Accident("evaluate", "killed", lambda log: True, signal.SIGSEGV)


def whole_sweep(site: Site, name: str, parts: list[Run]) -> tuple[str, str, list[tuple[str, int]]]:
    """Of the run over all parts in MLflow: status, what is compared, and label and seeds of each row."""
    client = MlflowClient(site.database)
    experiment = client.get_experiment_by_name(PRESET)
    assert experiment
    (whole,) = client.search_runs([experiment.experiment_id], f"tags.`lfm.pipeline_run` = '{name}'")
    assert whole.info.run_name == "sweep of 3"
    of = f"tags.`mlflow.parentRunId` = '{whole.info.run_id}'"
    below = client.search_runs([experiment.experiment_id], of)
    assert {one.data.tags["lfm.pipeline_run"] for one in below} == {run.id for run in parts}
    files = {one.path for one in client.list_artifacts(whole.info.run_id, "sweep")}
    if not files:
        return whole.info.status, "", []
    assert {"sweep/report.html", "sweep/figure.svg", "sweep/table.csv"} <= files
    rows = json.loads(Path(client.download_artifacts(whole.info.run_id, "sweep/table.json")).read_text())
    return whole.info.status, whole.data.tags["lfm.compared"], [(row["label"], row["seeds"]) for row in rows]

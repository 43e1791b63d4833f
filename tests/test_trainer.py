"""The cluster's side: what the real SDK asks of a server that does as Kubeflow Trainer does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lfm.errors import InputError
from lfm.jobs.multinode import train_on_nodes
from lfm.storage.artifact import content_key
from lfm.training.task import WorkerTask
from tests.small_task import Trained, changed
from tests.trainer_server import JOBS, Trainer

IMAGE = "registry.example/lfm:0123"
WORK = content_key("test_trainer")
NAME = f"lfm-stage1-{WORK[:12]}"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    server = Trainer(tmp_path / "user")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "~/.kube/config")
    for name in ("KUBERNETES_SERVICE_HOST", "LFM_TRAINING_RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": server.folder, "LFM_IMAGE": IMAGE, "AWS_SECRET_ACCESS_KEY": "do-not-send"}.items():
        monkeypatch.setenv(name, str(value))
    yield server
    server.end()
    server.shutdown()
    server.server_close()


def train(task: WorkerTask, folder: Path) -> Trained:
    """Train on two nodes of the cluster."""
    trained = Trained(replace(task, work=folder / WORK, out=folder / "out", processes=2))
    train_on_nodes(trained.task, 2, trained.curves)
    return trained


@pytest.mark.slow
def test_a_train_job_trains_as_one_process_does(
    small_task: WorkerTask,
    trained_alone: Trained,
    cluster: Trainer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trained = train(small_task, tmp_path)
    assert list(trained.sent) == [1, 2, 3]
    for epoch in (1, 2, 3):
        one, two = trained_alone.sent[epoch], trained.sent[epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        assert two["stage1/val/all"] == one["stage1/val/all"]
    assert trained.weights.keys() == trained_alone.weights.keys()
    body = cluster.body
    assert body and body["kind"] == "TrainJob" and body["metadata"]["name"] == NAME
    assert body["spec"]["runtimeRef"]["name"] == "lfm" and body["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
    task_file = str(tmp_path / WORK / "worker_task.json")
    command = ["torchrun", "--nproc-per-node=1", "-m", "lfm.training.worker", task_file]
    assert body["spec"]["trainer"] == {"image": IMAGE, "numNodes": 2, "command": command}, "and no secret"
    assert cluster.job is None and cluster.asked[-1] == f"DELETE {JOBS}/{NAME}"
    log, out = (text.split() for text in (cluster.log(0).read_text(), capfd.readouterr().out))
    assert log and out[-len(log) :] == log, "node 0's log is passed on, whole"


@pytest.mark.slow
def test_an_error_on_a_node_of_a_cluster_is_reported_in_one_line(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(changed(small_task, "stage1", lr=1e38), tmp_path)
    assert end.value.code == 2 and cluster.job is None
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "not finite in step 2 of epoch 1" in lines[0]


def test_a_cluster_that_refuses_says_what_to_check(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.refuse = True
    with pytest.raises(InputError, match=r"trainjobs is forbidden.*service account may create TrainJobs"):
        train(small_task, tmp_path / "forbidden")
    monkeypatch.setenv("LFM_TRAINING_RUNTIME", "other")
    with pytest.raises(InputError, match=r"not found.*the TrainingRuntime other exists"):
        train(small_task, tmp_path / "no-runtime")


def test_a_missing_cluster_is_reported(small_task: WorkerTask, cluster: Trainer, tmp_path: Path) -> None:
    (cluster.folder / ".kube" / "config").unlink()
    with pytest.raises(InputError, match=r"none is configured here .*submit the run to one, or set KUBECONFIG"):
        train(small_task, tmp_path)

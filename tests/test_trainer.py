"""The cluster's side: what the real SDK asks of a server that does as Kubeflow Trainer does."""

import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lfm.errors import InputError
from lfm.jobs.left_behind import removed
from lfm.jobs.multinode import train_on_nodes
from lfm.jobs.pipeline_run import finish
from lfm.jobs.pod_log import LAST_TRIES, PodLog
from lfm.jobs.train_job import Cluster, NodeJob, run_label
from lfm.storage.artifact import content_key
from lfm.tracking import pipeline_run
from lfm.tracking.uri import tracking_uri
from lfm.training.task import WorkerTask
from tests.small_task import Trained, changed
from tests.trainer_server import JOBS, Trainer

IMAGE = "registry.example/lfm:0123"
WORK = content_key("test_trainer")
NAME = f"lfm-stage1-{WORK[:12]}-"


KILLED: list[AbstractContextManager[None]] = []  # Python would end a context that nobody knows any more


@pytest.fixture
def cluster(home: Path, tables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    server = Trainer(tmp_path / "user")
    monkeypatch.setattr("lfm.jobs.pod_log.POLL_SECONDS", 0.05)
    monkeypatch.setattr("lfm.jobs.left_behind.POLL_SECONDS", 0.05)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "~/.kube/config")
    for name in ("KUBERNETES_SERVICE_HOST", "LFM_TRAINING_RUNTIME", "LFM_PIPELINE_RUN", "LFM_STEP_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": server.folder, "LFM_IMAGE": IMAGE, "AWS_SECRET_ACCESS_KEY": "do-not-send"}.items():
        monkeypatch.setenv(name, str(value))
    yield server
    KILLED.clear()
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
    cluster.cut_after = 60  # bytes: less than a line, so that every stream breaks off
    trained = train(small_task, tmp_path)
    assert list(trained.sent) == [1, 2, 3] and cluster.cuts
    for epoch in (1, 2, 3):
        one, two = trained_alone.sent[epoch], trained.sent[epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        assert two["stage1/val/all"] == one["stage1/val/all"]
    assert trained.weights.keys() == trained_alone.weights.keys()
    body = cluster.body
    assert body and body["kind"] == "TrainJob" and body["metadata"]["name"].startswith(f"{NAME}0-")
    assert body["spec"]["runtimeRef"]["name"] == "lfm" and body["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
    task_file = str(tmp_path / WORK / "worker_task.json")
    command = ["torchrun", "--nproc-per-node=1", "-m", "lfm.training.worker", task_file]
    assert body["spec"]["trainer"] == {"image": IMAGE, "numNodes": 2, "command": command}, "and no secret"
    assert cluster.job is None and cluster.asked[-1] == f"DELETE {JOBS}/{body['metadata']['name']}"
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


def test_a_job_carries_its_run_its_deadline_and_a_name_of_its_own(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", "0b6d7a3c-1f2e-4d5c-8a9b-0c1d2e3f4a5b/lfm, tau 0.1")
    monkeypatch.setenv("LFM_STEP_SECONDS", "3600")
    pipeline_run.begin_pipeline_run("nightly", "a run")
    task, names = replace(small_task, work=tmp_path / WORK, processes=4), []
    for attempt in ("1", "1", "2"):
        monkeypatch.setenv("KFP_RETRY_INDEX", attempt)
        job = NodeJob.of(task, 2)
        names.append(job.name)
    assert len(set(names)) == 3 and all(re.fullmatch(rf"{NAME}[12]-[0-9a-f]{{5}}", name) for name in names)
    Cluster().start(job, tmp_path / "no-task.json")
    assert cluster.body
    client = MlflowClient(tracking_uri())
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "nightly")
    (run,) = client.search_runs([experiment])
    assert cluster.body["metadata"]["labels"] == {
        "lfm/work": WORK, "lfm/pipeline-run": "0b6d7a3c-1f2e-4d5c-8a9b-0c1d2e3f4a5b", "lfm/attempt": "2",
        "lfm/mlflow-run": run.info.run_id,
    }  # fmt: skip
    assert cluster.body["spec"]["activeDeadlineSeconds"] == 3600
    assert re.fullmatch(r"[0-9a-f]{32}", run_label("a key with spaces, and of more than sixty-three letters " * 2))


def left(small_task: WorkerTask, cluster: Trainer, folder: Path) -> str:
    """Name of a job whose step was killed: nothing of what comes after `yield` has happened."""
    job = NodeJob.of(replace(small_task, work=folder / WORK, processes=2), 2)
    backend = Cluster()
    KILLED.append(removed(backend, job))
    KILLED[-1].__enter__()
    backend.start(job, folder / "no-task.json")
    assert cluster.names() == [job.name]
    return job.name


def test_the_next_attempt_removes_what_a_killed_one_left_behind(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path
) -> None:
    name = left(small_task, cluster, tmp_path)
    job = NodeJob.of(replace(small_task, work=tmp_path / WORK, processes=2), 2)
    with removed(Cluster(), job):
        assert cluster.names() == [] and f"DELETE {JOBS}/{name}" in cluster.asked


def test_the_last_step_of_a_run_removes_the_jobs_of_the_run_and_asks_only_if_there_were_any(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", "one")
    pipeline_run.begin_pipeline_run("nightly", "a run")
    name = left(small_task, cluster, tmp_path)
    monkeypatch.setenv("LFM_PIPELINE_RUN", "another")
    pipeline_run.begin_pipeline_run("nightly", "another")
    cluster.asked.clear()
    finish("FAILED")
    assert cluster.names() == [name] and not cluster.asked
    monkeypatch.setenv("LFM_PIPELINE_RUN", "one")
    finish("RUNNING")
    assert cluster.names() == [] and f"DELETE {JOBS}/{name}" in cluster.asked
    cluster.asked.clear()
    finish("RUNNING")
    assert not cluster.asked, "once"


def test_a_last_step_that_cannot_remove_the_jobs_says_so_and_does_its_work(
    small_task: WorkerTask, cluster: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("LFM_PIPELINE_RUN", "one")
    pipeline_run.begin_pipeline_run("nightly", "a run")
    left(small_task, cluster, tmp_path)
    (cluster.folder / ".kube" / "config").unlink()
    finish("RUNNING")
    assert "warning: jobs of this run may be left behind" in capsys.readouterr().out


WRITER = """
import sys, time
for k in range(400):
    print("line", k, "x" * (k % 90), flush=True)
    time.sleep(0.003)
sys.stdout.write("the end without a line's end")
"""


@pytest.mark.parametrize("cut_after", [None, 300, 3000])
def test_a_log_whose_stream_is_cut_is_read_whole_and_once(
    cut_after: int | None, cluster: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines share their times, and a cut comes in the middle of one. Each reading asks for some seconds again."""
    monkeypatch.setattr("lfm.jobs.pod_log.POLL_SECONDS", 0.02)
    cluster.cut_after = cut_after
    command = [sys.executable, "-c", WRITER]
    spec = {"trainer": {"numNodes": 1, "command": command}, "runtimeRef": {"name": "lfm"}}
    cluster.start({"metadata": {"name": "job"}, "spec": spec})
    (node,) = cluster.nodes
    lines = list(Cluster().log("job", "node-0", lambda: node.poll() is not None))
    assert lines == cluster.log(0).read_text().splitlines() and len(lines) == 401
    assert (cluster.cuts == 0) == (cut_after is None) and (cut_after != 300 or cluster.cuts > 5)


def test_a_log_that_stays_away_does_not_keep_the_step(cluster: Trainer) -> None:
    tries = 0

    def opened(since: int | None, follow: bool) -> Iterator[bytes]:
        nonlocal tries
        tries += 1
        yield b"2026-01-01T00:00:00.000000000Z begun, but not"
        raise RuntimeError

    assert list(PodLog(opened, (RuntimeError,)).lines(lambda: True)) == [] and tries == LAST_TRIES

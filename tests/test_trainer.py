"""The cluster's side: what the real SDK asks of a server that does as Kubeflow Trainer does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.errors import InputError
from tests.test_nodes import NAME, WORK, changed, run
from tests.test_ranks import alone, told  # noqa: F401  the same small run
from tests.trainer_server import JOBS, Trainer

IMAGE = "registry.example/lfm:0123"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    server = Trainer(tmp_path / "user")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "~/.kube/config")
    for name in ("KUBERNETES_SERVICE_HOST", "LFM_TRAINER_BACKEND", "LFM_TRAINING_RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": server.folder, "LFM_IMAGE": IMAGE, "AWS_SECRET_ACCESS_KEY": "do-not-send"}.items():
        monkeypatch.setenv(name, str(value))
    yield server
    server.end()
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_train_job_trains_as_one_process_does(
    told: dict[str, Any],  # noqa: F811
    alone: Any,  # noqa: F811
    cluster: Trainer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sent, weights = run(told, tmp_path)
    assert list(sent) == [1, 2, 3]
    for epoch in (1, 2, 3):
        assert sent[epoch]["stage1/loss"] == pytest.approx(alone[0][epoch]["stage1/loss"], rel=1e-5)
    assert weights.keys() == alone[1].keys()
    body = cluster.body
    assert body and body["kind"] == "TrainJob" and body["metadata"]["name"] == NAME
    assert body["spec"]["runtimeRef"]["name"] == "lfm" and body["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
    place = str(tmp_path / WORK / "ranks.json")
    command = ["torchrun", "--nproc-per-node=1", "-m", "lfm.jobs.train_worker", place]
    assert body["spec"]["trainer"] == {"image": IMAGE, "numNodes": 2, "command": command}, "and no secret"
    assert cluster.job is None and cluster.asked[-1] == f"DELETE {JOBS}/{NAME}"
    log, out = (text.split() for text in (cluster.log(0).read_text(), capfd.readouterr().out))
    assert log and out[-len(log) :] == log, "node 0 is heard, whole"


@pytest.mark.slow
def test_an_error_on_a_node_of_a_cluster_is_told_in_one_line(
    told: dict[str, Any],  # noqa: F811
    cluster: Trainer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run(changed(told, lr=1e38), tmp_path)
    assert end.value.code == 2 and cluster.job is None
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "no finite number in step 2 of epoch 1" in lines[0]


def test_a_cluster_that_refuses_says_what_to_check(
    told: dict[str, Any],  # noqa: F811
    cluster: Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.refuse = True
    with pytest.raises(InputError, match=r"trainjobs is forbidden.*service account may create TrainJobs"):
        run(told, tmp_path / "forbidden")
    monkeypatch.setenv("LFM_TRAINING_RUNTIME", "other")
    with pytest.raises(InputError, match=r"not found.*the TrainingRuntime other exists"):
        run(told, tmp_path / "no-runtime")


def test_no_cluster_is_said(
    told: dict[str, Any],  # noqa: F811
    cluster: Trainer,
    tmp_path: Path,
) -> None:
    (cluster.folder / ".kube" / "config").unlink()
    with pytest.raises(InputError, match="set KUBECONFIG, or LFM_TRAINER_BACKEND=container"):
        run(told, tmp_path)

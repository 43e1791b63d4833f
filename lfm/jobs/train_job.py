"""Kubeflow Trainer on a cluster: starts the nodes of a TrainJob, and deletes them."""

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lfm.errors import InputError
from lfm.jobs.pod_log import PodLog
from lfm.storage.artifact import content_key
from lfm.training.task import WorkerTask

RUNTIME = "lfm"
"""The TrainingRuntime of infra/kustomize; LFM_TRAINING_RUNTIME names another."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 300
"""Longest waits for a connection, and for a line of a log: a connection that died without a word is made again."""
NO_ANSWER = (RuntimeError, TimeoutError, ValueError)
"""What the SDK raises where the server refuses, is silent, or has no such job."""


WORK, RUN, MLFLOW_RUN, ATTEMPT = "lfm/work", "lfm/pipeline-run", "lfm/mlflow-run", "lfm/attempt"
"""Labels of a TrainJob: key of the stage, key of the pipeline run (KFP's id), id of its run in MLflow, number of the
step's attempt. By the first a new attempt finds what an earlier one left behind, by the second the run's last step."""
DEADLINE = "LFM_STEP_SECONDS"
"""Variable of a step on Kubeflow Pipelines with its time limit."""


@dataclass(frozen=True)
class NodeJob:
    """A job to start.

    Args:
        name: its name; no earlier job had it.
        nodes: number of nodes.
        per_node: number of processes on each node.
        labels: key -> value.
        seconds: after so long it is ended; None: never.
    """

    name: str
    nodes: int
    per_node: int
    labels: Mapping[str, str]
    seconds: int | None

    @classmethod
    def of(cls, task: WorkerTask, nodes: int) -> "NodeJob":
        """The job of this process's step: a name of its own for each attempt, the labels and the deadline of its run.

        A new job with the name of one that was just deleted was seen to be taken for the old one by Trainer (2.3.0).
        """
        attempt, run = os.environ.get("KFP_RETRY_INDEX", ""), os.environ.get("LFM_PIPELINE_RUN", "")
        labels = {WORK: task.work.name, RUN: run_label(run), ATTEMPT: attempt, MLFLOW_RUN: _mlflow_run() if run else ""}
        # The number of the attempt begins at 0 again after Retry in the UI, so it is not enough.
        name = f"lfm-stage{task.stage}-{task.work.name[:12]}-{attempt or 0}-{uuid.uuid4().hex[:5]}"
        seconds = os.environ.get(DEADLINE)
        return cls(
            name, nodes, task.processes // nodes, {key: value for key, value in labels.items() if value},
            int(seconds) if seconds else None,
        )  # fmt: skip


def run_label(key: str) -> str:
    """Value of the label for the key of a pipeline run, of which a sweep's variants are a part.

    KFP's ids are good labels as they are; a key of another kind becomes its hash.
    """
    run = key.partition("/")[0]
    return run if not run or re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", run, re.ASCII) else content_key(run)


def _mlflow_run() -> str:
    """Id of the pipeline run in MLflow; empty where it is not known."""
    from lfm.tracking.client import connect
    from lfm.tracking.membership import Membership

    with suppress(Exception):  # a label for people, for which no training waits
        return Membership.here().parent(connect()) or ""
    return ""


class Backend(Protocol):
    """Starts the nodes of a job. The tests have another one, which starts containers on one machine."""

    client: Any
    """The SDK's client, asked for the job's state."""

    def publish(self, task: WorkerTask) -> Path:
        """Write the task for the nodes; its file as the nodes see it."""

    def start(self, job: NodeJob, task_file: Path) -> None:
        """Start the job with the task at the path that `publish` returned."""

    def log(self, name: str, node: str, over: Callable[[], bool]) -> Iterator[str]:
        """Lines of the log of a node of a job as they come, until `over()` and all that came before is read."""

    def delete(self, name: str) -> bool:
        """Delete the job and all that belongs to it; whether there was one."""

    def find(self, label: str, value: str) -> list[str]:
        """Names of the jobs with this label."""


class Cluster:
    """Kubeflow Trainer on Kubernetes. The runtime says what a node has: image, GPUs, memory, secrets, volume.

    Raises:
        InputError: no SDK, or no cluster is configured.
    """

    def __init__(self) -> None:
        try:
            from kubeflow.trainer import TrainerClient
        except ImportError as error:
            raise InputError(
                f"train.nodes > 1 needs the Kubeflow SDK ({error}); pip install '.[cluster]' in LFM's folder"
            ) from error
        try:
            self.client = TrainerClient()
        except Exception as error:  # the Kubernetes client's own kinds, and a missing file's
            raise InputError(
                f"train.nodes > 1 needs a Kubernetes cluster, and none is configured here ({error}); submit the run to "
                "one, or set KUBECONFIG"
            ) from error

    def publish(self, task: WorkerTask) -> Path:
        """Write the task into its work folder: the runtime mounts the same volume at the same path."""
        return task.write(task.work)

    def start(self, job: NodeJob, task_file: Path) -> None:
        """Create the TrainJob.

        Raises:
            InputError: the cluster refuses it.
        """
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import ActiveDeadlineSeconds, Labels, Name, TrainerCommand

        runtime = os.environ.get("LFM_TRAINING_RUNTIME") or RUNTIME
        # Where the runtime leaves the number open, the controller counts CPU cores.
        command = ["torchrun", f"--nproc-per-node={job.per_node}", "-m", "lfm.training.worker", str(task_file)]
        trainer = CustomTrainerContainer(image=os.environ.get("LFM_IMAGE", ""), num_nodes=job.nodes)
        options = [Name(job.name), TrainerCommand(command), Labels(dict(job.labels))]
        if job.seconds:
            options.append(ActiveDeadlineSeconds(job.seconds))
        try:
            self.client.train(runtime=runtime, trainer=trainer, options=options)
        except NO_ANSWER as error:
            raise InputError(
                f"Kubeflow Trainer did not take the job {job.name}: {error}: {reason(error)}; check that Trainer 2 is "
                f"installed, that the TrainingRuntime {runtime} exists in the run's namespace and that the step's "
                "service account may create TrainJobs (kubectl apply -k infra/kustomize/...)"
            ) from error

    def log(self, name: str, node: str, over: Callable[[], bool]) -> Iterator[str]:
        """Lines of a node's log; the SDK's own way has no times, and so could not go on after a broken stream."""
        backend = self.client.backend

        def opened(since: int | None, follow: bool) -> Iterator[bytes]:
            pods = [step.pod_name for step in self.client.get_job(name).steps if step.name == node]
            try:
                for pod in pods:
                    answer = backend.core_api.read_namespaced_pod_log(
                        pod, backend.namespace, container=node.rpartition("-")[0], timestamps=True, follow=follow,
                        _preload_content=False, _request_timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
                        **({"since_seconds": since} if since else {}),
                    )  # fmt: skip
                    yield from answer.stream()
            except Exception as error:  # the Kubernetes client's own kinds, urllib3's, the socket's
                raise RuntimeError(f"the log of {name}, {node} broke off") from error

        yield from PodLog(opened, NO_ANSWER).lines(over)

    def delete(self, name: str) -> bool:
        """Delete the TrainJob; its pods get SIGTERM and write a checkpoint."""
        try:
            self.client.delete_job(name)
        except RuntimeError as error:
            if getattr(error.__cause__, "status", None) == 404:
                return False
            raise
        return True

    def find(self, label: str, value: str) -> list[str]:
        """Names of the TrainJobs with this label; the SDK's own list takes none."""
        from kubeflow.trainer.constants import constants

        backend = self.client.backend
        try:
            found = backend.custom_api.list_namespaced_custom_object(
                constants.GROUP, constants.VERSION, backend.namespace, constants.TRAINJOB_PLURAL,
                label_selector=f"{label}={value}", _request_timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
            )  # fmt: skip
        except Exception as error:  # the Kubernetes client's own kinds, and urllib3's
            raise RuntimeError(f"TrainJobs with {label}={value} cannot be listed") from error
        return [item["metadata"]["name"] for item in found["items"]]


def reason(error: BaseException) -> str:
    """What the server said: the SDK keeps it as the cause."""
    cause = error.__cause__
    return str(getattr(cause, "body", None) or cause or "no answer")

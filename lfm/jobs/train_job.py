"""Kubeflow Trainer on a cluster: starts the nodes of a TrainJob, and deletes them."""

import os
from pathlib import Path
from typing import Any, Protocol

from lfm.errors import InputError
from lfm.training.task import WorkerTask

RUNTIME = "lfm"
"""The TrainingRuntime of infra/kustomize; LFM_TRAINING_RUNTIME names another."""
NO_ANSWER = (RuntimeError, TimeoutError, ValueError)
"""What the SDK raises where the server refuses, is silent, or has no such job."""


class Backend(Protocol):
    """Starts the nodes of a job. The tests have another one, which starts containers on one machine."""

    client: Any
    """The SDK's client, asked for the job's state and logs."""
    line_end: str
    """Text that the pieces of its logs lack."""

    def publish(self, task: WorkerTask) -> Path:
        """Write the task for the nodes; its file as the nodes see it."""

    def start(self, name: str, nodes: int, per_node: int, task_file: Path) -> None:
        """Start the job.

        Args:
            name: name of the job.
            nodes: number of nodes.
            per_node: number of processes on each node.
            task_file: path that `publish` returned.
        """

    def delete(self, name: str) -> bool:
        """Delete the job and all that belongs to it; whether there was one."""


class Cluster:
    """Kubeflow Trainer on Kubernetes. The runtime says what a node has: image, GPUs, memory, secrets, volume.

    Raises:
        InputError: no SDK, or no cluster is configured.
    """

    line_end = "\n"

    def __init__(self) -> None:
        try:
            from kubeflow.trainer import TrainerClient
        except ImportError as error:
            raise InputError(f"train.nodes > 1 needs the Kubeflow SDK ({error}); pip install 'lfm[cluster]'") from error
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

    def start(self, name: str, nodes: int, per_node: int, task_file: Path) -> None:
        """Create the TrainJob.

        Args:
            name: name of the job.
            nodes: number of nodes.
            per_node: number of processes on each node.
            task_file: path of the task on the volume.

        Raises:
            InputError: the cluster refuses it.
        """
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import Name, TrainerCommand

        runtime = os.environ.get("LFM_TRAINING_RUNTIME") or RUNTIME
        # Where the runtime leaves the number open, the controller counts CPU cores.
        command = ["torchrun", f"--nproc-per-node={per_node}", "-m", "lfm.training.worker", str(task_file)]
        trainer = CustomTrainerContainer(image=os.environ.get("LFM_IMAGE", ""), num_nodes=nodes)
        try:
            self.client.train(runtime=runtime, trainer=trainer, options=[Name(name), TrainerCommand(command)])
        except NO_ANSWER as error:
            raise InputError(
                f"Kubeflow Trainer did not take the job {name}: {error}: {reason(error)}; check that Trainer 2 is "
                f"installed, that the TrainingRuntime {runtime} exists in the run's namespace and that the step's "
                "service account may create TrainJobs (kubectl apply -k infra/kustomize/...)"
            ) from error

    def delete(self, name: str) -> bool:
        """Delete the TrainJob; its pods get SIGTERM and write a checkpoint."""
        try:
            self.client.delete_job(name)
        except RuntimeError as error:
            if getattr(error.__cause__, "status", None) == 404:
                return False
            raise
        return True


def reason(error: BaseException) -> str:
    """What the server said: the SDK keeps it as the cause."""
    cause = error.__cause__
    return str(getattr(cause, "body", None) or cause or "no answer")

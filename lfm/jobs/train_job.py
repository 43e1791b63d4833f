"""Who starts the nodes of a TrainJob: Kubeflow Trainer on a cluster, or the SDK's container backend on this machine."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lfm.errors import InputError

RUNTIME = "lfm"
"""The TrainingRuntime of infra/kustomize; LFM_TRAINING_RUNTIME names another."""
WORKSPACE = Path("/workspace")
"""Where the SDK's container backend mounts a job's folder."""
NO_ANSWER = (RuntimeError, TimeoutError, ValueError)
"""What the SDK raises where the server refuses, is silent, or has no such job."""


class Backend(Protocol):
    """Who starts the nodes."""

    client: Any
    line_end: str
    """What its pieces of a log lack."""

    def seen(self, work: Path) -> Path:
        """Where the nodes see the work folder."""

    def start(self, name: str, nodes: int, per_node: int, work: Path) -> None:
        """Start the job."""

    def delete(self, name: str) -> bool:
        """Delete the job and all that belongs to it; whether there was one."""


class Cluster:
    """Kubeflow Trainer on Kubernetes. What a node has (image, GPUs, memory, secrets, volume), the runtime says."""

    line_end = "\n"

    def __init__(self) -> None:
        from kubeflow.trainer import TrainerClient

        try:
            self.client = TrainerClient()
        except Exception as error:  # the Kubernetes client's own kinds, and a missing file's
            raise InputError(
                f"train.nodes > 1 needs a Kubernetes cluster, and none is configured here ({error}); submit the run to "
                "one, set KUBECONFIG, or LFM_TRAINER_BACKEND=container for containers on this machine"
            ) from error

    def seen(self, work: Path) -> Path:
        """The same place: the runtime mounts the same volume."""
        return work

    def start(self, name: str, nodes: int, per_node: int, work: Path) -> None:
        """Create the TrainJob.

        Raises:
            InputError: the cluster refuses it.
        """
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import Name, TrainerCommand

        runtime = os.environ.get("LFM_TRAINING_RUNTIME") or RUNTIME
        # Where the runtime leaves the number open, the controller counts CPU cores.
        command = ["torchrun", f"--nproc-per-node={per_node}", "-m", "lfm.jobs.train_worker", str(work / "ranks.json")]
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


class Containers:
    """The SDK's container backend: every node is a container on this machine, without GPUs."""

    line_end = ""
    # A login shell starts the node: it begins with this file, the way to the image's programs forgotten. The host's
    # user must be able to remove what the container's writes, and SIGTERM must reach torchrun, not stop at the shell.
    profile = (
        "umask 0\n"
        "PATH=$(tr '\\0' '\\n' </proc/$$/environ | sed -n 's/^PATH=//p')\n"
        'torchrun() { exec torchrun "$@"; }\n'
    )

    def __init__(self) -> None:
        import docker
        from docker.errors import DockerException
        from kubeflow.trainer import ContainerBackendConfig, TrainerClient
        from kubeflow.trainer.backends.container.types import TrainingRuntimeSource

        self.image = os.environ.get("LFM_IMAGE", "")
        try:
            self.docker = docker.from_env()
            self.docker.images.get(self.image)
        except DockerException as error:
            raise InputError(
                f"LFM_TRAINER_BACKEND=container needs Docker and LFM_IMAGE, an image of this version that is on this "
                f"machine (make image prints its name): {error}"
            ) from error
        own = TrainingRuntimeSource(sources=[])  # else it asks GitHub for its runtimes; the one built in will do
        self.client = TrainerClient(
            ContainerBackendConfig(container_runtime="docker", pull_policy="Never", auto_remove=False,
                                   runtime_source=own)
        )  # fmt: skip

    def seen(self, work: Path) -> Path:
        """The SDK's place."""
        return WORKSPACE

    def start(self, name: str, nodes: int, per_node: int, work: Path) -> None:
        """Start the containers on a network of their own."""
        from kubeflow.trainer import CustomTrainer
        from kubeflow.trainer.options import Name

        (work / ".profile").write_text(self.profile)
        for path in (work, work / "ranks.json", work / ".profile", *_below(work, "out", "checkpoints", "curves.jsonl")):
            with suppress(PermissionError):  # written by a container: open to all already
                path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
        for path in _below(work, "inputs"):
            _let_read(path)
        # The SDK mounts what this name leads to, and no other folder: let it be ours, so that checkpoints stay.
        place = self._place(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(work.resolve())
        threads = {k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}
        trainer = CustomTrainer(
            func=_train_here,
            func_args={"path": str(WORKSPACE / "ranks.json"), "out": str(WORKSPACE / "out")},
            image=self.image,
            num_nodes=nodes,
            resources_per_node={"gpu": per_node},  # it only counts processes by this
            env={**threads, "HOME": str(WORKSPACE), "LFM_HOME": str(WORKSPACE)},
        )
        self.client.train(runtime="torch-distributed", trainer=trainer, options=[Name(name)])

    def delete(self, name: str) -> bool:
        """Stop and remove the containers, the network, and the name of the folder."""
        self._place(name).unlink(missing_ok=True)
        there = True
        try:
            self.client.delete_job(name)
        except ValueError:
            there = False
        for network in self.docker.networks.list(names=[f"^{name}-net$"]):  # of a start that was cut off
            network.remove()
        return there

    def _place(self, name: str) -> Path:
        return Path.home() / ".kubeflow" / "trainer" / "containers" / name


def _train_here(path: str, out: str) -> None:
    import os  # the SDK sends this function's source: it must stand alone
    from pathlib import Path

    from lfm.jobs.train_worker import main

    main(path)
    for file in Path(out).iterdir() if os.environ["RANK"] == "0" else ():  # weights are written for their owner alone
        file.chmod(0o666)


def _let_read(path: Path) -> None:
    """Let the container's user read it. A file that is the store's too, by a hard link, stays as it is there."""
    mode = path.stat().st_mode
    if path.is_dir():
        path.chmod(mode | 0o555)
    elif not mode & 0o004:
        aside = path.with_name(f"{path.name}.open")
        shutil.copyfile(path, aside)
        aside.chmod(0o644)
        aside.replace(path)


def choose() -> Backend:
    """The backend that LFM_TRAINER_BACKEND names: kubernetes, unless told otherwise.

    Raises:
        InputError: there is no such backend, it cannot be reached, or the SDK is not installed.
    """
    kind = os.environ.get("LFM_TRAINER_BACKEND", "kubernetes")
    kinds: dict[str, type[Backend]] = {"kubernetes": Cluster, "container": Containers}
    if kind not in kinds:
        raise InputError(f"LFM_TRAINER_BACKEND {kind!r} is none of {', '.join(kinds)}; set one of these")
    try:
        return kinds[kind]()
    except ImportError as error:
        raise InputError(f"train.nodes > 1 needs the Kubeflow SDK ({error}); pip install 'lfm[cluster]'") from error


def _below(folder: Path, *names: str) -> Iterator[Path]:
    for path in (folder / name for name in names):
        if path.exists():
            yield from (path, *path.rglob("*"))


def reason(error: BaseException) -> str:
    """What the server said: the SDK keeps it as the cause."""
    cause = error.__cause__
    return str(getattr(cause, "body", None) or cause or "no answer")

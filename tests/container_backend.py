"""Training nodes as containers on this machine, by the container backend of Kubeflow's SDK: a test double of a cluster.

Containers see a job's work folder at /workspace. They have no GPUs, get no secrets and reach no shared store.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import docker
from kubeflow.trainer import ContainerBackendConfig, CustomTrainer, TrainerClient
from kubeflow.trainer.backends.container.types import TrainingRuntimeSource
from kubeflow.trainer.options import Name

from lfm.jobs.train_job import WORK, NodeJob
from lfm.training.task import WorkerTask

WORKSPACE = Path("/workspace")
"""Where the SDK mounts a job's folder."""
# A login shell starts the node, and reads this file first. The shell has forgotten the image's PATH; the host's user
# must be able to remove what the container's user writes; SIGTERM must reach torchrun, not stop at the shell.
PROFILE = (
    "umask 0\nPATH=$(tr '\\0' '\\n' </proc/$$/environ | sed -n 's/^PATH=//p')\ntorchrun() { exec torchrun \"$@\"; }\n"
)


class Containers:
    """A backend for `lfm.jobs.multinode.train_on_nodes`.

    Args:
        image: an image of this version.
        work: the work folder of the stage.
    """

    def __init__(self, image: str, work: Path) -> None:
        self.image, self.work = image, work
        self.docker = docker.from_env()
        own = TrainingRuntimeSource(sources=[])  # else it asks GitHub for its runtimes; the one built in will do
        self.client = TrainerClient(
            ContainerBackendConfig(
                container_runtime="docker", pull_policy="Never", auto_remove=False, runtime_source=own
            )
        )

    def publish(self, task: WorkerTask) -> Path:
        """Write the task with all paths under /workspace."""
        fields = {name: getattr(task, name) for name in ("dataset", "text", "backbone", "previous", "work", "out")}
        seen = {name: WORKSPACE / path.relative_to(self.work) for name, path in fields.items() if path}
        file = replace(task, remote=None, **seen).write(self.work)
        return WORKSPACE / file.name

    def start(self, job: NodeJob, task_file: Path) -> None:
        """Start the containers on a network of their own."""
        (self.work / ".profile").write_text(PROFILE)
        written = _below(self.work, "out", "checkpoints", "curves.jsonl")
        for path in (self.work, self.work / task_file.name, self.work / ".profile", *written):
            with suppress(PermissionError):  # written by a container: open to all already
                path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
        for path in _below(self.work, "inputs"):
            _let_read(path)
        # The SDK mounts what this name leads to, and no other folder: with a link, checkpoints stay in ours.
        place = self._place(job.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(self.work.resolve())
        threads = {k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}
        trainer = CustomTrainer(
            func=_train_here,
            func_args={"path": str(task_file), "out": str(WORKSPACE / "out")},
            image=self.image,
            num_nodes=job.nodes,
            resources_per_node={"gpu": job.per_node},  # it only counts processes by this
            env={**threads, "HOME": str(WORKSPACE), "LFM_HOME": str(WORKSPACE)},
        )
        self.client.train(runtime="torch-distributed", trainer=trainer, options=[Name(job.name)])

    def delete(self, name: str) -> bool:
        """Stop and remove the containers, the network, and the name of the folder."""
        self._place(name).unlink(missing_ok=True)
        existed = True
        try:
            self.client.delete_job(name)
        except ValueError:
            existed = False
        for network in self.docker.networks.list(names=[f"^{name}-net$"]):  # of a start that was cut off
            network.remove()
        return existed

    def log(self, name: str, node: str, over: Callable[[], bool]) -> Iterator[str]:
        """Lines of a container's log."""
        rest = ""
        for piece in self.client.get_job_logs(name, step=node, follow=not over()):
            *lines, rest = (rest + piece).split("\n")
            yield from lines
        if rest:
            yield rest

    def find(self, label: str, value: str) -> list[str]:
        """Jobs with this work folder: their names begin alike."""
        assert label == WORK
        names = [path.name for path in self._place("").iterdir()] if self._place("").is_dir() else []
        return [name for name in names if value[:12] in name]

    def _place(self, name: str) -> Path:
        return Path.home() / ".kubeflow" / "trainer" / "containers" / name


def _train_here(path: str, out: str) -> None:
    import os  # the SDK sends this function's source: it must stand alone
    from pathlib import Path

    from lfm.training.worker import main

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


def _below(folder: Path, *names: str) -> Iterator[Path]:
    for path in (folder / name for name in names):
        if path.exists():
            yield from (path, *path.rglob("*"))

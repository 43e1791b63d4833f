"""Train a task as a pipeline step does: `processes TASK.json`, or in containers: `containers TASK.json IMAGE`."""

import sys
from pathlib import Path

from lfm.jobs.launch import train_in_processes
from lfm.jobs.multinode import train_on_nodes
from lfm.training.curves import Curves
from lfm.training.task import WorkerTask
from tests.container_backend import Containers


def main(kind: str, task_file: str, image: str = "") -> None:
    task = WorkerTask.read(Path(task_file))
    task.out.mkdir(parents=True, exist_ok=True)
    curves = Curves(task.curves, lambda values, epoch: None)
    if kind == "processes":
        train_in_processes(task, curves)
    else:
        train_on_nodes(task, 2, curves, Containers(image, task.work))


if __name__ == "__main__":
    main(*sys.argv[1:])

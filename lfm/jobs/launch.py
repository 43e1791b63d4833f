"""Where a training task runs: in this process, in several on this machine, or on several machines."""

import os
import sys
import uuid

from lfm.config.schema import TrainConfig
from lfm.errors import SIGTERM_EXIT, InputError, ended_by
from lfm.jobs.multinode import train_on_nodes
from lfm.training.curves import Curves, following
from lfm.training.task import WorkerTask


def processes_per_node(train: TrainConfig) -> int:
    """Number of training processes on each machine: as configured, or one for every GPU."""
    if train.processes:
        return train.processes
    import torch

    return max(1, torch.cuda.device_count()) if train.device in ("auto", "cuda") else 1


def check_accelerators(processes: int, device: str) -> None:
    """See that the GPUs that the pod asked for are there, before hours of training on the CPU.

    Args:
        processes: Processes of this machine, one for each GPU.
        device: `train.device`.

    Raises:
        InputError: The cluster's settings name an accelerator (LFM_ACCELERATOR), and PyTorch sees fewer.
    """
    accelerator = os.environ.get("LFM_ACCELERATOR")
    if not accelerator or device == "cpu":
        return
    import torch

    if (seen := torch.cuda.device_count()) < processes:
        raise InputError(
            f"this step was to train on {processes} {accelerator}, and PyTorch sees {seen}: see that the pod's limits "
            f"name it, that the node has a driver and device plugin, and that the image has a CUDA build; or set "
            f"train.device=cpu to train without"
        )


def launch(task: WorkerTask, curves: Curves) -> None:
    """Train a stage in as many processes, on as many machines, as the configuration says.

    Args:
        task: what to train.
        curves: the curves in the task's work folder; points are sent as they come.

    Raises:
        InputError: what the user can correct.
        SystemExit: another process ended with such an error and has printed it, or by SIGTERM.
    """
    if task.config.train.nodes == 1:
        check_accelerators(task.processes, task.config.train.device)
    if task.config.train.nodes > 1:
        train_on_nodes(task, task.config.train.nodes, curves)
    elif task.processes > 1:
        train_in_processes(task, curves)
    else:
        from lfm.training.worker import train

        train(task, curves.log)


def train_in_processes(task: WorkerTask, curves: Curves) -> None:
    """Train in several processes on this machine, which torchrun's API starts and watches.

    Raises:
        SystemExit: a process ended with an error for the user, which it has printed, or by SIGTERM.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launcher = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=task.processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", max_restarts=0,
    )  # fmt: skip
    # It would also take SIGINT, which is ignored in a step of `lfm run`, and pass it on in place of SIGTERM.
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    try:
        with following(curves):
            elastic_launch(launcher, sys.executable)("-u", "-m", "lfm.training.worker", str(task.write(task.work)))
    except SignalException:  # the processes have ended, each with what a signal has it do
        raise SystemExit(SIGTERM_EXIT) from None
    except ChildFailedError as error:
        explained = {failure.exitcode for failure in error.failures.values()} & {InputError.exit_code, SIGTERM_EXIT}
        if explained:
            raise SystemExit(explained.pop()) from None
        # The others end by SIGTERM once the first one is gone: the first alone says what happened.
        _, first = error.get_first_failure()
        if first.exitcode < 0:
            print(ended_by(-first.exitcode), file=sys.stderr, flush=True)  # noqa: T201
        raise

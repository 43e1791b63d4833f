"""Training on several machines: a TrainJob of Kubeflow Trainer, started, followed and removed from inside the step.

The nodes and the step have the stage's work folder in common: the inputs are linked into it; checkpoints, curves and
weights are written there. It is under LFM_HOME, a volume that the training runtime mounts at the same path.
"""

import re
import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lfm.errors import ERROR_MARK, SIGTERM_EXIT, InputError
from lfm.jobs.left_behind import removed
from lfm.jobs.step import unwound_by_sigterm
from lfm.jobs.train_job import NO_ANSWER, Backend, Cluster, NodeJob, reason
from lfm.progress import say
from lfm.storage.artifact import copy_to
from lfm.training.curves import Curves, following
from lfm.training.heartbeat import LIMIT_SECONDS, beating
from lfm.training.task import WorkerTask

POLL_SECONDS = 1.0
START_SECONDS = 3600.0
"""Longest wait for the first node: for room in the cluster, for the image."""
LOST_SECONDS = 300.0
"""Longest time without an answer about a running job."""
END_SECONDS = 30.0
"""Longest wait for the rest of a log once a job is over."""
LAST_LINES = 60
"""Enough for the traceback above what torchrun says of it."""
ENDED = ("Complete", "Failed")
WAITING = (None, "Pending", "Created", "Unknown")


def train_on_nodes(task: WorkerTask, nodes: int, curves: Curves, backend: Backend | None = None) -> None:
    """Train on several machines; points of the curves are sent as they come, node 0's log is passed on.

    Args:
        task: what to train; its work folder is seen by all nodes.
        nodes: number of machines; each gets the same number of the task's processes.
        curves: the curves in the task's work folder.
        backend: starts the nodes; None: Kubeflow Trainer on the configured cluster.

    Raises:
        InputError: no cluster, no SDK, a job that is refused or does not start.
        SystemExit: a process ended with an error for the user, or by SIGTERM; or this one did.
        RuntimeError: a node failed otherwise; the last lines of the nodes whose log was not passed on are printed.
    """
    backend = backend or Cluster()
    started = NodeJob.of(task, nodes)
    with unwound_by_sigterm(), removed(backend, started), beating(task.heartbeat), following(curves):
        task_file = _lay_out(task, backend)
        backend.start(started, task_file)
        each = f"{started.per_node} {'process' if started.per_node == 1 else 'processes'} each"
        say(f"training on {nodes} machines, {each} ({started.name})")
        errors: dict[str, None] = {}
        job = _watch(backend, started.name, errors)
        if job.status != "Complete":
            _fail(backend, job, errors)
    for path in (task.work / "out").iterdir():
        shutil.move(path, task.out / path.name)


def _lay_out(task: WorkerTask, backend: Backend) -> Path:
    """Put all that the nodes need into the work folder; the task's file, with the paths that the nodes see."""
    shutil.rmtree(task.work / "out", ignore_errors=True)
    for folder in (task.work / "out", task.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Path] = {"out": task.work / "out"}
    for name in ("dataset", "text", "backbone", "previous"):
        if source := getattr(task, name):
            seen[name] = task.work / "inputs" / name
            copy_to(source, seen[name])
    return backend.publish(replace(task, silence=LIMIT_SECONDS, **seen))  # type: ignore[arg-type]


def _watch(backend: Backend, name: str, errors: dict[str, None]) -> Any:
    """Pass on node 0's log until the job is over; the job as it ended.

    Args:
        backend: has started the job.
        name: name of the job.
        errors: gets the lines for the user as keys, in their order.
    """
    over = threading.Event()
    log_reader, deadline = None, time.monotonic() + START_SECONDS
    job = _ask(backend, name)
    while job.status not in ENDED:
        if log_reader is None and any(step.name == "node-0" and step.status not in WAITING for step in job.steps):
            log_reader = _pass_on_log(backend, name, errors, over)
        if log_reader is None and time.monotonic() > deadline:
            raise InputError(
                f"no node of {name} started in {START_SECONDS / 60:.0f} minutes; kubectl describe trainjob {name} "
                "while it waits says what for (room, GPUs, the image); then run again"
            )
        time.sleep(POLL_SECONDS)
        job = _ask(backend, name)
    over.set()
    (log_reader or _pass_on_log(backend, name, errors, over)).join(END_SECONDS)
    return job


def _ask(backend: Backend, name: str) -> Any:
    """The job as it is now; a server that does not answer is asked again for a while."""
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        try:
            return backend.client.get_job(name)
        except NO_ANSWER as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"the cluster has not answered about the job {name} for {LOST_SECONDS:.0f} s ({error}: "
                    f"{reason(error)}); if it was deleted, run again: training resumes from the last checkpoint"
                ) from error
        time.sleep(POLL_SECONDS)


def _pass_on_log(
    backend: Backend, name: str, errors: dict[str, None], over: threading.Event
) -> threading.Thread:  # fmt: skip
    thread = threading.Thread(target=_print_log, args=(backend, name, errors, over), daemon=True)
    thread.start()
    return thread


def _print_log(backend: Backend, name: str, errors: dict[str, None], over: threading.Event) -> None:
    """Print node 0's log as it comes; a line for the user waits until the end, since every process prints it."""
    with suppress(*NO_ANSWER):  # a log that cannot be read does not end the training
        for line in backend.log(name, "node-0", over.is_set):
            if line.startswith(ERROR_MARK):
                errors[line.strip()] = None
            else:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()


def _fail(backend: Backend, job: Any, errors: dict[str, None]) -> NoReturn:
    """Say why a job failed, and raise what `lfm.jobs.launch.train_in_processes` would."""
    logs: dict[str, list[str]] = {}
    for node in sorted(step.name for step in job.steps):
        with suppress(*NO_ANSWER):  # the log of a pod that is gone
            logs[node] = list(backend.log(job.name, node, lambda: True))
    lines = [line for log in logs.values() for line in log]
    errors.update(dict.fromkeys(line for line in lines if line.startswith(ERROR_MARK)))
    codes = {int(code) for line in lines for code in re.findall(r"exitcode\s*: (\d+) ", line)}
    for line in list(errors)[:1]:  # the others say the same, each with its own images
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    if explained := codes & {InputError.exit_code, SIGTERM_EXIT}:
        raise SystemExit(min(explained))
    if errors:
        raise SystemExit(InputError.exit_code)
    logs.pop("node-0", None)  # it was passed on already
    for node, log in logs.items():
        print("\n".join([f"the last lines of {node}:", *log[-LAST_LINES:]]), file=sys.stderr, flush=True)  # noqa: T201
    raise RuntimeError(f"{job.name}: training failed on a node; the nodes' last lines are above")

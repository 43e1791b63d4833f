"""Training on several machines: a TrainJob of Kubeflow Trainer, started, followed and removed from inside the step.

The stage's work folder is what the nodes share with the step: the inputs are laid into it, checkpoints, curves and the
weights are written there. On a cluster it lies under LFM_HOME, a volume that the training runtime mounts at the same
place. With LFM_TRAINER_BACKEND=container the nodes are containers on this machine, which see it at /workspace.
"""

import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from lfm.errors import InputError
from lfm.jobs.step import ERROR_MARK
from lfm.jobs.train_job import NO_ANSWER, Backend, choose, reason
from lfm.jobs.training import write_ranks
from lfm.progress import say
from lfm.storage.artifact import copy_to
from lfm.training.curves import Curves, following

INPUTS = ("dataset", "text", "backbone", "before")
POLL_SECONDS = 1.0
START_SECONDS = 3600.0
"""Longest wait for the first node: for room in the cluster, for the image."""
LOST_SECONDS = 300.0
"""Longest time without an answer about a job that runs."""
END_SECONDS = 30.0
"""Longest wait for the last words of the other nodes once a job is over, and for a removed job to be gone."""
LAST_LINES = 60
"""Enough for the traceback above what torchrun says of it."""
ENDED = ("Complete", "Failed")
WAITING = (None, "Pending", "Created", "Unknown")


def train_on_nodes(nodes: int, per_node: int, curves: Curves, told: dict[str, Any]) -> None:
    """Train on several machines; points of the curves are sent as they come, node 0's log is passed on.

    Args:
        nodes: machines.
        per_node: processes on each.
        curves: beside the stage's checkpoints, in the work folder that the nodes share.
        told: arguments of `lfm.jobs.training.train`, but for `log`.

    Raises:
        InputError: no cluster, no SDK, a job that is refused or does not start.
        SystemExit: a process ended with an error that the user can mend, or by SIGTERM; or this one did.
        RuntimeError: a node failed otherwise; the last lines of those not heard so far are printed.
    """
    backend = choose()
    work = curves.path.parent
    name = f"lfm-stage{told['stage']}-{work.name[:12]}"
    with _ended_by_sigterm(), _removed(backend, name), following(curves):
        _lay_out(work, backend.seen(work), {**told, "processes": nodes * per_node})
        backend.start(name, nodes, per_node, work)
        say(f"training on {nodes} machines, {per_node} {'process' if per_node == 1 else 'processes'} each ({name})")
        errors: dict[str, None] = {}
        job = _watch(backend, name, errors)
        if job.status != "Complete":
            _fail(backend, job, errors)
    for path in (work / "out").iterdir():
        shutil.move(path, Path(told["out"]) / path.name)


def _lay_out(work: Path, seen: Path, told: dict[str, Any]) -> None:
    """Put all that the nodes need into the work folder, and the places as they see them into ranks.json."""
    shutil.rmtree(work / "out", ignore_errors=True)
    for folder in ("out", "checkpoints"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    places = {"out": seen / "out", "checkpoints": seen / "checkpoints", "curves": seen / "curves.jsonl"}
    for what in INPUTS:
        if told[what]:
            copy_to(Path(told[what]), work / "inputs" / what)
            places[what] = seen / "inputs" / what
    # Containers are given no secrets, so they reach no store; their checkpoints are on this machine anyway.
    remote = told.get("remote") if seen == work else None
    write_ranks(work / "ranks.json", {**told, **places, "remote": remote})


def _watch(backend: Backend, name: str, errors: dict[str, None]) -> Any:
    """Pass on node 0's log until the job is over; the job. Errors for the user are collected in `errors`."""
    speaker, deadline = None, time.monotonic() + START_SECONDS
    job = _ask(backend, name)
    while job.status not in ENDED:
        if speaker is None and any(step.name == "node-0" and step.status not in WAITING for step in job.steps):
            speaker = _speaking(backend, name, errors)
        if speaker is None and time.monotonic() > deadline:
            raise InputError(
                f"no node of {name} started in {START_SECONDS / 60:.0f} minutes; kubectl describe trainjob {name} "
                "while it waits says what for (room, GPUs, the image); then run again"
            )
        time.sleep(POLL_SECONDS)
        job = _ask(backend, name)
    (speaker or _speaking(backend, name, errors)).join(END_SECONDS)
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
                    f"nothing was heard of the job {name} for {LOST_SECONDS:.0f} s ({error}: {reason(error)}); if it "
                    "was deleted, run again: training goes on from the last checkpoint"
                ) from error
        time.sleep(POLL_SECONDS)


def _speaking(backend: Backend, name: str, errors: dict[str, None]) -> threading.Thread:
    thread = threading.Thread(target=_speak, args=(backend, name, errors), daemon=True)
    thread.start()
    return thread


def _speak(backend: Backend, name: str, errors: dict[str, None]) -> None:
    """Print node 0's log as it comes; a line for the user waits until the end, as every process says it."""
    rest = ""
    with suppress(*NO_ANSWER):  # a log that breaks off does not end the training
        for piece in backend.client.get_job_logs(name, step="node-0", follow=True):
            *lines, rest = re.split(r"(?<=[\n\r])", rest + piece + backend.line_end)
            for line in lines:
                if line.startswith(ERROR_MARK):
                    errors[line.strip()] = None
                else:
                    sys.stdout.write(line)
            sys.stdout.flush()
    sys.stdout.write(rest)


def _fail(backend: Backend, job: Any, errors: dict[str, None]) -> NoReturn:
    """Say why a job failed, and raise what `lfm.jobs.training.train_together` would."""
    logs: dict[str, list[str]] = {}
    for node in sorted(step.name for step in job.steps):
        with suppress(*NO_ANSWER):  # the log of a pod that is gone
            pieces = backend.client.get_job_logs(job.name, step=node, follow=False)
            logs[node] = "".join(piece + backend.line_end for piece in pieces).splitlines()
    lines = [line for log in logs.values() for line in log]
    errors.update(dict.fromkeys(line for line in lines if line.startswith(ERROR_MARK)))
    codes = {int(code) for line in lines for code in re.findall(r"exitcode\s*: (\d+) ", line)}
    for line in list(errors)[:1]:  # the others tell the same, each with the images of its share
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    if told_why := codes & {InputError.exit_code, 143}:
        raise SystemExit(min(told_why))
    if errors:
        raise SystemExit(InputError.exit_code)
    logs.pop("node-0", None)  # passed on as it came
    for node, log in logs.items():
        print("\n".join([f"the last lines of {node}:", *log[-LAST_LINES:]]), file=sys.stderr, flush=True)  # noqa: T201
    raise RuntimeError(f"{job.name}: training failed on a node; the nodes' last lines are above")


@contextmanager
def _removed(backend: Backend, name: str) -> Iterator[None]:
    """No job of this name before, as a killed step leaves it, and none after."""
    deadline = time.monotonic() + END_SECONDS
    with suppress(*NO_ANSWER):  # a server that refuses this will refuse the new job too, and that is told
        while backend.delete(name) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        try:
            backend.delete(name)
        except NO_ANSWER as error:
            say(f"warning: the job {name} may be left behind: {error}: {reason(error)}")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that the job is removed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

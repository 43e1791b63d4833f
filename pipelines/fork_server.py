"""Local steps without the wait for imports: each is forked from a process that has imported them (docs/adr/0005).

`kfp.local` starts a fresh interpreter for every step, which imports PyTorch and MLflow again: four to six seconds a
step, more than most steps take. Here Python's own fork server imports them once.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from lfm.errors import SIGTERM_EXIT, InputError, ended_by
from lfm.pipelines.kfp_internals import SUBPROCESS, replaced, split_command

PRELOAD = (
    "accelerate",
    "kfp.dsl.executor_main",
    "lfm.jobs.evaluation",
    "lfm.jobs.training",
    "lfm.report.run_page",
    "lfm.serving.predictor",
    "lfm.tracking.pipeline_run",
    "lfm.training.loop",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "sklearn.manifold",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",
)
"""What steps would else import each for itself: `torch._dynamo` comes with the first step of an optimizer."""
PREPARATION = "lfm.pipelines.fork_preparation"
"""Module whose import imports all that, and does what steps would else do each for itself."""

STOP_SECONDS = 1.0
"""Time that steps have after Ctrl-C for a last checkpoint and the end of their runs in MLflow; then they are killed."""


class _Steps:
    """The steps that run now, so that a signal can end them whatever thread waits for them."""

    def __init__(self) -> None:
        self.running: dict[int, BaseProcess] = {}
        self.begun, self.ending = False, False
        # Starting a process also looks whether others have ended, and the end of each can be read once: a step that
        # ends while another one starts, as in a sweep, would have 255 for its exit code.
        self._one_looks = threading.Lock()

    def start(self, process: BaseProcess) -> None:
        """Start a step's process."""
        with self._one_looks:
            process.start()
        assert process.pid
        self.running[process.pid], self.begun = process, True
        if self.ending:  # the signal came in between
            process.terminate()

    def join(self, process: BaseProcess) -> None:
        """Wait for its end."""
        wait([process.sentinel])
        with self._one_looks:
            process.join()
        self.running.pop(process.pid or 0, None)

    def end(self, number: int) -> None:
        """End all; after Ctrl-C within `STOP_SECONDS`, with what they have started."""
        if self.ending:
            return
        self.ending = True
        pids = list(self.running)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if number == signal.SIGINT:
            threading.Thread(target=_kill_after, args=(pids,), daemon=True).start()


def _kill_after(pids: Sequence[int]) -> None:
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            step = psutil.Process(pid)
            found += [step, *step.children(recursive=True)]
    _, left = psutil.wait_procs(found, STOP_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def forked_steps(*more: str) -> Iterator[Callable[..., bool]]:
    """Run the steps of `kfp.local` in forks of a process that has imported what they need.

    Ctrl-C reaches this process alone, as in a pod SIGTERM does: it ends the steps, also those that threads of
    `kfp.local` wait for, in a sweep.

    Args:
        more: Modules to import besides `PRELOAD`.

    Yields:
        A function that calls another in such a fork, once a step has begun, and says whether all is well.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PREPARATION, *more])
    with _signal(signal.SIGINT, signal.SIG_IGN):  # what it forks ignores it too
        forkserver.ensure_running()
    steps = _Steps()

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        if steps.ending:
            return SIGTERM_EXIT
        source, arguments = split_command(full_command)
        reader, writer = context.Pipe(duplex=False)
        environment = {**os.environ, **(env_vars or {}), "_KFP_RUNTIME": "true"}
        process = context.Process(target=_step, args=(source, arguments, environment, str(Path.cwd()), writer))
        steps.start(process)
        writer.close()
        try:
            with os.fdopen(os.dup(reader.fileno()), errors="replace") as lines:
                for line in lines:
                    sys.stdout.write(line)  # in one piece: steps may run in parallel
        except BaseException:  # of this process: the step must not run on
            if not steps.ending:
                process.terminate()
            raise
        finally:
            steps.join(process)
        if process.exitcode and process.exitcode < 0:
            sys.stdout.write(f"\n{ended_by(-process.exitcode)}\n")
        return process.exitcode or 0

    def call(function: Callable[..., None], *arguments: Any) -> bool:
        where = dict(os.environ), str(Path.cwd())
        process = context.Process(target=_call, args=(*where, function, arguments), daemon=True)
        if steps.begun:
            process.start()
            process.join(2 * STOP_SECONDS)
        return not steps.begun or process.exitcode == 0

    with replaced(SUBPROCESS, run), _first(steps.end, signal.SIGINT, signal.SIGTERM):
        try:
            yield call
        except KeyboardInterrupt:
            _kill_server()
            raise


def _kill_server() -> None:
    """End the process that forks the steps, which may still be busy with its imports and takes no SIGINT."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                child.kill()


@contextmanager
def _signal(number: signal.Signals, action: Any) -> Iterator[None]:
    """Handle a signal so while this is open; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _first(action: Callable[[int], None], *numbers: signal.Signals) -> Iterator[None]:
    """While this is open, call `action` before what a signal does anyway, if that is a function of Python's."""
    with ExitStack() as stack:
        for number in numbers:
            if callable(then := signal.getsignal(number)):
                stack.enter_context(_signal(number, partial(_both, action, then)))
        yield


def _both(action: Callable[[int], None], then: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    action(number)
    then(number, frame)


def _call(environment: dict[str, str], folder: str, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    """In the forked process: call a function; an error that it has for the user is shown by its exit code alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        function(*arguments)
    except InputError as error:
        raise SystemExit(error.exit_code) from None


def _step(source: str, arguments: list[str], environment: dict[str, str], folder: str, output: Connection) -> None:
    """In the forked process: what KFP's command line would do in a fresh one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    from kfp.dsl import executor_main

    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "ephemeral_component.py"
        program.write_text(source)
        sys.argv = ["executor_main", "--component_module_path", str(program), *arguments]
        executor_main.executor_main()

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
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from lfm.errors import ERROR_MARK
from lfm.pipelines.kfp_internals import SUBPROCESS, replaced, split_command

PRELOAD = (
    "accelerate",
    "kfp.dsl.executor_main",
    "lfm.jobs",
    "lfm.serving.predictor",
    "lfm.tracking.pipeline_run",
    "lfm.training.loop",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
)


@contextmanager
def forked_steps(*more: str) -> Iterator[None]:
    """Run the steps of `kfp.local` in forks of a process that has imported what they need.

    Args:
        more: Modules to import besides `PRELOAD`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *more])
    # Starting a process also looks whether others have ended, and the end of each can be read once: a step that ends
    # while another one starts, as in a sweep, would have 255 for its exit code.
    one_looks = threading.Lock()

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        source, arguments = split_command(full_command)
        reader, writer = context.Pipe(duplex=False)
        environment = {**os.environ, **(env_vars or {}), "_KFP_RUNTIME": "true"}
        process = context.Process(target=_step, args=(source, arguments, environment, str(Path.cwd()), writer))
        with one_looks:
            process.start()
        writer.close()
        try:
            with os.fdopen(os.dup(reader.fileno()), errors="replace") as lines:
                for line in lines:
                    sys.stdout.write(line)  # in one piece: steps may run in parallel
            wait([process.sentinel])
        except BaseException:  # after Ctrl-C here the step must not run on
            process.terminate()
            wait([process.sentinel])
            raise
        finally:
            with one_looks:
                process.join()
        if process.exitcode and process.exitcode < 0:
            sys.stdout.write(f"\n{ended_by(-process.exitcode)}\n")
        return process.exitcode or 0

    with replaced(SUBPROCESS, run):
        yield


def ended_by(number: int) -> str:
    """Message for the user about a step that a signal ended."""
    name = signal.Signals(number).name
    memory = ", most likely for lack of memory: lower the batch or image size" if name == "SIGKILL" else ""
    return f"{ERROR_MARK}the step was ended from outside by {name}{memory}; run again to continue"


def _step(source: str, arguments: list[str], environment: dict[str, str], folder: str, output: Connection) -> None:
    """In the forked process: what KFP's command line would do in a fresh one."""
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

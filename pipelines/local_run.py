"""Run a pipeline on this machine: each step a process of its own, under `kfp.local`."""

import builtins
import json
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.backbones.towers import uses_open_clip
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.pipeline_run import end_unfinished
from lfm.pipelines.fork_server import forked_steps
from lfm.pipelines.retrain import retraining_pipeline
from lfm.pipelines.step_output import StepOutput
from lfm.pipelines.sweep import sweep_pipeline
from lfm.pipelines.training import training_pipeline
from lfm.storage.artifact import home
from lfm.storage.store import NO_CACHE
from lfm.tracking.uri import tracking_uri


class StepFailedError(RuntimeError):
    """A step failed for a reason that is not the user's; the log has the traceback."""


@dataclass(frozen=True)
class Result:
    """The results of a local run."""

    folder: Path
    """Folder with all outputs of the steps."""
    log: Path
    """File with all that the steps printed."""

    @property
    def key(self) -> str:
        """Key by which MLflow has the run (`lfm.tracking.membership`)."""
        return self.folder.name

    @property
    def metrics(self) -> Path:
        """Folder with metrics.json of the step `evaluate`."""
        return self._output("evaluate", "metrics")

    @property
    def model_uri(self) -> str:
        """URI of the registered model."""
        return self._value("register")

    @property
    def news(self) -> str:
        """What a retraining found the data to be: changed or unchanged."""
        return self._value("prepare-retraining")

    @property
    def outcome(self) -> str:
        """What the model of a retraining became: champion or challenger."""
        return self._value("decide")

    def output(self, name: str) -> Path:
        """An output of a sweep's comparison: table, figure or report."""
        return self._output("compare", name)

    # KFP returns no output of a pipeline from inside an exit handler, so each is read from the step's own folder.

    def _output(self, step: str, name: str) -> Path:
        return next(self.folder.rglob(f"{step}/{name}"))

    def _value(self, step: str) -> str:
        output = json.loads(self._output(step, "executor_output.json").read_text())
        return str(output["parameterValues"]["Output"])


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


Runner = Callable[[RunConfig], AbstractContextManager[Any]]
"""Context manager made from the configuration; it gives the runner with which `kfp.local` runs the steps."""


@contextmanager
def in_processes(config: RunConfig) -> Iterator[Any]:
    """Run each step as a process of this environment."""
    from kfp import local

    with forked_steps(*(["open_clip"] if uses_open_clip(config.model) else [])) as call:
        try:
            yield local.SubprocessRunner(use_venv=False)
        except (KeyboardInterrupt, SystemExit):
            if not call(end_unfinished, "KILLED"):  # there: importing MLflow here would take seconds
                end_unfinished("KILLED")
            raise


def run_local(
    config: RunConfig,
    verbose: bool = False,
    runner: Runner = in_processes,
    registers: bool = True,
    no_cache: bool = False,
) -> Result:
    """Run the training pipeline of this configuration.

    Args:
        config: Checked configuration.
        verbose: Show everything, also the output of libraries.
        runner: Runner of the steps; entered once LFM_HOME and LFM_PIPELINE_RUN are set.
        registers: Register the model; False for a baseline.
        no_cache: Make every result again (`lfm.storage.store.own_inputs`).

    Raises:
        InputError: A step met an error that the user can correct.
        StepFailedError: A step failed otherwise.
    """
    return run_pipeline(training_pipeline(config, registers=registers), config, verbose, runner, no_cache)


def run_sweep(
    config: RunConfig,
    variants: Sequence[Mapping[str, Any]],
    parallelism: int = 1,
    verbose: bool = False,
    runner: Runner = in_processes,
    no_cache: bool = False,
) -> Result:
    """Run the sweep pipeline; arguments and errors as for `run_local` and `lfm.pipelines.sweep.sweep_pipeline`."""
    return run_pipeline(sweep_pipeline(config, variants, parallelism=parallelism), config, verbose, runner, no_cache)


def run_retraining(
    config: RunConfig, verbose: bool = False, runner: Runner = in_processes, no_cache: bool = False
) -> Result:
    """Run the retraining pipeline; arguments and errors as for `run_local`."""
    return run_pipeline(retraining_pipeline(config), config, verbose, runner, no_cache)


def run_pipeline(
    pipeline: Any, config: RunConfig, verbose: bool = False, runner: Runner = in_processes, no_cache: bool = False
) -> Result:
    """Run any pipeline with its default parameters; arguments and errors as for `run_local`."""
    from kfp import local

    tracking_uri()  # a wrong one is said before anything is begun
    key = uuid.uuid4().hex[:12]
    root = home() / "pipelines" / key
    root.mkdir(parents=True)
    log_path = root / "log.txt"
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    variables = {
        "LFM_HOME": str(home()),
        "LFM_SHARED_HOME": "1",  # every step is on this machine
        "LFM_PIPELINE_RUN": key,
        NO_CACHE: "1" if no_cache else os.environ.get(NO_CACHE, ""),
        "LFM_BARS": "1" if sys.stdout.isatty() else "",
        "PYTHONUNBUFFERED": "1",
    }
    os.environ.pop("MLFLOW_RUN_ID", None)  # here no plugin of KFP's has made a run for a step
    with log_path.open("w") as log, _environment(**variables):
        output, printer = StepOutput(sys.stdout, log, verbose), builtins.print
        try:
            with redirect_stdout(output), runner(config) as chosen:
                local.init(runner=chosen, pipeline_root=str(root))
                pipeline()
        except BaseException as error:
            logging.getLogger().handlers.clear()  # of kfp.local; they would print what urllib3 logs about a dead server
            if isinstance(error, Exception):  # after Ctrl-C and SIGTERM the runner has done it
                end_unfinished("FAILED")
            if isinstance(error, RuntimeError) and output.error:
                raise InputError(output.error) from error
            if isinstance(error, RuntimeError):
                raise StepFailedError(f"a step failed; its traceback is in {log_path}") from error
            raise
        finally:
            output.end_bar()
            logging.getLogger().handlers.clear()
            builtins.print = printer  # kfp.local replaces print to indent it, which breaks when steps run in parallel
    return Result(root, log_path)

"""Run a pipeline on this machine: each step a process of its own, under `kfp.local`."""

import builtins
import json
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.backbones.towers import uses_open_clip
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.pipeline_run import belong_to
from lfm.pipelines.fork_server import warm_steps
from lfm.pipelines.retrain import retraining_pipeline
from lfm.pipelines.step_output import StepOutput
from lfm.pipelines.sweep import sweep_pipeline
from lfm.pipelines.training import training_pipeline
from lfm.storage.artifact import home


class StepFailedError(RuntimeError):
    """A step ended with an error that is not the user's; the log has the traceback."""


@dataclass(frozen=True)
class Result:
    """What a local run left behind."""

    folder: Path
    """Everything that the steps put out."""
    log: Path

    @property
    def metrics(self) -> Path:
        """Folder with metrics.json of the evaluate step."""
        return self._output("evaluate", "metrics")

    @property
    def model_uri(self) -> str:
        """Of the registered model."""
        return self._answer("register")

    @property
    def news(self) -> str:
        """Of a retraining: changed or unchanged."""
        return self._answer("data-news")

    @property
    def outcome(self) -> str:
        """Of a retraining that trained: champion or challenger."""
        return self._answer("decide")

    def output(self, name: str) -> Path:
        """Of a sweep's comparison: table, figure or report."""
        return self._output("compare", name)

    # KFP takes no output of a pipeline from inside an exit handler, so each is looked up where its step put it.

    def _output(self, step: str, name: str) -> Path:
        return next(self.folder.rglob(f"{step}/{name}"))

    def _answer(self, step: str) -> str:
        said = json.loads(self._output(step, "executor_output.json").read_text())
        return str(said["parameterValues"]["Output"])


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
"""Takes the configuration; while it is entered, `kfp.local` runs steps with the runner that it gives."""


@contextmanager
def in_processes(config: RunConfig) -> Iterator[Any]:
    """Each step is a process of this environment."""
    from kfp import local

    with warm_steps(*(["open_clip"] if uses_open_clip(config.model) else [])):
        yield local.SubprocessRunner(use_venv=False)


def run_local(
    config: RunConfig, overrides: Mapping[str, Any], verbose: bool = False, runner: Runner = in_processes
) -> Result:
    """The training pipeline of this configuration's preset.

    Args:
        config: checked already; names the pipeline.
        overrides: what was changed from the preset.
        verbose: show everything, also what the libraries say.
        runner: what steps run in; entered once LFM_HOME and LFM_PIPELINE_RUN are set.

    Raises:
        InputError: a step found something that the user can mend.
        StepFailedError: a step failed otherwise.
    """
    return run_pipeline(training_pipeline(config.preset, overrides), config, verbose, runner)


def run_sweep(
    config: RunConfig,
    overrides: Mapping[str, Any],
    variants: Sequence[Mapping[str, Any]],
    parallelism: int = 1,
    verbose: bool = False,
    runner: Runner = in_processes,
) -> Result:
    """The sweep pipeline; arguments and errors as `run_local` and `lfm.pipelines.sweep.sweep_pipeline`."""
    pipeline = sweep_pipeline(config.preset, variants, overrides, parallelism=parallelism)
    return run_pipeline(pipeline, config, verbose, runner)


def run_retraining(
    config: RunConfig, overrides: Mapping[str, Any], verbose: bool = False, runner: Runner = in_processes
) -> Result:
    """The retraining pipeline; arguments and errors as `run_local`."""
    return run_pipeline(retraining_pipeline(config.preset, overrides), config, verbose, runner)


def run_pipeline(pipeline: Any, config: RunConfig, verbose: bool = False, runner: Runner = in_processes) -> Result:
    """Run any pipeline with its default parameters; arguments and errors as `run_local`."""
    from kfp import local

    key = uuid.uuid4().hex[:12]
    root = home() / "pipelines" / key
    root.mkdir(parents=True)
    log_path = root / "log.txt"
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    variables = {"LFM_HOME": str(home()), "LFM_PIPELINE_RUN": key, "PYTHONUNBUFFERED": "1"}
    with log_path.open("w") as log, _environment(**variables):
        output, printer = StepOutput(sys.stdout, log, verbose), builtins.print
        try:
            with redirect_stdout(output), runner(config) as chosen:
                local.init(runner=chosen, pipeline_root=str(root))
                pipeline()
        except BaseException as error:
            logging.getLogger().handlers.clear()  # kfp.local's; they would show what urllib3 says of a dead server
            _close(key)
            if isinstance(error, RuntimeError) and output.error:
                raise InputError(output.error) from error
            if isinstance(error, RuntimeError):
                raise StepFailedError(f"a step failed; its traceback is in {log_path}") from error
            raise
        finally:
            output.end_bar()
            logging.getLogger().handlers.clear()
            builtins.print = printer  # the indenting of kfp.local is not made for steps side by side
    return Result(root, log_path)


def _close(key: str) -> None:
    """End the run in MLflow where its exit handler did not come to it, as after Ctrl-C."""
    from lfm.tracking import pipeline_run

    belong_to(key)
    with suppress(InputError):
        pipeline_run.end_pipeline_run("FAILED")

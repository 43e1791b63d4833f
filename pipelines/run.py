"""Run a pipeline on this machine, or compile it for a cluster."""

import io
import logging
import os
import re
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lfm.artifact import home
from lfm.backbone import uses_open_clip
from lfm.config import InputError, RunConfig
from lfm.jobs import ERROR_MARK
from lfm.progress import MARK
from pipelines.longtail import pipeline_for
from pipelines.warm import warm_steps

BAR = re.compile(r"(\d+)% ▕")


class StepFailedError(RuntimeError):
    """A step ended with an error that is not the user's; the log has the traceback."""


@dataclass(frozen=True)
class Result:
    """What a local run left behind."""

    metrics: Path
    """Folder with metrics.json."""
    model_uri: str
    log: Path


class StepOutput(io.TextIOBase):
    """Stands in for standard output while KFP runs: everything goes to a log, our own lines to the user.

    Progress bars arrive as one line for each redraw. On a terminal a bar is redrawn in place, elsewhere one line
    in ten percent is shown.
    """

    def __init__(self, screen: TextIO, log: TextIO, verbose: bool) -> None:
        self.screen, self.log, self.verbose = screen, log, verbose
        self.live = screen.isatty()
        self.rest, self.error, self.bar, self.shown = "", "", False, -1

    def writable(self) -> bool:  # noqa: D102
        return True

    def write(self, text: str) -> int:  # noqa: D102
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.log.write(line + "\n")
            self._line(line.strip())
        return len(text)

    def flush(self) -> None:  # noqa: D102
        self.log.flush()
        self.screen.flush()

    def _line(self, line: str) -> None:
        if line.startswith(ERROR_MARK):
            self.error = line.removeprefix(ERROR_MARK)
        elif MARK in line and (bar := BAR.search(line)):
            self._bar(line[line.index(MARK) :], int(bar[1]))
        elif line.startswith(MARK.strip()) or self.verbose:
            self._end_bar()
            self.screen.write("  " + line.removeprefix(MARK.strip()).removeprefix(" ") + "\n")
            self.screen.flush()

    def _bar(self, line: str, percent: int) -> None:
        text = "  " + line.removeprefix(MARK)
        if self.live:
            self.screen.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self.bar = True
        elif percent // 10 != self.shown // 10:
            self.screen.write(text + "\n")
            self.shown = percent
        self.screen.flush()
        if percent == 100:
            self.shown = -1

    def _end_bar(self) -> None:
        if self.bar:
            self.screen.write("\n")
        self.bar = False


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def run_local(config: RunConfig, overrides: dict[str, Any], verbose: bool = False) -> Result:
    """The pipeline of this configuration's preset, each step a process of its own, under `kfp.local`.

    Args:
        config: checked already; names the pipeline.
        overrides: what was changed from the preset.
        verbose: show everything, also what the libraries say.

    Raises:
        InputError: a step found something that the user can mend.
        StepFailedError: a step failed otherwise.
    """
    from kfp import local

    from lfm import tracking

    key = uuid.uuid4().hex[:12]
    root = home() / "pipelines" / key
    root.mkdir(parents=True)
    log_path = root / "log.txt"
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    variables = {"LFM_HOME": str(home()), "LFM_PIPELINE_RUN": key, "PYTHONUNBUFFERED": "1"}
    with log_path.open("w") as log, _environment(**variables):
        output = StepOutput(sys.stdout, log, verbose)
        ok = False
        try:
            local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
            more = ["open_clip"] if uses_open_clip(config.model) else []
            with redirect_stdout(output), warm_steps(*more):
                task = pipeline_for(config.preset)(preset=config.preset, overrides=overrides)
            ok = True
        except RuntimeError as error:
            if output.error:
                raise InputError(output.error) from error
            raise StepFailedError(f"a step failed; its traceback is in {log_path}") from error
        finally:
            output._end_bar()
            logging.getLogger().handlers.clear()
            with suppress(InputError):  # a server that died takes no status; the step's own error is the one to show
                tracking.end_pipeline_run(ok)
    return Result(Path(task.outputs["metrics"].path), task.outputs["model_uri"], log_path)


def compile_pipeline(preset: str, target: Path) -> None:
    """Write the pipeline as YAML for a cluster."""
    from kfp import compiler

    compiler.Compiler().compile(pipeline_for(preset), str(target))

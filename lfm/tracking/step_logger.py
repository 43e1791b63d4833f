"""What a step writes to MLflow, at once into an SQLite file or through an outbox to a server."""

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.utils.time import get_current_time_millis

from lfm.config.overrides import flatten
from lfm.config.schema import RunConfig
from lfm.errors import InputError, PassingError
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import home
from lfm.storage.store import shared
from lfm.tracking.membership import Membership
from lfm.tracking.outbox import HEADER, Outbox, Record, RefusedError
from lfm.tracking.record_sender import DatasetUsed, RecordSender
from lfm.tracking.uri import is_server, server_address

ENDING = 5.0
"""Seconds that a step waits at its end for a server that is down."""
WORTH_SAYING = 5.0
"""Seconds of waiting that pass without a word."""


def outboxes() -> Path:
    """Where records wait for a server."""
    return home() / "outbox"


def patience() -> float:
    """LFM_MLFLOW_PATIENCE: seconds that a step waits for a server that it cannot go on without; default 120."""
    return float(os.environ.get("LFM_MLFLOW_PATIENCE") or 120)


class StepLogger:
    """What a step writes to MLflow: into its child run, and the pipeline run's parent above it.

    Args:
        step: its name.
    """

    def __init__(self, step: str) -> None:
        header = Membership.here().header(step) | {"to": server_address()}
        self._delivery, self._turn = RecordSender(header, fresh=not is_server()), threading.Lock()
        self._outbox = Outbox(outboxes(), header, partial(RecordSender, fresh=True)) if is_server() else None

    def _put(self, do: str, on: list[str], **values: Any) -> None:
        record = {"do": do, "on": on, "at": get_current_time_millis(), **values}
        if self._outbox:
            self._outbox.put(record)
        else:
            with self._turn:  # the thread that samples the system writes too
                self._deliver(record)

    def _deliver(self, record: Record) -> None:
        try:
            self._delivery(record)
        except RefusedError as error:
            raise error.__cause__ or error from None

    def begin(self) -> None:
        """Make the step's run.

        Raises:
            NotBegunError: The step belongs to no pipeline run. With a server this is found when the record is sent.
        """
        self._put("begin", [])

    def wait(self) -> None:
        """Wait until all that was written has arrived: what comes next needs the server.

        Raises:
            PassingError: it stays down for longer than `patience`.
        """
        if self._outbox is None or self._outbox.flush(WORTH_SAYING):
            return
        say(f"waiting for MLflow, {patience():.0f} s at most (LFM_MLFLOW_PATIENCE)")
        if not self._outbox.flush(patience() - WORTH_SAYING):
            raise PassingError(
                f"the MLflow server at {server_address()} has not answered for {patience():.0f} s; all that was made "
                f"is kept: start it, then give the same command again, and it goes on"
            ) from self._outbox.error

    @property
    def client(self) -> MlflowClient:
        """For what cannot be put off, as the registry; waits and raises as `wait`."""
        self.wait()
        return self._delivery.client

    @property
    def parent(self) -> str:
        """Run id of the pipeline run; waits and raises as `wait`."""
        self.wait()
        return self._delivery.parent

    def params(self, values: Mapping[str, Any], on_parent: bool = False) -> None:
        """Log parameters; the same value again is fine, as after a retry."""
        on = ["child", "parent"] if on_parent else ["child"]
        self._put("params", on, values={k: str(v) for k, v in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Tag both the step and the pipeline run."""
        self._put("tags", ["child", "parent"], values={k: str(v) for k, v in values.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a point of each curve on both the step and the pipeline run."""
        self._put("metrics", ["child", "parent"], values={k: float(v) for k, v in values.items()}, step=step)

    def system(self, values: Mapping[str, float], step: int) -> None:
        """Log a sample of what the machine does on the step."""
        self._put("metrics", ["child"], values=dict(values), step=step)

    def text(self, content: str, name: str) -> None:
        """Keep a text file among the pipeline run's artifacts."""
        self._put("text", ["parent"], content=content, name=name)

    def table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Keep a table among the pipeline run's artifacts, in the form that MLflow's evaluation view reads.

        Args:
            columns: of equal length.
            name: ends in .json.
        """
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.text(json.dumps({"columns": list(columns), "data": rows}), name)
        self._put("tags", ["parent"], values={"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a file among the pipeline run's artifacts."""
        kept = self._outbox.copy(path) if self._outbox else path
        self._put("file", ["parent"], path=str(kept), folder=folder)

    def folder(self, path: Path) -> None:
        """Keep all that a folder holds among the pipeline run's artifacts; sent side by side."""
        kept = self._outbox.copy(path) if self._outbox else path
        self._put("folder", ["parent"], path=str(kept))

    def inputs(self, used: list[DatasetUsed]) -> None:
        """Name the data that the step and the pipeline run used."""
        self._put("inputs", ["child", "parent"], values=[split._asdict() for split in used])

    def config(self, config: RunConfig) -> None:
        """The resolved configuration: a parameter a field, and a file that `lfm run` could repeat."""
        self.params(flatten(config), on_parent=True)
        self.text(yaml.safe_dump(config.model_dump(), sort_keys=False), "config.yaml")

    def end(self, status: str, on: str = "child") -> None:
        """Give the step's run (or the parent's) its final status."""
        self._put("end", [on], status=status)

    def end_pipeline(self, status: str | None) -> None:
        """Give the pipeline run its final status, None as its steps ended, and those below that are open theirs."""
        self._put("end_pipeline", [], status=status)

    def close(self, seconds: float) -> int:
        """Let go after at most so many seconds; how many records wait for a server that is down.

        They wait on disk, and at LFM_STORE, since a pod's disk ends with it.
        """
        if self._outbox is None:
            return 0
        left = self._outbox.close(seconds)
        remote = shared("outbox", self._outbox.folder.name)
        if left and remote:
            with suppress(InputError, OSError):
                # The header last: with it there, all is there.
                for path in sorted(self._outbox.folder.rglob("*"), key=lambda path: path.name == HEADER):
                    if path.is_file():
                        s3.upload(path, f"{remote}/{path.relative_to(self._outbox.folder)}")
        return left

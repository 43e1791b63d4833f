"""Which pipeline run a process belongs to."""

import os
import uuid
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.utils.time import get_current_time_millis

from lfm.errors import InputError
from lfm.tracking.client import find_run

KEY, ATTEMPT = "lfm.pipeline_run", "lfm.attempt"
PARENT = "mlflow.parentRunId"
KEY_VARIABLE = "LFM_PIPELINE_RUN"
PLUGIN_TAG = "kfp.pipeline_run_id"
"""On the run that KFP's MLflow plugin makes for a pipeline (KFP 2.17.0, apiserver/plugins/mlflow/util.go:34)."""


class NotBegunError(InputError):
    """A step belongs to no pipeline run."""


class Membership(NamedTuple):
    """Which pipeline run a process belongs to; goes with its records into the outbox."""

    key: str
    """Of the pipeline run, a sweep's variant as PARENT/VARIANT."""
    mlflow_run: str
    """The run that KFP's plugin made for the step, if it is at work."""

    @classmethod
    def here(cls) -> "Membership":
        """Of this process."""
        return cls(os.environ.get(KEY_VARIABLE, ""), os.environ.get("MLFLOW_RUN_ID", ""))

    def header(self, step: str) -> dict[str, Any]:
        """What goes before a step's records: whose they are."""
        return {**self._asdict(), "step": step, "attempt": uuid.uuid4().hex, "at": get_current_time_millis()}

    def lineage(self, client: MlflowClient) -> list[str]:
        """Run ids from the one that KFP's plugin made for the step up to the pipeline's; empty without the plugin.

        MLFLOW_RUN_ID may also be left over from other work of the same shell: only a run below one that carries the
        plugin's tag is the plugin's. Above that one there may be a run of ours, of a sweep in several parts.
        """
        line: list[str] = []
        above: str | None = self.mlflow_run
        while above:
            run = client.get_run(above)
            line.append(above)
            if PLUGIN_TAG in run.data.tags:
                return line
            above = run.data.tags.get(PARENT)
        return []

    def parent(self, client: MlflowClient) -> str | None:
        """Run id of the pipeline run (of a sweep's variant, inside one), if it has begun."""
        line = self.lineage(client)
        if line and "/" not in self.key:
            return line[-1]
        found = find_run(client, KEY, self.key) if self.key else None
        return str(found.info.run_id) if found else None

"""How records reach MLflow: runs found or made, each record once; a refusal is not a server that is down.

A server may be down for a while: training neither dies nor waits for it. Which pipeline run a process belongs to comes
from the environment, see `lfm.tracking.membership`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from lfm.tracking.client import connect, every, find_run
from lfm.tracking.membership import ATTEMPT, KEY, PARENT, Membership, NotBegunError
from lfm.tracking.outbox import Record, RefusedError

ENDED = ("FINISHED", "FAILED", "KILLED")
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class DatasetUsed(NamedTuple):
    """A split, as MLflow lists it among a run's inputs."""

    name: str
    context: str
    digest: str
    source: str
    schema: dict[str, Any]
    profile: dict[str, Any]


class RecordSender:
    """Carries a step's records to MLflow.

    Args:
        header: `key`, `mlflow_run`, `step`, `attempt` (names the step's run for as long as it is not made), `at`.
        folder: where the files lie that records name.
        fresh: nobody can have made the step's run yet, so that it need not be looked for.
    """

    def __init__(self, header: Mapping[str, Any], folder: Path = Path(), fresh: bool = False) -> None:
        self.header, self.folder, self.fresh = header, folder, fresh
        self._begun: dict[str, set[str]] = {}  # run -> curves that it had before
        self._sent: dict[tuple[str, str], set[int]] = {}  # (run, curve) -> its steps

    @cached_property
    def client(self) -> MlflowClient:
        """Connected once it is needed."""
        return connect()

    @cached_property
    def parent(self) -> str:
        """Run id of the pipeline run.

        Raises:
            NotBegunError: there is none.
        """
        found = Membership(self.header["key"], self.header["mlflow_run"]).parent(self.client)
        if found is None:
            step = self.header["step"]
            raise NotBegunError(f"step {step!r} found no pipeline run to belong to; its configure step must run first")
        return found

    @cached_property
    def by_plugin(self) -> bool:
        """Whether the pipeline run is KFP's own: then KFP sets its status."""
        membership = Membership(self.header["key"], self.header["mlflow_run"])
        return "/" not in membership.key and bool(membership.lineage(self.client))

    @cached_property
    def child(self) -> str:
        """Run id of the step, made unless it is there."""
        step, attempt, at = (self.header[name] for name in ("step", "attempt", "at"))
        line = Membership(self.header["key"], self.header["mlflow_run"]).lineage(self.client)
        if len(line) > 1:  # the plugin has made a run for this step
            self.client.update_run(line[0], name=step)
            return line[0]
        if not self.fresh and (found := find_run(self.client, ATTEMPT, attempt)):
            return str(found.info.run_id)
        where = self.client.get_run(self.parent).info.experiment_id
        self.fresh = False  # if no answer comes to what follows, it may be made all the same
        tags = {PARENT: self.parent, ATTEMPT: attempt}
        return str(self.client.create_run(where, start_time=at, tags=tags, run_name=step).info.run_id)

    def __call__(self, record: Record) -> None:
        """Carry one record; the same again does no harm.

        Raises:
            InputError, MlflowException, OSError: it did not arrive.
            RefusedError: it never will.
        """
        try:
            getattr(self, f"_{record['do']}")(record)
        except NotBegunError as error:
            raise RefusedError(str(error)) from error
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise RefusedError(error.message.splitlines()[0]) from error
            raise

    def _runs(self, record: Record) -> list[str]:
        return [getattr(self, name) for name in record["on"]]

    def _begin(self, record: Record) -> None:
        """Make the step's run. A pipeline run that had ended runs again: someone pressed Retry."""
        assert self.child
        run = self.client.get_run(self.parent)
        if not self.by_plugin and run.info.status != "RUNNING":
            self.client.update_run(self.parent, status="RUNNING")
            if (above := run.data.tags.get(PARENT)) and "/" not in self.header["key"]:
                self.client.update_run(above, status="RUNNING")

    def _params(self, record: Record) -> None:
        params = [Param(k, v) for k, v in record["values"].items()]
        for run in self._runs(record):
            self.client.log_batch(run, params=params)

    def _tags(self, record: Record) -> None:
        for run in self._runs(record):
            self.client.log_batch(run, tags=[RunTag(k, v) for k, v in record["values"].items()])

    def _metrics(self, record: Record) -> None:
        """A retried step sends its curves again, and the pipeline run has them from the first try: only new points."""
        points = [Metric(k, v, record["at"], record["step"]) for k, v in record["values"].items()]
        for run in self._runs(record):
            new = [point for point in points if point.step not in self._steps(run, point.key)]
            if new:
                self.client.log_batch(run, metrics=new)
            for point in new:
                self._steps(run, point.key).add(point.step)

    def _steps(self, run: str, key: str) -> set[int]:
        if run not in self._begun:  # one request where most runs have no curve yet, not one for each
            self._begun[run] = set(self.client.get_run(run).data.metrics)
        if (run, key) not in self._sent:
            history = self.client.get_metric_history(run, key) if key in self._begun[run] else []
            self._sent[run, key] = {point.step for point in history}
        return self._sent[run, key]

    def _text(self, record: Record) -> None:
        self.client.log_text(self.parent, record["content"], record["name"])

    def _file(self, record: Record) -> None:
        self.client.log_artifact(self.parent, str(self.folder / record["path"]), record["folder"] or None)

    def _folder(self, record: Record) -> None:
        self.client.log_artifacts(self.parent, str(self.folder / record["path"]))

    def _inputs(self, record: Record) -> None:
        used = [DatasetUsed(**values) for values in record["values"]]
        inputs = [
            DatasetInput(
                Dataset(d.name, d.digest, "code", d.source, json.dumps(d.schema), json.dumps(d.profile)),
                [InputTag("mlflow.data.context", d.context)],
            )
            for d in used
        ]
        for run in self._runs(record):
            self.client.log_inputs(run, inputs)

    def _end(self, record: Record) -> None:
        for name in record["on"]:
            if name != "parent" or not self.by_plugin:
                self.client.set_terminated(getattr(self, name), record["status"], end_time=record["at"])
            if name == "parent":
                self._settle_above(record["status"], record["at"])

    def _end_pipeline(self, record: Record) -> None:
        """Close the pipeline run, and the runs below it that are still open: those of variants and of killed steps."""
        try:
            parent = self.parent
        except NotBegunError:
            return
        info = self.client.get_run(parent).info
        below = self._below(parent, info.experiment_id)
        status = record["status"] or (info.status if info.status in ENDED else _ended_as(below))
        # A step or variant that is open when all has ended well was not the one that ended it.
        left = "FAILED" if status == "FINISHED" else status
        for run in below:
            if run.info.status not in ENDED:
                self.client.set_terminated(run.info.run_id, left, end_time=record["at"])
        if not self.by_plugin and status != info.status:
            self.client.set_terminated(parent, status, end_time=record["at"])
        self._settle_above(status, record["at"])

    def _settle_above(self, status: str, at: int) -> None:
        """Give a sweep in several parts, of which this pipeline run is one, the end that its parts came to.

        Args:
            status: That this part ended with.
            at: Milliseconds since 1970.
        """
        if "/" in self.header["key"]:  # a configuration's run is below its part's, which ends by itself
            return
        run = self.client.get_run(self.parent)
        if not (above := run.data.tags.get(PARENT)):
            return
        of = f"tags.`{PARENT}` = '{above}'"
        parts = {
            one.info.run_id: one.info.status for one in every(self.client.search_runs, [run.info.experiment_id], of)
        }
        ends = {**parts, self.parent: status}.values()
        if set(ends) <= set(ENDED):
            bad = [end for end in ends if end != "FINISHED"]
            self.client.set_terminated(above, bad[0] if bad else "FINISHED", end_time=at)

    def _below(self, parent: str, experiment: str) -> list[Run]:
        """The runs of its steps and variants, and of the steps of variants that are open; the first begun first."""
        of = f"tags.`{PARENT}` = '{parent}'"
        runs = list(every(self.client.search_runs, [experiment], of, order_by=["attributes.start_time ASC"]))
        open_variants = (run.info.run_id for run in runs if KEY in run.data.tags and run.info.status not in ENDED)
        return [*chain.from_iterable(self._below(variant, experiment) for variant in open_variants), *runs]


def _ended_as(below: Sequence[Run]) -> str:
    """How a pipeline ended of which KFP says RUNNING, as after Terminate, an eviction or a driver that failed.

    Args:
        below: runs of the steps, the first begun first; the last try of each step counts.
    """
    last = {run.info.run_name: run.info.status for run in below}
    # A step that was killed could say so; one that was given no time to is still open.
    return "FAILED" if "FAILED" in last.values() else "KILLED"

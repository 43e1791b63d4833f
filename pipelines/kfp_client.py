"""Submit, upload and schedule pipelines on Kubeflow Pipelines."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.config.run_parameters import pipeline_arguments
from lfm.config.schema import RunConfig
from lfm.config.sweeps import Part
from lfm.errors import InputError
from lfm.pipelines.capacity import report
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, pipeline_name, write
from lfm.pipelines.cron import check_cron
from lfm.pipelines.kfp_connection import connect, one_line_errors, run_page
from lfm.pipelines.kfp_names import run_name, schedule_name
from lfm.pipelines.kfp_requests import plugins_input, start_run, start_schedule
from lfm.progress import say
from lfm.revision import commit

POLL = 5.0
"""Seconds between two looks at a run."""
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")
NEWEST = 500
"""Runs that are looked at for one that goes on."""


@dataclass(frozen=True)
class Schedule:
    """A recurring run.

    Args:
        id: Identifier that KFP gave it.
        name: Name of the pipeline that it runs.
        cron: Cron expression with six fields.
        enabled: Whether it starts runs, rather than being paused.
    """

    id: str
    name: str
    cron: str
    enabled: bool


class Cluster:
    """A connection to KFP.

    Args:
        host: Address of the API, as in https://kubeflow.example/pipeline; empty: KF_PIPELINES_ENDPOINT, else the
            cluster that this runs in, or that kubectl knows.
        namespace: Namespace in a multi-user installation.

    Raises:
        InputError: Nothing answers there, it refuses, or it is not KFP.
    """

    def __init__(self, host: str = "", namespace: str = "") -> None:
        self.host = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
        self.client, self.namespace = connect(self.host, namespace)

    def submit(
        self,
        config: RunConfig,
        settings: ClusterSettings,
        experiment: str = "",
        kind: str = "train",
        **options: Any,
    ) -> str:
        """Start a run of this configuration: the run's id.

        Args:
            config: Checked configuration.
            settings: Settings of the cluster.
            experiment: Experiment in KFP; empty: the preset's name.
            kind: Kind of pipeline.
            options: Further arguments of the function that makes the pipeline, as `registers`, `variants` or `part`.
        """
        part: Part | None = options.get("part")
        shown = f"{kind} {part.number} of {part.of}" if part else kind
        parameters = pipeline_arguments(config)
        with _compiled(kind, config, settings, **options) as path:
            for line in report(path, int(parameters["gpus"]), settings):
                say(line)
            with self._one_line_errors():
                return start_run(
                    self.client,
                    path,
                    parameters=parameters,
                    display_name=run_name(shown, config),
                    **self._fields(config, settings, experiment),
                )

    def _fields(self, config: RunConfig, settings: ClusterSettings, experiment: str) -> dict[str, Any]:
        """What runs and recurring runs have in common: experiments in KFP and in MLflow, service account."""
        where = self.client.create_experiment(experiment or config.preset, namespace=self.namespace)
        return {
            "experiment_id": where.experiment_id,
            "service_account": settings.service_account or None,
            "plugins_input": plugins_input(settings, config.preset),
        }

    def wait(self, run: str, on_state: Callable[[str], None] = lambda state: None) -> str:
        """Wait until a run has ended: its last state in KFP. Unlike in the SDK, a cancelled run ends too.

        Args:
            run: Id of the run.
            on_state: Function that is called with each new state.
        """
        state = ""
        while state not in ENDED:
            if state:
                time.sleep(POLL)
            with self._one_line_errors():
                now = str(self.client.get_run(run).state or "PENDING")
            if now != state:
                on_state(now)
            state = now
        return state

    def run_page(self, run: str) -> str:
        """Address of a run in the UI."""
        return run_page(self.host, run)

    def upload(self, kind: str, config: RunConfig, settings: ClusterSettings) -> tuple[str, str]:
        """Upload a pipeline, as a new version if its name exists: ids of pipeline and version."""
        name = pipeline_name(kind, config.preset)
        with _compiled(kind, config, settings) as path, self._one_line_errors():
            pipeline = self._pipeline_id(name)
            if pipeline is None:
                pipeline = self.client.upload_pipeline(
                    str(path), pipeline_name=name, namespace=self.namespace
                ).pipeline_id
                versions = self.client.list_pipeline_versions(pipeline, sort_by="created_at desc").pipeline_versions
                return str(pipeline), str(versions[0].pipeline_version_id)
            version = f"{commit()} {time.strftime('%Y-%m-%d %H:%M:%S')}"
            made = self.client.upload_pipeline_version(str(path), pipeline_version_name=version, pipeline_id=pipeline)
        return str(pipeline), str(made.pipeline_version_id)

    def _pipeline_id(self, name: str) -> str | None:
        """The id of a pipeline by its name. The SDK's function looks in no namespace, so it finds none of a user's."""
        wanted = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
        found = self.client.list_pipelines(namespace=self.namespace or "", filter=json.dumps(wanted)).pipelines
        return str(found[0].pipeline_id) if found else None

    def schedule(self, config: RunConfig, cron: str, settings: ClusterSettings, experiment: str = "") -> Schedule:
        """Retrain at these times: one run at a time; missed runs are not made up for.

        Raises:
            InputError: KFP would read the cron expression otherwise than meant, or the preset has a schedule already.
        """
        cron = check_cron(cron)
        preset = config.preset
        for known in self.schedules():
            if known.name == pipeline_name("retrain", preset):
                raise InputError(f"{preset} has a schedule, {known.cron}; change it with lfm schedule replace {preset}")
        return self._create(config, cron, settings, experiment)

    def _create(self, config: RunConfig, cron: str, settings: ClusterSettings, experiment: str) -> Schedule:
        pipeline, version = self.upload("retrain", config, settings)
        with self._one_line_errors():
            # Caching is not named here: with a pipeline version KFP ignores it, so it is compiled in.
            made = start_schedule(
                self.client,
                pipeline,
                version,
                cron,
                display_name=schedule_name(config.preset),
                parameters=pipeline_arguments(config),
                **self._fields(config, settings, experiment),
            )
        return _schedule(made)

    def schedules(self) -> list[Schedule]:
        """All recurring runs."""
        found: list[Schedule] = []
        page = ""
        while True:
            with self._one_line_errors():
                answer = self.client.list_recurring_runs(page_token=page, page_size=100, namespace=self.namespace)
            found += [_schedule(run) for run in answer.recurring_runs or ()]
            page = answer.next_page_token or ""
            if not page:
                return found

    def find_schedule(self, preset: str) -> Schedule:
        """The schedule of a preset, by its name or id.

        Raises:
            InputError: There is none, or there are several.
        """
        found = [
            one
            for one in self.schedules()
            if one.id == preset or one.name in (preset, pipeline_name("retrain", preset))
        ]
        if not found:
            raise InputError(f"there is no schedule for {preset}; lfm schedule list shows what there is")
        if len(found) > 1:
            raise InputError(
                f"{preset} has {len(found)} schedules: {', '.join(s.id for s in found)}; name one by its id"
            )
        return found[0]

    def pause(self, schedule: Schedule) -> None:
        """Start no more runs until `resume`."""
        with self._one_line_errors():
            self.client.disable_recurring_run(schedule.id)

    def resume(self, schedule: Schedule) -> None:
        """Start runs again; missed runs are not made up for."""
        with self._one_line_errors():
            self.client.enable_recurring_run(schedule.id)

    def delete(self, schedule: Schedule) -> None:
        """Delete a schedule; what its runs made remains.

        Raises:
            InputError: One of its runs goes on.
        """
        self._refuse_at_work(schedule)
        with self._one_line_errors():
            self.client.delete_recurring_run(schedule.id)

    def _refuse_at_work(self, schedule: Schedule) -> None:
        """Refuse while a run of the schedule goes on.

        Seen with KFP 2.17.0: with a schedule go the workflows that it owns. A run that goes on loses its pods without
        its exit handler, and is RUNNING in KFP and MLflow for good.
        """
        page, seen = "", 0
        while seen < NEWEST:  # newest first: one that goes on is among them
            with self._one_line_errors():
                answer = self.client.list_runs(
                    page_token=page, page_size=100, sort_by="created_at desc", namespace=self.namespace
                )
            for run in answer.runs or ():
                if run.recurring_run_id == schedule.id and str(run.state or "PENDING") not in ENDED:
                    raise InputError(
                        f"{schedule.name}: its run {run.run_id} goes on, and KFP would remove that with the schedule; "
                        "lfm schedule pause starts no more, then try again when it has ended, or terminate it at "
                        f"{self.run_page(run.run_id)}"
                    )
            page, seen = answer.next_page_token or "", seen + len(answer.runs or ())
            if not page:
                return

    def replace(self, config: RunConfig, cron: str, settings: ClusterSettings, experiment: str = "") -> Schedule:
        """Replace a schedule, which KFP cannot change, by a new one. The new one is made first.

        Raises:
            InputError: A run of the old one goes on.
        """
        old = self.find_schedule(config.preset)
        self._refuse_at_work(old)
        made = self._create(config, check_cron(cron), settings, experiment)
        self.delete(old)
        return made

    def _one_line_errors(self) -> AbstractContextManager[None]:
        return one_line_errors(self.host)


def _schedule(run: Any) -> Schedule:
    cron = run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else ""
    # Shown without the hyphen of `schedule_name`, which schedules of earlier versions lack.
    name = str(run.display_name).removesuffix("-")
    return Schedule(str(run.recurring_run_id), name, cron or "", run.status != "DISABLED")


@contextlib.contextmanager
def _compiled(kind: str, config: RunConfig, settings: ClusterSettings, **options: Any) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline_name(kind, config.preset)}.yaml"
        write(KINDS[kind](config, settings, **options), path)
        yield path

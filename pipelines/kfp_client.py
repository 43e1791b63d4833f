"""Talk to Kubeflow Pipelines: submit, upload, schedule. Who we are is the KFP SDK's own environment to say."""

import contextlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lfm.config.run_parameters import divide
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import pipeline_name, pipeline_of, write
from lfm.pipelines.cron import check_cron
from lfm.revision import commit

TIMEOUT = (5, 15)
"""Seconds to connect and to answer, of the first question."""
POLL = 5.0
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")
REFUSED = (
    "log in as the KFP SDK does (KF_PIPELINES_SA_TOKEN_PATH, KF_PIPELINES_IAP_OAUTH2_CLIENT_ID, or a cookie in "
    "~/.config/kfp/context.json), and in a multi-user installation name your namespace with --namespace"
)


@dataclass(frozen=True)
class Schedule:
    """A recurring run.

    Args:
        id: KFP's.
        name: the pipeline's that it runs.
        cron: its six fields.
        enabled: or paused.
    """

    id: str
    name: str
    cron: str
    enabled: bool


class Cluster:
    """A connection to KFP.

    Args:
        host: address of the API, as in https://kubeflow.example/pipeline; empty: KF_PIPELINES_ENDPOINT, else the
            cluster that this runs in, or that kubectl knows.
        namespace: of a multi-user installation.

    Raises:
        InputError: nothing answers there, it refuses, or it is not KFP.
    """

    def __init__(self, host: str = "", namespace: str = "") -> None:
        import kfp

        class Client(kfp.Client):
            def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
                """Ask once: the SDK asks a server that refuses five times, with a wait and a traceback each."""
                api = self._healthz_api
                answer = api.healthz_service_get_healthz(_request_timeout=TIMEOUT, _preload_content=False)
                # Read here: the SDK takes any page for an answer in which nothing is set.
                return SimpleNamespace(multi_user=json.loads(answer.data).get("multi_user") is True)

        self.host = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
        self.namespace = namespace or None
        if not self.host and not _inside_a_cluster() and not _kubectl_configured():
            raise InputError("no KFP to talk to; name it with --host https://... or KF_PIPELINES_ENDPOINT")
        with self._told(first=True):
            self.client = Client(host=self.host or None, credentials=_credentials())
            self.client.get_kfp_healthz()

    def submit(
        self, preset: str, overrides: Mapping[str, Any], settings: ClusterSettings, experiment: str, kind: str = "train"
    ) -> str:
        """Start a run with these values in its form: the run's id."""
        form, rest = divide(preset, overrides)
        with _compiled(kind, preset, overrides, settings) as path, self._told():
            run = self.client.create_run_from_pipeline_package(
                str(path),
                arguments={**form, "overrides": rest},
                run_name=f"{pipeline_name(kind, preset)} {time.strftime('%Y-%m-%d %H:%M:%S')}",
                experiment_name=experiment or preset,
                namespace=self.namespace,
            )
        return str(run.run_id)

    def wait(self, run: str, tell: Callable[[str], None] = lambda state: None) -> str:
        """Wait until a run has ended: KFP's word for how. A cancelled run ends too, unlike for the SDK."""
        state = ""
        while state not in ENDED:
            if state:
                time.sleep(POLL)
            with self._told():
                now = str(self.client.get_run(run).state or "PENDING")
            if now != state:
                tell(now)
            state = now
        return state

    def run_page(self, run: str) -> str:
        """Address of a run in the UI."""
        with self._told():
            return f"{self.client._get_url_prefix()}/#/runs/details/{run}"

    def upload(
        self, kind: str, preset: str, overrides: Mapping[str, Any], settings: ClusterSettings
    ) -> tuple[str, str]:
        """Upload a pipeline, as a new version where its name is known: ids of pipeline and version."""
        name = pipeline_name(kind, preset)
        with _compiled(kind, preset, overrides, settings) as path, self._told():
            pipeline = self.client.get_pipeline_id(name)
            if pipeline is None:
                pipeline = self.client.upload_pipeline(
                    str(path), pipeline_name=name, namespace=self.namespace
                ).pipeline_id
                versions = self.client.list_pipeline_versions(pipeline, sort_by="created_at desc").pipeline_versions
                return str(pipeline), str(versions[0].pipeline_version_id)
            label = f"{commit()} {time.strftime('%Y-%m-%d %H:%M:%S')}"
            made = self.client.upload_pipeline_version(str(path), pipeline_version_name=label, pipeline_id=pipeline)
        return str(pipeline), str(made.pipeline_version_id)

    def schedule(
        self, preset: str, overrides: Mapping[str, Any], cron: str, settings: ClusterSettings, experiment: str
    ) -> Schedule:
        """Retrain a preset at these times: one run at a time, and missed ones are not made up for.

        Raises:
            InputError: a cron expression that KFP reads otherwise than meant, or a schedule that is there already.
        """
        cron = check_cron(cron)
        name = pipeline_name("retrain", preset)
        for known in self.schedules():
            if known.name == name:
                raise InputError(f"{preset} has a schedule, {known.cron}; change it with lfm schedule replace {preset}")
        return self._create(preset, overrides, cron, settings, experiment)

    def _create(
        self, preset: str, overrides: Mapping[str, Any], cron: str, settings: ClusterSettings, experiment: str
    ) -> Schedule:
        pipeline, version = self.upload("retrain", preset, overrides, settings)
        form, rest = divide(preset, overrides)
        with self._told():
            where = self.client.create_experiment(experiment or preset, namespace=self.namespace).experiment_id
            # Unset, no_catchup would start every run that was missed while the schedule was paused. Caching is not
            # named here: with a pipeline version KFP drops it, so it is compiled in.
            made = self.client.create_recurring_run(
                experiment_id=where,
                job_name=pipeline_name("retrain", preset),
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params={**form, "overrides": rest},
                pipeline_id=pipeline,
                version_id=version,
                enabled=True,
            )
        return _schedule(made)

    def schedules(self) -> list[Schedule]:
        """All recurring runs."""
        found: list[Schedule] = []
        page = ""
        while True:
            with self._told():
                answer = self.client.list_recurring_runs(page_token=page, page_size=100, namespace=self.namespace)
            found += [_schedule(run) for run in answer.recurring_runs or ()]
            page = answer.next_page_token or ""
            if not page:
                return found

    def find_schedule(self, preset: str) -> Schedule:
        """The schedule of a preset, by its name or id.

        Raises:
            InputError: none, or several.
        """
        names = (preset, pipeline_name("retrain", preset))
        found = [one for one in self.schedules() if one.id == preset or one.name in names]
        if not found:
            raise InputError(f"there is no schedule for {preset}; lfm schedule list shows what there is")
        if len(found) > 1:
            raise InputError(
                f"{preset} has {len(found)} schedules: {', '.join(s.id for s in found)}; name one by its id"
            )
        return found[0]

    def pause(self, schedule: Schedule) -> None:
        """Start no more runs until `resume`."""
        with self._told():
            self.client.disable_recurring_run(schedule.id)

    def resume(self, schedule: Schedule) -> None:
        """Start runs again; those missed are not made up for."""
        with self._told():
            self.client.enable_recurring_run(schedule.id)

    def delete(self, schedule: Schedule) -> None:
        """Forget a schedule; its runs stay."""
        with self._told():
            self.client.delete_recurring_run(schedule.id)

    def replace(
        self, preset: str, overrides: Mapping[str, Any], cron: str, settings: ClusterSettings, experiment: str
    ) -> Schedule:
        """A new schedule for the old one, which KFP cannot change. The new one is made first."""
        old = self.find_schedule(preset)
        made = self._create(preset, overrides, check_cron(cron), settings, experiment)
        self.delete(old)
        return made

    @contextlib.contextmanager
    def _told(self, first: bool = False) -> Iterator[None]:
        """The SDK's errors in one line that says what to check; its own prints stay out of ours.

        Args:
            first: what answers may be no KFP at all.
        """
        import kfp_server_api
        from urllib3.exceptions import HTTPError

        at = self.host or "the cluster's own address"
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except kfp_server_api.ApiException as error:
            raise InputError(_refusal(at, error.status, error.reason, error.body)) from error
        except HTTPError as error:
            raise InputError(
                f"nothing answers at {at}: check the address, the port-forward or VPN, and proxies"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            if first:  # what the SDK makes of an answer that is not KFP's
                raise InputError(f"{at} answers, but not as KFP; check the path, often /pipeline") from error
            if isinstance(error, ValueError):
                raise InputError(f"{at}: {error}") from error
            raise


def _refusal(at: str, status: int | None, reason: str | None, body: Any) -> str:
    if status in (401, 403):
        return f"{at} refuses ({status}): {REFUSED}"
    if status == 404:
        return f"{at} knows no such thing (404): check the path, often /pipeline, and that what you name is still there"
    message = reason or ""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        told = json.loads(body)
        message = str(told.get("message") or told["error"])
    return f"{at} answers with an error ({status}): {message.splitlines()[0] if message else 'it gives no reason'}"


def _schedule(run: Any) -> Schedule:
    cron = run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else ""
    return Schedule(str(run.recurring_run_id), str(run.display_name), cron or "", run.status != "DISABLED")


@contextlib.contextmanager
def _compiled(kind: str, preset: str, overrides: Mapping[str, Any], settings: ClusterSettings) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline_name(kind, preset)}.yaml"
        write(pipeline_of(kind, preset, overrides, settings), path)
        yield path


def _credentials() -> Any:
    """The token of a service account, where the SDK's own variable says it lies."""
    if not os.environ.get("KF_PIPELINES_SA_TOKEN_PATH"):
        return None
    from kfp.client import ServiceAccountTokenVolumeCredentials

    return ServiceAccountTokenVolumeCredentials()


def _inside_a_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _kubectl_configured() -> bool:
    return bool(os.environ.get("KUBECONFIG")) or (Path.home() / ".kube" / "config").is_file()

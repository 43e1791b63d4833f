"""What MLflow keeps in LFM_HOME and nobody needs: versions without a part to play, runs, and the files of both.

MLflow's own `mlflow gc` leaves the files of models behind, or takes them from under a registered version; here what a
version needs is found first. Runs that were not made by lfm stay.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run

from lfm.storage.artifact import home
from lfm.storage.old_entries import DAY
from lfm.tracking import registry
from lfm.tracking.client import connect, connect_to_read, every
from lfm.tracking.database import ARTIFACTS
from lfm.tracking.membership import KEY
from lfm.tracking.registry import BEFORE, CHAMPION, Version
from lfm.tracking.uri import sqlite_file

ABOVE = "mlflow.parentRunId"
LONGEST_RUN = 30 * DAY
"""Seconds after which a run that never ended counts as killed."""


@dataclass
class OldRun:
    """A pipeline run that may go, with the runs below it.

    Args:
        top: its own run.
        runs: that and those below, by id.
        models: ids of the models that they logged.
        folders: of their files in LFM_HOME.
    """

    top: Run
    runs: list[str]
    models: list[str]
    folders: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What would go.

    Args:
        versions: of registered models.
        runs: with their files.
        needed: contents of artifacts that the versions that stay were made of.
        busy_since: seconds since 1970 when the oldest run began that is at work now; infinite without any.
    """

    versions: list[Version]
    runs: list[OldRun]
    needed: set[str]
    busy_since: float


def plan(before: float, keep: int) -> Plan:
    """Versions and runs of before a moment that nothing needs; those of a server, which are of others too, all stay.

    A version stays if it has an alias, if a rollback would lead to it, or if it is among the newest of its model. A run
    stays if a version that stays, of any model, came from it or has its files there, and while it is at work.

    Args:
        before: Seconds since 1970.
        keep: Number of versions of each model that stay in any case.
    """
    client, found = connect_to_read(), registry.versions()
    before = before if sqlite_file() else 0
    stays = _stay(found, keep) | {version.uri for version in found if version.made >= 1000 * before}
    kept = [version for version in found if version.uri in stays]
    tags = (registry.CONTENT, registry.DATASET)
    needed = {version.tags[tag] for version in kept for tag in tags if tag in version.tags}
    experiments = [one.experiment_id for one in every(client.search_experiments)]
    runs = {run.info.run_id: run for run in every(client.search_runs, experiments)} if experiments else {}
    begun = (run.info.start_time / 1000 for run in runs.values() if _at_work(run))
    old = _old_runs(client, before, kept, experiments, runs) if sqlite_file() else []
    return Plan([one for one in found if one.uri not in stays], old, needed, min(begun, default=float("inf")))


def _at_work(run: Run) -> bool:
    """Whether a run goes on; one that was killed without a word is open for ever."""
    return bool(run.info.status == "RUNNING" and run.info.start_time / 1000 > time.time() - LONGEST_RUN)


def _stay(found: Iterable[Version], keep: int) -> set[str]:
    by_model: dict[str, list[Version]] = {}
    for version in found:  # the newest first
        by_model.setdefault(version.name, []).append(version)
    stays: set[str] = set()
    for versions in by_model.values():
        by_number = {version.number: version for version in versions}
        stays |= {version.uri for version in versions[:keep]} | {v.uri for v in versions if v.aliases}
        champion = next((version for version in versions if CHAMPION in version.aliases), None)
        led_to: set[str] = set()  # promotions and rollbacks can go round in a circle
        while champion and champion.uri not in led_to:
            led_to.add(champion.uri)
            champion = by_number.get(champion.tags.get(BEFORE, ""))
        stays |= led_to
    return stays


def _old_runs(
    client: MlflowClient, before: float, kept: Iterable[Version], experiments: list[str], runs: dict[str, Run]
) -> list[OldRun]:
    logged = every(client.search_logged_models, experiments)
    models = [(one.model_id, one.source_run_id, _above(one.artifact_location)) for one in logged]
    used = [_source(client, version) for version in kept]
    needed = {version.run for version in kept} | {run for model, run, _ in models if any(model in uri for uri in used)}
    paths = [path for uri in used if (path := _folder(uri))]
    trees: dict[str, list[str]] = {}
    for run_id in runs:
        trees.setdefault(_top(runs, run_id), []).append(run_id)
    found = []
    for top, members in trees.items():
        own = [(model, folder) for model, run, folder in models if run in members]
        folders = [
            folder
            for folder in (*(_above(runs[one].info.artifact_uri) for one in members), *(f for _, f in own))
            if folder
        ]
        if (
            KEY in runs[top].data.tags
            and not any(_at_work(runs[run]) for run in members)
            and max(runs[run].info.end_time or runs[run].info.start_time for run in members) < 1000 * before
            and not needed & set(members)
            and not any(path.is_relative_to(folder) for path in paths for folder in folders)
        ):
            found.append(OldRun(runs[top], members, [model for model, _ in own], folders))
    return found


def _source(client: MlflowClient, version: Version) -> str:
    """Where a version's files are: models:/ID of a logged model, or an address."""
    return str(client.get_model_version(version.name, version.number).source)


def _top(runs: dict[str, Run], run_id: str) -> str:
    """The run above all; a run whose own was deleted stands for itself."""
    while (above := runs[run_id].data.tags.get(ABOVE, "")) in runs:
        run_id = above
    return run_id


def _above(uri: str) -> Path | None:
    """Folder of all files of a run or logged model: the one above `artifacts`."""
    folder = _folder(uri)
    alone = folder and folder.name == "artifacts" and folder.parent != (home() / ARTIFACTS).resolve()
    return folder.parent if folder and alone else None


def _folder(uri: str) -> Path | None:
    """The folder that an address names, if it is among the artifacts of LFM_HOME."""
    address = urlsplit(uri)
    path = Path(unquote(address.path)).resolve()
    return path if address.scheme == "file" and (home() / ARTIFACTS).resolve() in path.parents else None


def remove(found: Plan) -> None:
    """Delete what `plan` found, the versions first, so that none is there whose files are gone.

    What runs measured goes to MLflow's trash, which `mlflow gc` empties and `mlflow runs restore` brings back.
    """
    client = connect()
    for version in found.versions:
        client.delete_model_version(version.name, version.number)
    for run in found.runs:
        for model in run.models:
            client.delete_logged_model(model)
        for folder in run.folders:
            if folder.is_dir():
                shutil.rmtree(folder)
        for run_id in run.runs:
            client.delete_run(run_id)

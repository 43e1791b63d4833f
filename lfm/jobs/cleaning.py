"""Old versions, runs and entries of the store in LFM_HOME: what could go, and its removal."""

import time
from dataclasses import dataclass

from lfm.errors import InputError
from lfm.storage import old_entries
from lfm.storage.old_entries import DAY, Old
from lfm.tracking import old_runs
from lfm.tracking.past_runs import when


@dataclass(frozen=True)
class Cleaning:
    """What would go.

    Args:
        mlflow: versions and runs.
        folders: of the store, of unfinished work and of local runs.
    """

    mlflow: old_runs.Plan
    folders: list[Old]

    @property
    def lines(self) -> list[tuple[str, str, int]]:
        """Of each thing what it is, its date and its size in bytes."""
        versions = [(f"version {version.uri}", when(version.made), 0) for version in self.mlflow.versions]
        runs = [
            (f"run {run.top.info.run_id[:12]} ({run.top.info.run_name}) with its files",
             when(run.top.info.start_time), old_entries.size_of(run.folders))
            for run in self.mlflow.runs
        ]  # fmt: skip
        folders = [(one.what, when(int(1000 * one.used)), old_entries.size_of([one.path])) for one in self.folders]
        return versions + runs + folders

    @property
    def bytes(self) -> int:
        """Of all together; files that several of them share count once."""
        runs = [folder for run in self.mlflow.runs for folder in run.folders]
        return old_entries.size_of(runs + [one.path for one in self.folders])


def look(days: float, keep: int) -> Cleaning:
    """What was not used for so many days and nothing needs.

    Args:
        days: Since the last use.
        keep: Number of versions of each model that stay whatever their age.

    Raises:
        InputError: MLflow does not answer: without it nobody knows what is needed.
    """
    before = time.time() - days * DAY
    found = old_runs.plan(before, keep)
    return Cleaning(found, old_entries.find(min(before, found.busy_since), found.needed))


def clean(found: Cleaning) -> list[Old]:
    """Remove it.

    Returns:
        What stayed because it is being made or read right now.

    Raises:
        InputError: LFM_HOME cannot be written.
    """
    try:
        old_runs.remove(found.mlflow)
        return [one for one in found.folders if not old_entries.remove(one.path)]
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be removed ({error.strerror}); run this as its owner") from error

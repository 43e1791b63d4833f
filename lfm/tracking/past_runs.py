"""Past runs, read back from MLflow: which there are, how they differ, their curves and files."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from lfm.config.overrides import flatten
from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.progress import no_other_bars
from lfm.tracking.client import connect_to_read, every, find_run
from lfm.tracking.membership import KEY
from lfm.tracking.registry import TEST, TRAIN

GROUPS = ("many", "medium", "few", "all")
# What changes neither the weights nor what they are scored on.
ELSEWHERE = {
    "fidelity", "preset", "data.source", "data.images", "data.class_names", "data.verify", "data.decode",
    "data.decode_gb", "data.on_bad_image", "data.max_bad", "data.max_megapixels",
}  # fmt: skip
CURVES = ("stage1/", "stage2/")


def when(milliseconds: int) -> str:
    """A moment, given in milliseconds since 1970, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(milliseconds / 1000))


@dataclass(frozen=True)
class Past:
    """A pipeline run that was evaluated.

    Args:
        run_id: in MLflow.
        name: there.
        experiment: its id.
        finished: whether it ended well.
        began: milliseconds since 1970.
        params: the configuration, as text.
        tags: provenance.
        metrics: the last value of each.
    """

    run_id: str
    name: str
    experiment: str
    finished: bool
    began: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def method(self) -> str:
        """As in tables."""
        return self.tags.get("lfm.method", self.name)

    @property
    def date(self) -> str:
        """When it began, in UTC."""
        return when(self.began)

    @property
    def data(self) -> str:
        """Name and imbalance of its data, and the beginning of the hash of its test images."""
        name = self.tags.get("lfm.data", self.params.get("data.name", ""))
        return f"{name}, test {self.test_images[:8]}" if self.test_images else name

    @property
    def seed(self) -> str:
        """Of the run."""
        return self.params.get("seed", "")

    def scores(self, prefix: str = "test") -> dict[str, float | None]:
        """many, medium, few, all in percent; None for an absent group."""
        return {name: self.metrics.get(f"{prefix}/{name}") for name in GROUPS}

    @property
    def adjusted(self) -> dict[str, float | None] | None:
        """`scores` with adjusted logits, and the `strength`; None for a run without such scores."""
        strength = self.metrics.get("adjusted/strength")
        return None if strength is None else self.scores("adjusted") | {"strength": strength}

    def science(self) -> dict[str, str]:
        """The fields that decide what was learnt and on what it was scored."""
        return {k: v for k, v in self.params.items() if k not in ELSEWHERE and not k.startswith("train.")}

    @property
    def test_images(self) -> str:
        """Names the images and labels that the run was scored on; empty for a run of an older version."""
        return self.tags.get(TEST, "")

    def same_test(self, other: "Past") -> bool:
        """Whether both runs were scored on the same images and labels, in the same order."""
        return bool(self.test_images) and self.test_images == other.test_images

    def same_data(self, other: "Past") -> bool:
        """Whether both runs were scored on the same test images and trained on the same training images.

        Where a seed draws a long-tailed subset, runs of other seeds have other training images by design.
        """
        drawn = self.seed != other.seed and self.params.get("data.profile") != "as-is"
        return self.same_test(other) and (drawn or self.tags.get(TRAIN) == other.tags.get(TRAIN))

    def differs(self, other: "Past") -> set[str]:
        """Fields of `science` that differ; one that only one of the two knows does not."""
        ours, theirs = self.science(), other.science()
        return {k for k in ours.keys() & theirs.keys() if ours[k] != theirs[k]}


def id_of(key: str) -> str:
    """Run id of the pipeline run with this key; empty while there is none.

    Raises:
        InputError: the tracking server does not answer.
    """
    found = find_run(connect_to_read(), KEY, key)
    return str(found.info.run_id) if found else ""


def by_id(run_ids: Iterable[str]) -> dict[str, Past]:
    """The runs with these ids, those that are deleted left out."""
    client, found = connect_to_read(), {}
    for run_id in set(run_ids) - {""}:
        with suppress(MlflowException):
            found[run_id] = _past(client.get_run(run_id))
    return found


def evaluated(experiments: Sequence[str] = ()) -> list[Past]:
    """All evaluated pipeline runs, the newest first.

    Args:
        experiments: ids; empty: all.

    Raises:
        InputError: the tracking server does not answer.
    """
    client = connect_to_read()
    where = list(experiments) or [e.experiment_id for e in every(client.search_experiments)]
    # A step's run has either the scores or the parameters; the pipeline's has both.
    found = every(client.search_runs, where, "metrics.`test/all` >= 0", order_by=["attributes.start_time DESC"])
    return [_past(run) for run in found if "preset" in run.data.params] if where else []


def _past(run: Any) -> Past:
    info, data = run.info, run.data
    return Past(
        info.run_id, info.run_name, info.experiment_id, info.status == "FINISHED", info.start_time,
        dict(data.params), dict(data.tags), dict(data.metrics),
    )  # fmt: skip


def read(run_id: str, config: RunConfig) -> Past:
    """A pipeline run that may still be running.

    Args:
        run_id: in MLflow.
        config: its configuration, should its parameters stand elsewhere.
    """
    past = _past(connect_to_read().get_run(run_id))
    return replace(past, params={k: str(v) for k, v in flatten(config).items()} | past.params)


def find(selector: str, among: Sequence[Past]) -> Past:
    """The run with this id, beginning of an id, or name; `latest` is the newest one that finished.

    Raises:
        InputError: there is none, or several begin so.
    """
    if not among:
        raise InputError("there are no evaluated runs yet; make one, as in lfm run fashion-mnist-lt")
    if selector == "latest":
        return next((run for run in among if run.finished), among[0])
    named = [run for run in among if selector in (run.run_id, run.name)]
    begun = [run for run in among if run.run_id.startswith(selector)] if len(selector) >= 4 else []
    found = named or begun
    if len(found) == 1:
        return found[0]
    first = ", ".join(f"{run.run_id[:12]} ({run.name}, {run.date})" for run in (found or among)[:6])
    if found:
        raise InputError(f"{len(found)} runs are called {selector!r}; give an id of {first}")
    raise InputError(
        f"no evaluated run {selector!r}; give an id, four or more of its digits, a name or latest: {first}"
    )


def matching(preset: str, overrides: dict[str, Any], among: Sequence[Past], untrained: bool = False) -> list[Past]:
    """The newest finished run of each seed that has exactly this configuration, all scored on the same test images.

    Args:
        preset: its name.
        overrides: of its fields.
        among: newest first.
        untrained: the scores before training are wanted, so only data, model, text and shots must agree.
    """
    wanted = {k: str(v) for k, v in flatten(load(preset, overrides)).items()}
    sections = ("data.", "model.", "text.", "shots.")
    found: dict[str, Past] = {}
    newest: Past | None = None
    for run in among:
        keys = [k for k in run.science() if k in wanted and k != "seed" and (not untrained or k.startswith(sections))]
        if run.finished and all(run.params[k] == wanted[k] for k in keys):
            newest = newest or run
            if run.test_images == newest.test_images:
                found.setdefault(run.seed, run)
    return list(found.values())


def curves(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every curve of both stages: name -> (epoch, value)."""
    client = connect_to_read()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith(CURVES)]
    return {name: sorted({(p.step, p.value) for p in client.get_metric_history(run_id, name)}) for name in names}


def download(run: Past, names: Sequence[str], folder: Path) -> Path:
    """The files of a run's artifacts.

    Raises:
        InputError: one is missing.
    """
    client = connect_to_read()
    there = {item.path for item in client.list_artifacts(run.run_id)}
    if missing := [name for name in names if name not in there]:
        raise InputError(
            f"run {run.run_id[:12]} ({run.name}) has no {', '.join(missing)}: it is of an older version; run it again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    no_other_bars()
    for name in names:
        client.download_artifacts(run.run_id, name, str(folder))
    return folder

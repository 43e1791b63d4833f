"""What the pages are made of: a run's metrics artifact and what MLflow knows of other runs.

Letters in the names give shapes: N test images, C classes, G groups.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import GROUPS
from lfm.errors import InputError
from lfm.report.stats import Interval, accuracy_intervals

Points = Sequence[tuple[int, float]]
FILES = ("metrics.json", "evidence.json", "labels.npy", "predictions.npy", "confidence.npy", "untrained.npy")
"""Of a metrics artifact; what a page is made from."""


@dataclass(frozen=True)
class Other:
    """Another run on the same data, in the same MLflow experiment.

    Args:
        name: its method, and how it differs from this run.
        scores: all, many, medium, few in percent.
        run_id: in MLflow.
        seed: of the run.
        method: as in `RunConfig.method`.
        adjusted: scores with adjusted logits, and the `strength`, if there are such.
    """

    name: str
    scores: Mapping[str, float | None]
    run_id: str
    seed: str
    method: str
    adjusted: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one field alone."""

    field: str
    points: Sequence[tuple[float, Mapping[str, float | None]]]


@dataclass(frozen=True)
class Run:
    """All that a page shows of one run."""

    title: str
    method: str
    before: str
    """What the model before training is called."""
    provenance: Mapping[str, Any]
    classes: Sequence[str]
    count_C: NDArray[np.int64]
    group_C: NDArray[np.int64]
    """Places in `GROUPS`."""
    scores: Mapping[str, Any]
    untrained: Mapping[str, Any]
    label_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    confidence_N: NDArray[np.float32]
    untrained_N: NDArray[np.int64]
    evidence: Mapping[str, Any]
    adjusted: Mapping[str, Any] | None = None
    """Scores with adjusted logits, and the `strength`; None without validation images to tune it on."""
    test_images: str = ""
    """Names the test images and their labels; empty in an artifact of an older version."""
    run_id: str = ""
    date: str = ""
    """When it began, where a page has several runs of one method and seed."""
    curves: Mapping[str, Points] = field(default_factory=dict)
    others: Sequence[Other] = ()
    baseline: "Run | None" = None
    sweeps: Sequence[Sweep] = ()

    @cached_property
    def total_G(self) -> list[int]:
        """Test images of each group."""
        return [int(n) for n in np.bincount(self.group_C[self.label_N], minlength=len(GROUPS))]

    @cached_property
    def total_C(self) -> NDArray[np.int64]:
        """Test images of each class."""
        return np.bincount(self.label_N, minlength=len(self.classes))

    @property
    def models(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Name and predictions of the model before training, the baseline if there is one, and this run."""
        between = [(self.baseline.method, self.baseline.predicted_N)] if self.baseline else []
        return [(self.before, self.untrained_N), *between, (self.method, self.predicted_N)]

    def intervals(self, predicted_N: NDArray[np.int64]) -> dict[str, Interval | None]:
        """95 % intervals of the accuracies of some predictions, over test images."""
        right_N = predicted_N == self.label_N
        hit_G = np.bincount(self.group_C[self.label_N[right_N]], minlength=len(GROUPS)).tolist()
        return accuracy_intervals(hit_G, self.total_G)


def read_run(folder: Path, **more: Any) -> Run:
    """A run from its metrics artifact.

    Args:
        folder: with the `FILES`.
        more: what MLflow knows: `run_id`, `date`, `curves`, `others`, `baseline`, `sweeps`.

    Raises:
        InputError: the artifact is of a version that kept less, or is damaged.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        evidence = json.loads((folder / "evidence.json").read_text())
        label_N, predicted_N, confidence_N, untrained_N = (
            np.load(folder / name, allow_pickle=False) for name in FILES[2:]
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no metrics a report can be made from ({error}); evaluate the run again"
        ) from error
    test = metrics["test"]
    names = evidence["groups"]
    return Run(
        title=evidence["title"],
        method=evidence["method"],
        before=evidence["before"],
        provenance=metrics["provenance"],
        test_images=metrics.get("test_images", ""),
        classes=test["classes"],
        count_C=np.asarray(test["counts"], dtype=np.int64),
        group_C=np.asarray([GROUPS.index(name) for name in names]),
        scores=test,
        untrained=metrics["untrained"],
        adjusted=metrics.get("adjusted"),
        label_N=label_N.astype(np.int64),
        predicted_N=predicted_N.astype(np.int64),
        confidence_N=confidence_N,
        untrained_N=untrained_N.astype(np.int64),
        evidence=evidence,
        **more,
    )

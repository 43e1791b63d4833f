"""Reports, made from metrics artifacts and MLflow at any time and without a GPU."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import NAMED

if TYPE_CHECKING:
    from lfm.report.run_page import Report
    from lfm.report.run_values import Other, Run, Sweep
    from lfm.tracking.past_runs import Past

SHOWN_DIFFERENCES = 3
SWEEPS = {"alpha": ("stage1.alpha", "stage2.alpha"), "tau": ("mixup.tau",)}
SAME = (
    "data.name",
    "data.profile",
    "data.imbalance",
    "data.max_per_class",
    "data.test_per_class",
    "shots.many",
    "shots.few",
)
USED = {"stage1.alpha_used", "stage2.alpha_used"}


def page_of(folder: Path, past: "Past") -> "Report":
    """The page of a run from its metrics artifact and MLflow.

    Args:
        folder: the artifact.
        past: the run.
    """
    from lfm.report.published import for_data
    from lfm.report.run_page import run_page
    from lfm.tracking import past_runs

    with tempfile.TemporaryDirectory() as place:
        run = _read(folder, past, past_runs.evaluated([past.experiment]), Path(place))
    data = {k: past.params[f"data.{k}"] for k in ("name", "profile", "imbalance")}
    return run_page(run, for_data(data), f"lfm report {past.run_id[:12]}")


def report_run(selector: str) -> tuple["Report", "Past"]:
    """The page of a run, made again from MLflow.

    Args:
        selector: id, beginning of an id, name, or `latest`.

    Raises:
        InputError: no such run, or it is of a version that kept less.
    """
    from lfm.report.run_values import FILES
    from lfm.tracking import past_runs

    past = past_runs.find(selector, past_runs.evaluated())
    with tempfile.TemporaryDirectory() as place:
        return page_of(past_runs.download(past, FILES, Path(place)), past), past


def compare_runs(selectors: Sequence[str]) -> tuple["Report", Sequence[Any]]:
    """The page of several runs, held against the first, and the rows of its differences.

    Raises:
        InputError: no such run, fewer than two, runs of other data sets, or of a version that kept less.
    """
    from lfm.errors import InputError
    from lfm.report.compare_page import compare_page
    from lfm.report.run_values import FILES, read_run
    from lfm.tracking import past_runs

    among = past_runs.evaluated()
    chosen = [past_runs.find(selector, among) for selector in selectors]
    if len({run.run_id for run in chosen}) < 2:
        raise InputError("comparing needs two or more different runs, as in lfm compare RUN RUN")
    for run in chosen[1:]:
        if other := sorted(f for f in run.differs(chosen[0]) if f in SAME):
            raise InputError(f"run {run.run_id[:12]} was not scored on the same data: {', '.join(other)} differ")
    for run in chosen:
        if not run.test_images:
            raise InputError(
                f"run {run.run_id[:12]} ({run.name}) is of an older version, which did not say which test images it "
                f"was scored on; run it again: what it trained is reused"
            )
    names = Counter((run.method, run.seed) for run in chosen)
    with tempfile.TemporaryDirectory() as place:
        found = [
            read_run(
                past_runs.download(run, FILES, Path(place) / run.run_id),
                run_id=run.run_id,
                date=run.date if names[run.method, run.seed] > 1 else "",
            )
            for run in chosen
        ]
    about = {k: found[0].provenance[k] for k in ("data", "split", "shots")}
    report = compare_page(found, about)
    return report, report.tables["differences"][1]


def report_paper() -> "Report":
    """The paper's tables, filled from all runs in MLflow."""
    from lfm.report.paper_tables import Ours, paper_page, tasks
    from lfm.tracking import past_runs

    among = past_runs.evaluated()
    ours = {}
    for task in tasks():
        found = past_runs.matching(task.preset, dict(task.overrides), among, task.untrained)
        if found:
            ours[task.command] = Ours.of([run.scores("untrained" if task.untrained else "test") for run in found])
    return paper_page(ours)


def _read(folder: Path, past: "Past", peers: Sequence["Past"], place: Path) -> "Run":
    from lfm.errors import InputError
    from lfm.report.run_values import FILES, read_run
    from lfm.tracking import past_runs

    baseline = None
    found = next((run for run in peers if _is_baseline(run, past)), None)
    if found:
        try:
            baseline = read_run(past_runs.download(found, FILES, place), run_id=found.run_id)
        except InputError:  # of an older version; its scores are in the table all the same
            baseline = None
    return read_run(
        folder,
        run_id=past.run_id,
        curves=past_runs.curves(past.run_id),
        others=others(past, peers),
        baseline=baseline,
        sweeps=sweeps(past, peers),
    )


def _is_baseline(run: "Past", past: "Past") -> bool:
    """Plain cross-entropy on the same images, weights and seed."""
    sections = ("data.", "model.", "text.", "shots.", "seed")
    return (
        run.finished
        and run.method == "ce" != past.method
        and run.same_data(past)
        and not any(field.startswith(sections) for field in run.differs(past))
    )


def others(past: "Past", peers: Sequence["Past"]) -> list["Other"]:
    """The finished runs on the same images, the newest of each configuration, those of the same seed first.

    Args:
        past: the run of the page.
        peers: of the experiment, newest first.
    """
    from lfm.report.run_values import Other

    kept: dict[str, Other] = {}
    for run in peers:
        fields = run.differs(past)
        if not run.finished or run.run_id == past.run_id or not run.same_data(past):
            continue
        if any(field.startswith(("data.", "shots.")) for field in fields):
            continue
        name = run.method + _differences(run, fields - USED - {"seed", *NAMED})
        key = json.dumps({k: v for k, v in run.science().items() if k not in USED}, sort_keys=True)
        if fields - USED:
            kept.setdefault(key, Other(name, run.scores(), run.run_id, run.seed, run.method, run.adjusted))
    return sorted(kept.values(), key=lambda other: other.seed != past.seed)


def _differences(run: "Past", fields: set[str]) -> str:
    shown = [f"{field}={run.params[field]}" for field in sorted(fields)]
    more = f", {len(shown) - SHOWN_DIFFERENCES} more" if len(shown) > SHOWN_DIFFERENCES else ""
    return f" · {', '.join(shown[:SHOWN_DIFFERENCES])}{more}" if shown else ""


def sweeps(past: "Past", peers: Sequence["Past"]) -> list["Sweep"]:
    """Alpha and tau, each from the runs that differ from this one in nothing else."""
    from lfm.report.run_values import Sweep

    found: list[Sweep] = []
    if not past.method.startswith("lfm"):
        return found
    for field, names in SWEEPS.items():
        points: dict[float, dict[str, float | None]] = {}
        for run in peers:
            same = run.same_data(past) and not run.differs(past) - USED - set(names)
            if same and (run.finished or run.run_id == past.run_id):
                value = run.params.get("stage1.alpha_used", "") if field == "alpha" else run.params["mixup.tau"]
                points.setdefault(float(value or run.params["stage1.alpha"]), run.scores())
        if len(points) > 1:
            found.append(Sweep(field, sorted(points.items())))
    return found

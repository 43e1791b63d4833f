"""The first and the last job of a sweep: check all configurations, and compare their scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lfm.config.schema import RunConfig
from lfm.errors import counted
from lfm.jobs.pipeline_run import whole_numbers
from lfm.jobs.prepare import check
from lfm.jobs.step import step
from lfm.progress import say

if TYPE_CHECKING:
    from lfm.tracking.whole_sweep import WholeSweep


@step
def plan_sweep(config: dict[str, Any], variants: Sequence[Mapping[str, Any]], part: str = "") -> list[dict[str, Any]]:
    """Check every configuration before any of them is trained, and name the pipeline run after the sweep.

    Args:
        config: Configuration that all variants start from.
        variants: Variants as `lfm.config.sweeps.variants_of` returns them.
        part: Which part of a larger sweep they are (`lfm.config.sweeps.Part`); empty: a whole one.

    Returns:
        The variants, each with its complete `config`.
    """
    from lfm.config import sweeps
    from lfm.tracking import pipeline_run, whole_sweep

    base, of = RunConfig.model_validate(config), sweeps.Part.parse(part)
    ready = [{**variant, "overrides": whole_numbers(variant["overrides"])} for variant in variants]
    configs = sweeps.check(base, ready)
    for one in configs:
        check(one)
    which = f", part {of.number} of {of.of}" if of else ""
    pipeline_run.begin_pipeline_run(base.preset, f"sweep of {len(ready)}{which}")
    if of:
        whole_sweep.begin(of)
    with pipeline_run.step_run("plan sweep") as run:
        run.tags({"lfm.sweep": ", ".join(variant["name"] for variant in ready)[:5000]})
    say(f"{counted(len(ready), 'configuration')}: {', '.join(variant['name'] for variant in ready)}")
    return [{**variant, "config": one.model_dump()} for variant, one in zip(ready, configs, strict=True)]


@step
def compare(
    variants: Sequence[Mapping[str, Any]], metrics: Sequence[str], part: str, table: str, figure: str, page: str
) -> dict[str, float]:
    """Write the scores of all configurations as a table, a figure and a page, also to the MLflow run.

    The part of a larger sweep compares what all parts have scored that are done by now, also in the MLflow run of the
    whole sweep: the part that ends last compares all.

    Args:
        variants: Variants in the order of the metrics.
        metrics: Folder of each metrics artifact.
        part: Which part of a larger sweep this is; empty: a whole one.
        table: Folder for table.csv and table.json.
        figure: Folder for figure.svg and figure.png.
        page: HTML file to write.

    Returns:
        Accuracy on all test images of each configuration, by a name that KFP accepts.
    """
    from lfm.config.sweeps import Part
    from lfm.evaluation import comparison
    from lfm.tracking import pipeline_run
    from lfm.tracking.whole_sweep import WholeSweep

    scored = [_scored(variant, Path(folder)) for variant, folder in zip(variants, metrics, strict=True)]
    paths, of = Outputs(Path(table), Path(figure), Path(page)), Part.parse(part)
    with pipeline_run.step_run("compare") as run:
        if of:
            whole = WholeSweep(run.client, of, run.parent)
            whole.add(scored)
            rows, scored = _of_all_parts(whole, paths)
        else:
            rows = _write(scored, paths)
        for path in paths.files():
            run.file(path, "sweep")
        run.text(paths.page.read_text(), "sweep/report.html")
        for k, row in enumerate(rows):
            run.log({f"sweep/{name}": row[name] for name in comparison.COLUMNS if row[name] is not None}, k)
    pipeline_run.end_well()
    say(comparison.best_of(rows, comparison.same_images(scored, [one["test_images"] for one in scored])))
    return {str(row["label"]).replace(" ", "_"): row["all"] for row in rows}


class Outputs(NamedTuple):
    """Where a comparison is written."""

    table: Path
    figure: Path
    page: Path

    def files(self) -> list[Path]:
        """Table and figure."""
        return sorted(path for folder in (self.figure, self.table) for path in folder.iterdir())


def _scored(variant: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a comparison has to know of a configuration."""
    from lfm.evaluation.comparison import COLUMNS

    found = json.loads((folder / "metrics.json").read_text())
    known = {name: variant[name] for name in ("name", "label", "value", "over") if name in variant}
    scores = {name: found["test"].get(name) for name in COLUMNS}
    return {**known, "scores": scores, "test_images": str(found["test_images"])}


def _of_all_parts(whole: "WholeSweep", paths: Outputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compare what all parts have left: the rows, and the configurations with their scores.

    Two parts may end together. Each looks again when it has written, so that the one that writes last has seen all.
    """
    there: list[int] = []
    while there != (now := whole.there()):
        there = now
        scored = whole.scored(there)
        rows = _write(scored, paths)
        whole.show(paths.files(), paths.page.read_text(), len(scored))
    say(f"{len(scored)} of {whole.part.configurations} configurations of the sweep are compared")
    return rows, scored


def _write(scored: Sequence[Mapping[str, Any]], paths: Outputs) -> list[dict[str, Any]]:
    """Write table, figure and page: the rows."""
    from lfm.evaluation import comparison
    from lfm.report.sweep_page import sweep_figure, sweep_page, write_figure

    rows = comparison.rows_of(scored, [one["scores"] for one in scored])
    over = str(scored[0].get("over", ""))
    title = f"Sweep over {over}" if over else "Sweep"
    piece = sweep_figure(title, rows, over)
    for folder in (paths.table, paths.figure):
        folder.mkdir(parents=True, exist_ok=True)
    write_figure(piece, paths.figure)
    (paths.table / "table.csv").write_text(comparison.to_csv(rows))
    (paths.table / "table.json").write_text(json.dumps(rows, indent=1))
    paths.page.write_text(sweep_page(title, rows, piece))
    return rows

"""The first and the last job of a sweep: check all configurations, and compare their scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.jobs.pipeline_run import whole_numbers
from lfm.jobs.prepare import check
from lfm.jobs.step import step
from lfm.progress import say


@step
def plan_sweep(config: dict[str, Any], variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check every configuration before any of them is trained, and name the pipeline run after the sweep.

    Args:
        config: Configuration that all variants start from.
        variants: Variants as `lfm.config.sweeps.variants_of` returns them.

    Returns:
        The variants, each with its complete `config`.
    """
    from lfm.config import sweeps
    from lfm.tracking import pipeline_run

    base = RunConfig.model_validate(config)
    ready = [{**variant, "overrides": whole_numbers(variant["overrides"])} for variant in variants]
    configs = sweeps.check(base, ready)
    for one in configs:
        check(one)
    pipeline_run.begin_pipeline_run(base.preset, f"sweep of {len(ready)}")
    with pipeline_run.step_run("plan sweep") as run:
        run.tags({"lfm.sweep": ", ".join(variant["name"] for variant in ready)[:5000]})
    say(f"{len(ready)} configurations: {', '.join(variant['name'] for variant in ready)}")
    return [{**variant, "config": one.model_dump()} for variant, one in zip(ready, configs, strict=True)]


@step
def compare(
    variants: Sequence[Mapping[str, Any]], metrics: Sequence[str], table: str, figure: str, page: str
) -> dict[str, float]:
    """Write the scores of all configurations as a table, a figure and a page, also to the MLflow run.

    Args:
        variants: Variants in the order of the metrics.
        metrics: Folder of each metrics artifact.
        table: Folder for table.csv and table.json.
        figure: Folder for figure.svg and figure.png.
        page: HTML file to write.

    Returns:
        Accuracy on all test images of each configuration, by a name that KFP accepts.
    """
    from lfm.evaluation import comparison
    from lfm.report.sweep_page import sweep_figure, sweep_page, write_figure
    from lfm.tracking import pipeline_run

    results = [json.loads((Path(folder) / "metrics.json").read_text()) for folder in metrics]
    rows = comparison.rows_of(variants, [found["test"] for found in results])
    over = str(variants[0].get("over", ""))
    for folder in (table, figure):
        Path(folder).mkdir(parents=True, exist_ok=True)
    with pipeline_run.step_run("compare") as run:
        title = f"Sweep over {over}" if over else "Sweep"
        piece = sweep_figure(title, rows, over)
        drawn = write_figure(piece, Path(figure))
        written = {
            Path(table) / "table.csv": comparison.to_csv(rows),
            Path(table) / "table.json": json.dumps(rows, indent=1),
            Path(page): sweep_page(title, rows, piece),
        }
        for path, text in written.items():
            path.write_text(text)
        for path in (*drawn, Path(table) / "table.csv", Path(table) / "table.json"):
            run.file(path, "sweep")
        run.text(written[Path(page)], "sweep/report.html")
        for k, row in enumerate(rows):
            run.log({f"sweep/{name}": row[name] for name in comparison.COLUMNS if row[name] is not None}, k)
    pipeline_run.end_well()
    images = [str(found["test_images"]) for found in results]
    say(comparison.best_of(rows, comparison.same_images(variants, images)))
    return {str(row["label"]).replace(" ", "_"): row["all"] for row in rows}

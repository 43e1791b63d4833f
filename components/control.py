"""The steps around training runs: of a sweep, of a retraining, and the one that closes every pipeline.

No `from __future__ import annotations` here: KFP reads the annotations as types.
"""

from typing import List, NamedTuple  # noqa: UP035  KFP knows a list of artifacts by this name

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from lfm.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: dsl.PipelineTaskFinalStatus) -> None:
    """Close the MLflow run with the status that the pipeline ended in.

    Args:
        status: Status of the steps, as KFP reports it.
    """
    from lfm.jobs.pipeline_run import finish

    finish(status.state)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_sweep(config: dict, variants: List[dict]) -> List[dict]:  # type: ignore[type-arg]  # noqa: UP006
    """Check every configuration of a sweep before any of them is trained.

    Args:
        config: The configuration that all of them start from.
        variants: Name of each configuration and the fields that it changes.

    Returns:
        Output: The same list, each entry with its complete configuration.
    """
    from lfm.jobs.sweep import plan_sweep

    return plan_sweep(config, variants)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def configure_variant(
    variant: dict,  # type: ignore[type-arg]
) -> NamedTuple("Resolved", config=dict, run=str):  # type: ignore[valid-type]
    """Begin the MLflow run of one configuration of a sweep, as a child of the sweep's run.

    Args:
        variant: Name and complete configuration.

    Returns:
        config: The complete configuration.
        run: Key by which later steps find the MLflow run.
    """
    from lfm.jobs.pipeline_run import configure_variant

    return configure_variant(variant)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    variants: List[dict],  # type: ignore[type-arg]  # noqa: UP006
    metrics: Input[List[Metrics]],  # noqa: UP006
    table: Output[Artifact],
    figure: Output[Artifact],
    report: Output[HTML],
    scores: Output[Metrics],
) -> None:
    """Compare the scores of all configurations of a sweep.

    Args:
        variants: Names of the configurations and what they changed.
        metrics: Scores of each configuration, in the same order.

    Returns:
        table: All scores as CSV and JSON.
        figure: The scores as a figure, in SVG and PNG.
        report: Table and figure as an HTML page.
        scores: Accuracy of each configuration on all test images.
    """
    from lfm.jobs.sweep import compare

    best = compare(variants, [one.path for one in metrics], table.path, figure.path, report.path)
    for name, value in best.items():
        scores.log_metric(name, value)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def decide(run: str, config: dict, dataset: Input[Dataset], metrics: Input[Metrics], model_uri: str) -> str:  # type: ignore[type-arg]
    """Make the new model the champion if it is better than the current one by more than noise, else the challenger.

    Args:
        run: Key of the MLflow run.
        config: The complete configuration.
        dataset: Data set with the test images that both models were evaluated on.
        metrics: Predictions of both models for each test image.
        model_uri: URI of the new version in the registry.

    Returns:
        Output: champion or challenger.
    """
    from lfm.jobs.pipeline_run import belong_to
    from lfm.jobs.retrain import decide

    belong_to(run)
    return decide(config, dataset.path, metrics.path, model_uri)

"""The steps around training runs: of a sweep, of a retraining, and the one that closes every pipeline.

No `from __future__ import annotations` here: KFP reads the annotations as types.
"""

from typing import List, NamedTuple  # noqa: UP035  KFP knows a list of artifacts by this name

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

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
def prepare_variant(
    variant: dict,  # type: ignore[type-arg]
    dataset: Output[Dataset],
    embeddings: Output[Model],
    backbone: Output[Model],
) -> NamedTuple("Begun", config=dict, run=str):  # type: ignore[valid-type]
    """Begin one configuration of a sweep, as a child of the sweep's run, and prepare all that training needs.

    Args:
        variant: Name and complete configuration.

    Returns:
        dataset: Training, validation and test images as Arrow files, and their pixels as memory-mapped arrays.
        embeddings: Class embeddings of unit length, as safetensors.
        backbone: Both towers as safetensors, their architecture, tokenizer and preprocessing.
        config: The complete configuration.
        run: Key by which later steps find the MLflow run.
    """
    from lfm.jobs.pipeline_run import configure_variant
    from lfm.jobs.training_inputs import prepare_inputs

    config, run = configure_variant(variant)
    prepare_inputs(config, dataset.path, embeddings.path, backbone.path)
    return config, run


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    variants: List[dict],  # type: ignore[type-arg]  # noqa: UP006
    metrics: Input[List[Metrics]],  # noqa: UP006
    part: str,
    table: Output[Artifact],
    figure: Output[Artifact],
    report: Output[HTML],
    scores: Output[Metrics],
) -> None:
    """Compare the scores of all configurations of a sweep.

    Args:
        variants: Names of the configurations and what they changed.
        metrics: Scores of each configuration, in the same order.
        part: Which part of a larger sweep they are, as lfm sweep writes it; empty: a whole one.

    Returns:
        table: All scores as CSV and JSON.
        figure: The scores as a figure, in SVG and PNG.
        report: Table and figure as an HTML page.
        scores: Accuracy of each configuration on all test images.
    """
    from lfm.jobs.sweep import compare

    best = compare(variants, [one.path for one in metrics], part, table.path, figure.path, report.path)
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

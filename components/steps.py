"""The steps of a training run after the first: two stages, evaluate, register.

No `from __future__ import annotations` here: KFP reads the annotations as types.
"""

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from lfm.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage1(
    run: str,
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    model: Output[Model],
) -> None:
    """Tune the image encoder; W_I stays the identity.

    Args:
        run: Key of the MLflow run.
        config: The complete configuration.
        dataset: Training images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.

    Returns:
        model: The model after stage 1.
    """
    from lfm.jobs.pipeline_run import belong_to
    from lfm.jobs.training import train_stage

    belong_to(run)
    train_stage(1, config, dataset.path, embeddings.path, backbone.path, "", model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage2(
    run: str,
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    encoder: Input[Model],
    model: Output[Model],
) -> None:
    """Train W_I on the frozen image encoder.

    Args:
        run: Key of the MLflow run.
        config: The complete configuration.
        dataset: Training images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        encoder: The model after stage 1.

    Returns:
        model: The finished model.
    """
    from lfm.jobs.pipeline_run import belong_to
    from lfm.jobs.training import train_stage

    belong_to(run)
    train_stage(2, config, dataset.path, embeddings.path, backbone.path, encoder.path, model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    run: str,
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    model: Input[Model],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    report: Output[HTML],
) -> None:
    """Evaluate the untrained, the trained and the champion model, if there is one, on the test images.

    Args:
        run: Key of the MLflow run.
        config: The complete configuration.
        dataset: Test images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        model: The finished model.

    Returns:
        metrics: Accuracy of all, many, medium and few shot classes, of each class, the confusion matrix of up to
            2,048, and the predicted class of each test image.
        confusion: The confusion matrix; of more than 50 classes, that of the shot groups.
        report: The same results as an HTML page.
    """
    from lfm.jobs.evaluation import evaluate, shown_scores
    from lfm.jobs.pipeline_run import belong_to

    belong_to(run)
    evaluate(config, dataset.path, embeddings.path, backbone.path, model.path, metrics.path, report.path)
    scores, names, matrix = shown_scores(metrics.path)
    for name, value in scores.items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix(names, matrix)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    run: str,
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    backbone: Input[Model],
    model: Input[Model],
    metrics: Input[Metrics],
) -> str:
    """Register the model in MLflow.

    Args:
        run: Key of the MLflow run.
        config: The complete configuration.
        dataset: Data set with an input example, and validation images to calibrate the probabilities.
        backbone: Both towers; the text tower is registered with the model, for new classes when it serves.
        model: The finished model.
        metrics: Scores of the model; only an evaluated model is registered.

    Returns:
        Output: URI of the registered model, models:/NAME/VERSION.
    """
    from lfm.jobs.evaluation import register
    from lfm.jobs.pipeline_run import belong_to

    belong_to(run)
    return register(config, dataset.path, backbone.path, model.path)

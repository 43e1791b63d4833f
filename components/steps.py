"""The steps of a training run: configure, fetch backbone, prepare data, embed text, two stages, evaluate, register.

No `from __future__ import annotations` here: KFP reads the annotations as types.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from lfm.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def configure(
    preset: str,
    data_source: str,
    imbalance: float,
    backbone: str,
    weights: str,
    mixup: str,
    tau: float,
    loss: str,
    stage1_epochs: int,
    stage1_lr: float,
    stage1_alpha: str,
    stage2_epochs: int,
    stage2_lr: float,
    stage2_alpha: str,
    batch_size: int,
    gpus: int,
    seed: int,
    overrides: dict,  # type: ignore[type-arg]
) -> NamedTuple("Resolved", data=dict, model=dict, text=dict, seed=int, config=dict, run=str):  # type: ignore[valid-type]
    """Resolve and check the configuration and begin the MLflow run.

    Args:
        preset: Name of a preset; see `lfm presets`.
        data_source: Where the images lie: a folder or s3:// prefix, a split list, CSV or Parquet file; empty: the
            published files, fetched where that can be.
        imbalance: Imbalance factor gamma of the long-tailed subset; without effect where the data are taken as they
            are.
        backbone: Image tower: an open_clip model such as ViT-B-32, or conv4.
        weights: Its pre-trained weights: an open_clip tag, a checkpoint, or random.
        mixup: What an image is mixed with: none, mixup, remix or lfm.
        tau: Temperature of local sampling: low pairs near neighbours, high tends to uniform.
        loss: Loss: ce, balce, focal, ldam or mms.
        stage1_epochs: Epochs of stage 1, which tunes the image encoder; 0 skips it.
        stage1_lr: Highest learning rate of stage 1.
        stage1_alpha: Strength of the label shift in stage 1: a number, or auto.
        stage2_epochs: Epochs of stage 2, which trains the linear layer; 0 skips it.
        stage2_lr: Highest learning rate of stage 2.
        stage2_alpha: Strength of the label shift in stage 2: a number, or auto.
        batch_size: Images of a step, over all GPUs.
        gpus: GPUs of a training step, a process for each; on a cluster without GPUs: processes.
        seed: Draws the subset, the initial weights and every batch.
        overrides: Any field of the configuration, as in {"stage1.warmup": 0.1}; wins over the values above.

    Returns:
        data: Section that the data depend on.
        model: Section that the backbone depends on.
        text: Section that the class embeddings depend on.
        seed: Of everything.
        config: The whole configuration.
        run: Key under which later steps find the MLflow run.
    """
    from lfm.jobs.pipeline_run import configure

    form = {
        "data_source": data_source, "imbalance": imbalance, "backbone": backbone, "weights": weights, "mixup": mixup,
        "tau": tau, "loss": loss, "stage1_epochs": stage1_epochs, "stage1_lr": stage1_lr, "stage1_alpha": stage1_alpha,
        "stage2_epochs": stage2_epochs, "stage2_lr": stage2_lr, "stage2_alpha": stage2_alpha, "batch_size": batch_size,
        "gpus": gpus, "seed": seed,
    }  # fmt: skip
    config, run = configure(preset, form, overrides)
    return config["data"], config["model"], config["text"], config["seed"], config, run


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_backbone(model: dict, seed: int, backbone: Output[Model]) -> None:  # type: ignore[type-arg]
    """Fetch the pre-trained image and text towers once; no later step asks a network.

    Args:
        model: The model section of the configuration.
        seed: Of the weights, where they are random.

    Returns:
        backbone: Both towers as safetensors, their architecture, tokenizer and preprocessing.
    """
    from lfm.jobs.prepare import fetch_backbone

    fetch_backbone(model, seed, backbone.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(data: dict, model: dict, seed: int, dataset: Output[Dataset]) -> None:  # type: ignore[type-arg]
    """Fetch the images, check them, take the long-tailed subset, decode them once.

    Args:
        data: The data section of the configuration.
        model: The model section, whose tower sets the images' size.
        seed: Of the subset.

    Returns:
        dataset: Training, validation and test images as Arrow files, and their pixels as memory-mapped arrays.
    """
    from lfm.jobs.prepare import prepare_data

    prepare_data(data, model, seed, dataset.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def embed_text(
    text: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    backbone: Input[Model],
    embeddings: Output[Model],
) -> None:
    """Encode the class names with the frozen text tower.

    Args:
        text: The text section of the configuration.
        dataset: Names the classes.
        backbone: Has the text tower.

    Returns:
        embeddings: Class embeddings of unit length, as safetensors.
    """
    from lfm.jobs.prepare import embed_text

    embed_text(text, dataset.path, backbone.path, embeddings.path)


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
        config: The whole configuration.
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
        config: The whole configuration.
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
    """Score the untrained and the trained model, and the champion of the registry if there is one, on the test images.

    Args:
        run: Key of the MLflow run.
        config: The whole configuration.
        dataset: Test images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        model: The finished model.

    Returns:
        metrics: Accuracy of all, many, medium and few shot classes, of each class, the confusion matrix of up to
            2,048, and the predicted class of each test image.
        confusion: The confusion matrix; of more than 50 classes, that of the shot groups.
        report: The same as a page.
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
        config: The whole configuration.
        dataset: Gives the input example, and validation images that calibrate probabilities.
        backbone: Its text tower goes with the model, for classes that are named when it serves.
        model: The finished model.
        metrics: Its scores; a model is registered after it was scored.

    Returns:
        Output: The model's URI, models:/NAME/VERSION.
    """
    from lfm.jobs.evaluation import register
    from lfm.jobs.pipeline_run import belong_to

    belong_to(run)
    return register(config, dataset.path, backbone.path, model.path)

"""The steps: configure, fetch backbone, prepare data, embed text, train a stage, evaluate, register.

No `from __future__ import annotations` here: KFP reads the annotations as types.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def configure(
    preset: str,
    overrides: dict,  # type: ignore[type-arg]
) -> NamedTuple("Resolved", data=dict, model=dict, text=dict, seed=int, config=dict):  # type: ignore[valid-type]
    """Resolve and check the configuration and begin the MLflow run.

    Args:
        preset: Name of a preset; see `lfm presets`.
        overrides: Dotted field name to value, as in {"stage1.epochs": 3}.

    Returns:
        The sections that data, backbone and text depend on, the seed, and the whole configuration.
    """
    from lfm.jobs import configure

    config = configure(preset, overrides)
    return config["data"], config["model"], config["text"], config["seed"], config


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_backbone(model: dict, seed: int, backbone: Output[Model]) -> None:  # type: ignore[type-arg]
    """Fetch the pre-trained image and text towers once; no later step asks a network.

    Args:
        model: The model section of the configuration.
        seed: Of the weights, where they are random.
        backbone: Both towers as safetensors, their architecture, tokenizer and preprocessing.
    """
    from lfm.jobs import fetch_backbone

    fetch_backbone(model, seed, backbone.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(data: dict, model: dict, seed: int, dataset: Output[Dataset]) -> None:  # type: ignore[type-arg]
    """Fetch the images, check them, take the long-tailed subset, decode them once.

    Args:
        data: The data section of the configuration.
        model: The model section, whose tower sets the images' size.
        seed: Of the subset.
        dataset: Training, validation and test images as Arrow files, and their pixels as memory-mapped arrays.
    """
    from lfm.jobs import prepare_data

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
        embeddings: Class embeddings of unit length, as safetensors.
    """
    from lfm.jobs import embed_text

    embed_text(text, dataset.path, backbone.path, embeddings.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage1(
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    model: Output[Model],
) -> None:
    """Tune the image encoder; W_I stays the identity.

    Args:
        config: The whole configuration.
        dataset: Training images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        model: The model after stage 1.
    """
    from lfm.jobs import train_stage

    train_stage(1, config, dataset.path, embeddings.path, backbone.path, "", model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage2(
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    encoder: Input[Model],
    model: Output[Model],
) -> None:
    """Train W_I on the frozen image encoder.

    Args:
        config: The whole configuration.
        dataset: Training images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        encoder: The model after stage 1.
        model: The finished model.
    """
    from lfm.jobs import train_stage

    train_stage(2, config, dataset.path, embeddings.path, backbone.path, encoder.path, model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: dict,  # type: ignore[type-arg]
    dataset: Input[Dataset],
    embeddings: Input[Model],
    backbone: Input[Model],
    model: Input[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
) -> None:
    """Score the untrained and the trained model on the test images.

    Args:
        config: The whole configuration.
        dataset: Test images.
        embeddings: Class embeddings.
        backbone: The pre-trained towers.
        model: The finished model.
        metrics: Accuracy of all, many, medium and few shot classes, of each class; the confusion matrix of up to 2,048.
        report: The same as a page.
    """
    import json
    from pathlib import Path

    from lfm.jobs import evaluate

    evaluate(config, dataset.path, embeddings.path, backbone.path, model.path, metrics.path, report.path)
    scores = json.loads((Path(metrics.path) / "metrics.json").read_text())["test"]
    for name in ("all", "many", "medium", "few"):
        if scores[name] is not None:
            metrics.log_metric(name, scores[name])


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(config: dict, dataset: Input[Dataset], model: Input[Model], metrics: Input[Metrics]) -> str:  # type: ignore[type-arg]
    """Register the model in MLflow.

    Args:
        config: The whole configuration.
        dataset: Gives the input example.
        model: The finished model.
        metrics: Its scores; a model is registered after it was scored.

    Returns:
        The model's URI, models:/NAME/VERSION.
    """
    from lfm.jobs import register

    return register(config, dataset.path, model.path)

"""The training pipeline, and the parts that the pipelines have in common."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl

from lfm.components import control, steps
from lfm.components.configure import configure
from lfm.config.presets import PRESETS
from lfm.config.run_parameters import OVERRIDES, RUN_PARAMETERS, pipeline_arguments
from lfm.config.schema import RunConfig
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory


class Trained(NamedTuple):
    """Outputs of training and evaluation that later tasks use."""

    dataset: Any
    backbone: Any
    model: Any
    metrics: Any


class Parameter(NamedTuple):
    """A parameter of a pipeline."""

    type: Any
    default: Any
    description: str


Body = Callable[[TaskFactory, Any, dict[str, Any]], None]
"""Adds the tasks after `configure`; gets the factory, the task of `configure`, and the pipeline's own parameters."""


def training_pipeline(config: RunConfig, settings: ClusterSettings | None = None) -> Any:
    """Configure -> prepare data, backbone and class embeddings -> stage 1 -> stage 2 -> evaluate -> register.

    Args:
        config: Configuration that the default values of the parameters give.
        settings: Settings of a cluster; None: a local run.
    """

    def body(tasks: TaskFactory, configured: Any, _: dict[str, Any]) -> None:
        prepared = tasks.add(steps.prepare, **configured.outputs)
        register(tasks, configured, train(tasks, configured, prepared))

    return build(config.preset, about(config.preset), config, settings, body)


def build(
    name: str,
    description: str,
    config: RunConfig,
    settings: ClusterSettings | None,
    body: Body,
    own_parameters: dict[str, Parameter] | None = None,
) -> Any:
    """A pipeline with the run parameters, `configure` as its first task, and an exit handler.

    Args:
        name: Name of the pipeline.
        description: Description of the pipeline in the KFP UI.
        config: Configuration that the default values of the parameters give.
        settings: Settings of a cluster; None: a local run.
        body: Function that adds the tasks after `configure`.
        own_parameters: Parameters of this pipeline besides the run parameters, by name.
    """
    own, defaults = own_parameters or {}, pipeline_arguments(config)
    parameters = {key: Parameter(p.type, defaults[key], p.description) for key, p in RUN_PARAMETERS.items()}
    parameters |= {"overrides": Parameter(dict, defaults["overrides"], OVERRIDES)} | own

    def pipeline(*arguments: Any) -> None:
        values = dict(zip(parameters, arguments, strict=True))
        tasks = TaskFactory(settings, values["gpus"], config.train.nodes)
        own_values = {key: values.pop(key) for key in own}
        with dsl.ExitHandler(tasks.add(control.finish), name="steps"):
            body(tasks, tasks.add(configure, preset=config.preset, **values), own_values)

    # KFP reads parameters, defaults and descriptions from a function as it reads them from any other.
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.type)
            for key, p in parameters.items()
        ]
    )
    lines = [f"    {key}: {parameter.description}\n" for key, parameter in parameters.items()]
    pipeline.__doc__ = f"{description}\n\nArgs:\n{''.join(lines)}"
    return dsl.pipeline(name=name, description=description)(pipeline)


def about(preset: str) -> str:
    """The first line of a preset's description."""
    return (PRESETS[preset].__doc__ or "").strip().splitlines()[0]


def train(tasks: TaskFactory, configured: Any, prepared: Any) -> Trained:
    """Stage 1 -> stage 2 -> evaluate.

    Args:
        tasks: Factory of the pipeline's tasks.
        configured: Task of `configure`, or of `configure-variant`.
        prepared: Task with the outputs dataset, embeddings and backbone.
    """
    dataset, backbone = prepared.outputs["dataset"], prepared.outputs["backbone"]
    inputs = {
        **configured.outputs, "dataset": dataset, "embeddings": prepared.outputs["embeddings"], "backbone": backbone,
    }  # fmt: skip
    stage1 = tasks.add(steps.train_stage1, **inputs)
    stage2 = tasks.add(steps.train_stage2, **inputs, encoder=stage1.outputs["model"])
    model = stage2.outputs["model"]
    evaluated = tasks.add(steps.evaluate, **inputs, model=model)
    return Trained(dataset, backbone, model, evaluated.outputs["metrics"])


def register(tasks: TaskFactory, configured: Any, trained: Trained) -> Any:
    """Register the evaluated model: its URI."""
    return tasks.add(
        steps.register,
        **configured.outputs,
        dataset=trained.dataset,
        backbone=trained.backbone,
        model=trained.model,
        metrics=trained.metrics,
    ).output

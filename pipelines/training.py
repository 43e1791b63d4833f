"""The training pipeline, and the parts that the pipelines have in common."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kfp import dsl

from lfm.components import begin, control, steps
from lfm.config.presets import PRESETS
from lfm.config.run_parameters import OVERRIDES, RUN_PARAMETERS, choices, pipeline_arguments
from lfm.config.schema import RunConfig
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory


class Trained(NamedTuple):
    """Outputs of preparation, training and evaluation that later tasks use."""

    run: Any
    config: Any
    dataset: Any
    embeddings: Any
    backbone: Any
    model: Any
    metrics: Any


class Parameter(NamedTuple):
    """A parameter of a pipeline."""

    type: Any
    default: Any
    description: str


Body = Callable[[TaskFactory, dict[str, Any]], None]
"""Adds the tasks; gets their factory and the parameters of the pipeline, with the name of the preset."""


def training_pipeline(config: RunConfig, settings: ClusterSettings | None = None, registers: bool = True) -> Any:
    """Prepare (configuration, data, backbone, class embeddings) -> stage 1 -> stage 2 -> evaluate -> register.

    Args:
        config: Configuration that the default values of the parameters give.
        settings: Settings of a cluster; None: a local run.
        registers: Register the model; False: it is trained to compare others with, as a baseline is.
    """

    def body(tasks: TaskFactory, parameters: dict[str, Any]) -> None:
        trained = train(tasks, tasks.add(begin.prepare, **parameters))
        if registers:
            register(tasks, trained)

    return build(config.preset, about(config.preset), config, settings, body)


def build(
    name: str,
    description: str,
    config: RunConfig,
    settings: ClusterSettings | None,
    body: Body,
    own_parameters: dict[str, Parameter] | None = None,
    variants: Sequence[RunConfig] = (),
) -> Any:
    """A pipeline with the run parameters and an exit handler.

    Args:
        name: Name of the pipeline.
        description: Description of the pipeline in the KFP UI.
        config: Configuration that the default values of the parameters give.
        settings: Settings of a cluster; None: a local run.
        body: Function that adds the tasks.
        own_parameters: Parameters of this pipeline besides the run parameters, by name.
        variants: Configurations that a sweep makes of it.
    """
    own, defaults = own_parameters or {}, pipeline_arguments(config)
    parameters = {key: Parameter(p.type, defaults[key], p.description) for key, p in RUN_PARAMETERS.items()}
    parameters |= {"overrides": Parameter(dict, defaults["overrides"], OVERRIDES)} | own

    def pipeline(*arguments: Any) -> None:
        values = dict(zip(parameters, arguments, strict=True))
        tasks = TaskFactory(settings, values["gpus"], [config, *variants])
        with dsl.ExitHandler(tasks.add(control.finish), name="steps"):
            body(tasks, {"preset": config.preset, **values})

    # KFP reads parameters, defaults and descriptions from a function as it reads them from any other.
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.type)
            for key, p in parameters.items()
        ]
    )
    lines = [f"    {key}: {parameter.description}\n" for key, parameter in parameters.items()]
    pipeline.__doc__ = f"{description}\n\nArgs:\n{''.join(lines)}"
    return _with_choices(dsl.pipeline(name=name, description=description)(pipeline))


def _with_choices(pipeline: Any) -> Any:
    """The pipeline, with the values that a parameter may have where these are a closed list.

    The run form offers them, and the API server refuses others before a pod is started (KFP 2.17.0, `literals` of
    api/v2alpha1/pipeline_spec.proto:230; backend/src/apiserver/template/v2_template.go:513). The SDK cannot write them.
    """
    parameters = pipeline.pipeline_spec.root.input_definitions.parameters
    for name in RUN_PARAMETERS:
        for value in choices(name):
            parameters[name].literals.add().string_value = value
    return pipeline


def about(preset: str) -> str:
    """The first line of a preset's description."""
    return (PRESETS[preset].__doc__ or "").strip().splitlines()[0]


def train(tasks: TaskFactory, prepared: Any) -> Trained:
    """Stage 1 -> stage 2 -> evaluate.

    Args:
        tasks: Factory of the pipeline's tasks.
        prepared: Task of `prepare`, or of another with the same outputs.
    """
    begun = {name: prepared.outputs[name] for name in ("run", "config", "dataset", "embeddings", "backbone")}
    stage1 = tasks.add(steps.train_stage1, **begun)
    stage2 = tasks.add(steps.train_stage2, **begun, encoder=stage1.outputs["model"])
    model = stage2.outputs["model"]
    evaluated = tasks.add(steps.evaluate, **begun, model=model)
    return Trained(**begun, model=model, metrics=evaluated.outputs["metrics"])


def register(tasks: TaskFactory, trained: Trained) -> Any:
    """Register the evaluated model: its URI."""
    inputs = trained._asdict()
    del inputs["embeddings"]
    return tasks.add(steps.register, **inputs).output

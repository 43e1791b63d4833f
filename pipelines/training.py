"""The training pipeline: one DAG body, and a pipeline of it for every preset."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfp import dsl

from lfm.components import control, steps
from lfm.config.presets import PRESETS
from lfm.config.run_parameters import FORM, divide
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import Placement


class Trained(NamedTuple):
    """What training and evaluation leave for later tasks."""

    dataset: Any
    backbone: Any
    model: Any
    metrics: Any


def prepare(place: Placement, resolved: Any, fresh: bool = False) -> tuple[Any, Any]:
    """Fetch the backbone and prepare the data, side by side: the two artifacts.

    Both are pure, and KFP may take them from its cache, unless the data are to be read again.
    """
    sections = resolved.outputs
    fetched = place(steps.fetch_backbone, model=sections["model"], seed=sections["seed"])
    prepared = place(
        steps.prepare_data, fresh=fresh, data=sections["data"], model=sections["model"], seed=sections["seed"]
    )
    return fetched.outputs["backbone"], prepared.outputs["dataset"]


def train(place: Placement, resolved: Any, backbone: Any, dataset: Any) -> Trained:
    """Embed text -> stage 1 -> stage 2 -> evaluate: the body of every pipeline.

    Training and evaluation write to MLflow, so KFP must run them each time; what has not changed is then taken from
    the store of `lfm.storage.artifact`.
    """
    config, run = resolved.outputs["config"], resolved.outputs["run"]
    text = place(steps.embed_text, text=resolved.outputs["text"], dataset=dataset, backbone=backbone)
    given = {
        "run": run, "config": config, "dataset": dataset, "embeddings": text.outputs["embeddings"],
        "backbone": backbone,
    }  # fmt: skip
    stage1 = place(steps.train_stage1, **given)
    stage2 = place(steps.train_stage2, **given, encoder=stage1.outputs["model"])
    model = stage2.outputs["model"]
    scored = place(steps.evaluate, **given, model=model)
    return Trained(dataset, backbone, model, scored.outputs["metrics"])


def register(place: Placement, resolved: Any, trained: Trained) -> Any:
    """Register the model once it is scored: its URI."""
    return place(
        steps.register,
        run=resolved.outputs["run"],
        config=resolved.outputs["config"],
        dataset=trained.dataset,
        backbone=trained.backbone,
        model=trained.model,
        metrics=trained.metrics,
    ).output


Body = Callable[[Placement, Any, dict[str, Any]], None]


def build(
    name: str,
    about: str,
    preset: str,
    overrides: Mapping[str, Any],
    settings: ClusterSettings | None,
    body: Body,
    more: Mapping[str, tuple[Any, Any, str]] | None = None,
) -> Any:
    """A pipeline with the run form of a preset, an exit handler, and a body after `configure`.

    Args:
        name: of the pipeline.
        about: shown in the KFP UI.
        preset: gives the form's defaults.
        overrides: change them.
        settings: of a cluster; None: a local run.
        body: called with the placement, the task of `configure`, and the parameters of `more`.
        more: parameters beside the form: name -> type, default, description.
    """
    form, rest = divide(preset, overrides)
    extra = dict(more or {})
    kept = {
        **{key: (FORM[key].kind, value, FORM[key].about) for key, value in form.items()},
        "overrides": (
            dict, rest, 'Any other field of the configuration, as in {"stage1.warmup": 0.1}; wins over the above.'
        ),
        **extra,
    }  # fmt: skip

    def pipeline(*given: Any) -> None:
        values = dict(zip(kept, given, strict=True))
        place = Placement(settings, values["gpus"])
        own = {key: values.pop(key) for key in extra}
        with dsl.ExitHandler(place(control.finish), name="steps"):
            body(place, place(steps.configure, preset=preset, **values), own)

    # KFP reads parameters, defaults and descriptions from a function as it reads them from any other.
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=kind)
            for key, (kind, value, _) in kept.items()
        ]
    )
    pipeline.__doc__ = f"{about}\n\nArgs:\n" + "".join(f"    {key}: {text}\n" for key, (*_, text) in kept.items())
    return dsl.pipeline(name=name, description=about)(pipeline)


def about(preset: str) -> str:
    """The first line of a preset's description."""
    return (PRESETS[preset].__doc__ or "").strip().splitlines()[0]


def training_pipeline(
    preset: str, overrides: Mapping[str, Any] | None = None, settings: ClusterSettings | None = None
) -> Any:
    """Configure -> fetch backbone, prepare data -> embed text -> stage 1 -> stage 2 -> evaluate -> register.

    Args:
        preset: its name.
        overrides: defaults other than the preset's.
        settings: of a cluster; None: a local run.
    """

    def body(place: Placement, resolved: Any, _: dict[str, Any]) -> None:
        register(place, resolved, train(place, resolved, *prepare(place, resolved)))

    return build(preset, about(preset), preset, overrides or {}, settings, body)

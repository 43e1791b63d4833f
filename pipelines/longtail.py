"""The pipelines: one DAG body, and a pipeline of it for every preset."""

import functools
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Metrics

from components import steps
from lfm.presets import PRESETS


class Outcome(NamedTuple):
    """What a pipeline gives back."""

    metrics: Metrics
    model_uri: str


def train_and_register(preset: str, overrides: dict) -> Outcome:  # type: ignore[type-arg]
    """Configure -> fetch backbone, prepare data -> embed text -> stage 1 -> stage 2 -> evaluate -> register.

    Fetching the backbone, preparing data and embedding text are pure and may be cached by KFP. The others write to
    MLflow: KFP must run them each time (what has not changed is then taken from the store of `lfm.artifact`).
    """
    resolved = steps.configure(preset=preset, overrides=overrides).set_caching_options(False)
    config = resolved.outputs["config"]
    seed, sections = resolved.outputs["seed"], resolved.outputs
    fetched = steps.fetch_backbone(model=sections["model"], seed=seed)
    backbone = fetched.outputs["backbone"]
    data = steps.prepare_data(data=sections["data"], model=sections["model"], seed=seed)
    dataset = data.outputs["dataset"]
    text = steps.embed_text(text=sections["text"], dataset=dataset, backbone=backbone)
    embeddings = text.outputs["embeddings"]
    stage1 = steps.train_stage1(
        config=config, dataset=dataset, embeddings=embeddings, backbone=backbone
    ).set_caching_options(False)
    stage2 = steps.train_stage2(
        config=config, dataset=dataset, embeddings=embeddings, backbone=backbone, encoder=stage1.outputs["model"]
    ).set_caching_options(False)
    model = stage2.outputs["model"]
    scored = steps.evaluate(
        config=config, dataset=dataset, embeddings=embeddings, backbone=backbone, model=model
    ).set_caching_options(False)
    registered = steps.register(
        config=config, dataset=dataset, model=model, metrics=scored.outputs["metrics"]
    ).set_caching_options(False)
    return Outcome(scored.outputs["metrics"], registered.output)


@functools.cache
def pipeline_for(preset: str) -> Any:
    """The pipeline of a preset, with the preset's name as default parameter."""
    about = (PRESETS[preset].__doc__ or "").strip().splitlines()[0]

    def pipeline(preset: str = preset, overrides: dict = {}) -> Outcome:  # type: ignore[type-arg]  # noqa: B006
        return train_and_register(preset, overrides)

    return dsl.pipeline(name=preset, description=about)(pipeline)

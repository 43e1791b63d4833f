"""The DAG body that every data set's pipeline shares."""

from typing import NamedTuple

from kfp.dsl import Metrics

from components import steps


class Outcome(NamedTuple):
    """What a pipeline gives back."""

    metrics: Metrics
    model_uri: str


def train_and_register(preset: str, overrides: dict) -> Outcome:  # type: ignore[type-arg]
    """Configure -> prepare data -> embed text -> stage 1 -> stage 2 -> evaluate -> register.

    Preparing data and embedding text are pure and may be cached by KFP. The others write to MLflow: KFP must run
    them each time (what has not changed is then taken from the store of `lfm.artifact`).
    """
    resolved = steps.configure(preset=preset, overrides=overrides).set_caching_options(False)
    config = resolved.outputs["config"]
    data = steps.prepare_data(data=resolved.outputs["data"], seed=resolved.outputs["seed"])
    dataset = data.outputs["dataset"]
    text = steps.embed_text(text=resolved.outputs["text"], dataset=dataset)
    embeddings = text.outputs["embeddings"]
    stage1 = steps.train_stage1(config=config, dataset=dataset, embeddings=embeddings).set_caching_options(False)
    stage2 = steps.train_stage2(
        config=config, dataset=dataset, embeddings=embeddings, encoder=stage1.outputs["model"]
    ).set_caching_options(False)
    model = stage2.outputs["model"]
    scored = steps.evaluate(config=config, dataset=dataset, embeddings=embeddings, model=model).set_caching_options(
        False
    )
    registered = steps.register(
        config=config, dataset=dataset, model=model, metrics=scored.outputs["metrics"]
    ).set_caching_options(False)
    return Outcome(scored.outputs["metrics"], registered.output)

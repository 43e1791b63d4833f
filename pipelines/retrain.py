"""The retraining pipeline, for schedules: train on new data, and promote what is better than the champion."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from lfm.components import control
from lfm.jobs.retrain import CHANGED
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import Placement
from lfm.pipelines.training import about, build, prepare, register, train


def retraining_pipeline(
    preset: str, overrides: Mapping[str, Any] | None = None, settings: ClusterSettings | None = None
) -> Any:
    """Configure -> read the data again -> if they are new: train, evaluate beside the champion, register, decide.

    Args:
        preset: its name, which is the model's.
        overrides: defaults other than the preset's.
        settings: of a cluster; None: a local run.
    """

    def body(place: Placement, resolved: Any, _: dict[str, Any]) -> None:
        config, run = resolved.outputs["config"], resolved.outputs["run"]
        backbone, dataset = prepare(place, resolved, fresh=True)
        news = place(control.data_news, config=config, dataset=dataset)
        with dsl.If(news.output == CHANGED, name="new-data"):
            trained = train(place, resolved, backbone, dataset)
            uri = register(place, resolved, trained)
            place(control.decide, run=run, config=config, dataset=dataset, metrics=trained.metrics, model_uri=uri)

    return build(f"{preset}-retrain", f"Retraining of {about(preset)}", preset, overrides or {}, settings, body)

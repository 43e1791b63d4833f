"""The retraining pipeline, for schedules: train on new data, and promote what is better than the champion."""

from typing import Any

from kfp import dsl

from lfm.components import control
from lfm.config.schema import RunConfig
from lfm.jobs.retrain import CHANGED
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory
from lfm.pipelines.training import about, build, prepare, register, train


def retraining_pipeline(config: RunConfig, settings: ClusterSettings | None = None) -> Any:
    """Configure -> read the data again -> if they are new: train, evaluate with the champion, register, decide.

    Args:
        config: Configuration that the default values of the parameters give; its preset is the model's name.
        settings: Settings of a cluster; None: a local run.
    """

    def body(tasks: TaskFactory, configured: Any, _: dict[str, Any]) -> None:
        resolved, run = configured.outputs["config"], configured.outputs["run"]
        backbone, dataset = prepare(tasks, configured, read_again=True)
        news = tasks.add(control.data_news, config=resolved, dataset=dataset)
        with dsl.If(news.output == CHANGED, name="new-data"):
            trained = train(tasks, configured, backbone, dataset)
            uri = register(tasks, configured, trained)
            tasks.add(control.decide, run=run, config=resolved, dataset=dataset, metrics=trained.metrics, model_uri=uri)

    return build(f"{config.preset}-retrain", f"Retraining of {about(config.preset)}", config, settings, body)

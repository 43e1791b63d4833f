"""The retraining pipeline, for schedules: train on new data, and promote what is better than the champion."""

from typing import Any

from kfp import dsl

from lfm.components import begin, control
from lfm.config.schema import RunConfig
from lfm.jobs.retrain import CHANGED
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory
from lfm.pipelines.training import about, build, register, train


def retraining_pipeline(config: RunConfig, settings: ClusterSettings | None = None) -> Any:
    """Prepare -> if the data are new: train, evaluate with the champion, register, decide.

    Args:
        config: Configuration that the default values of the parameters give; its preset is the model's name.
        settings: Settings of a cluster; None: a local run.
    """

    def body(tasks: TaskFactory, parameters: dict[str, Any]) -> None:
        prepared = tasks.add(begin.prepare_retraining, **parameters)
        # kfp.local (2.17.0) finds no other output of a task for a condition: every other name counts as not equal.
        with dsl.If(prepared.outputs["Output"] == CHANGED, name="new-data"):
            trained = train(tasks, prepared)
            tasks.add(
                control.decide,
                run=trained.run,
                config=trained.config,
                dataset=trained.dataset,
                metrics=trained.metrics,
                model_uri=register(tasks, trained),
            )

    return build(f"{config.preset}-retrain", f"Retraining of {about(config.preset)}", config, settings, body)

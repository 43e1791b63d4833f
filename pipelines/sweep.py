"""The sweep pipeline: many configurations of one preset, then their comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from lfm.components import begin, control
from lfm.config.schema import RunConfig
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory
from lfm.pipelines.training import Parameter, about, build, train

ITEMS = list[dict]  # type: ignore[type-arg]
"""Type of the list that is looped over. KFP reads the type of the items from it: of a plain list they are text, which a
backend then refuses where a dictionary is wanted (KFP 2.17.0, driver/resolve.go:199)."""
VARIANTS = "Configurations to compare, each with a name, a label that its seeds share, and overrides."


def sweep_pipeline(
    config: RunConfig,
    variants: Sequence[Mapping[str, Any]],
    settings: ClusterSettings | None = None,
    parallelism: int = 1,
) -> Any:
    """Plan -> for each configuration: prepare, two stages, evaluate -> compare.

    Configurations with the same data or text share them through the content-addressed store, where the steps share a
    volume, a machine or LFM_STORE. A sweep registers no model.

    Args:
        config: Configuration that all variants start from.
        variants: Default of the parameter `variants`, as `lfm.config.sweeps.variants_of` makes it.
        settings: Settings of a cluster; None: a local run.
        parallelism: Configurations that run at the same time in a local run; a cluster's settings have their own.
    """
    limit = settings.parallelism if settings else parallelism

    def body(tasks: TaskFactory, parameters: dict[str, Any]) -> None:
        planned = tasks.add(begin.plan_sweep, **parameters).output
        with dsl.ParallelFor(planned, parallelism=limit, name="configurations") as variant:
            # The item has its complete configuration: kfp.local gives a loop's steps no output of an earlier task.
            trained = train(tasks, tasks.add(control.prepare_variant, variant=variant))
        tasks.add(control.compare, variants=planned, metrics=dsl.Collected(trained.metrics))

    own = {"variants": Parameter(ITEMS, [dict(variant) for variant in variants], VARIANTS)}
    return build(f"{config.preset}-sweep", f"Sweep over {about(config.preset)}", config, settings, body, own)

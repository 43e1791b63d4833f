"""The sweep pipeline: many configurations of one preset, then their comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from lfm.components import control
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import Placement
from lfm.pipelines.training import about, build, prepare, train


def sweep_pipeline(
    preset: str,
    variants: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any] | None = None,
    settings: ClusterSettings | None = None,
    parallelism: int = 1,
) -> Any:
    """Configure, plan -> for each configuration: data, text, two stages, evaluate -> compare.

    Configurations with the same data or text share them: through KFP's cache, and through the content-addressed store
    where the steps share a volume or a machine. A sweep registers no model.

    Args:
        preset: its name.
        variants: default of the parameter of that name (`lfm.config.sweeps.variants_of`).
        overrides: of all configurations.
        settings: of a cluster; None: a local run.
        parallelism: configurations at a time, in a local run.
    """
    limit = settings.parallelism if settings else parallelism

    def body(place: Placement, resolved: Any, given: dict[str, Any]) -> None:
        planned = place(control.plan_sweep, config=resolved.outputs["config"], variants=given["variants"]).output
        with dsl.ParallelFor(planned, parallelism=limit, name="configurations") as variant:
            # The item carries its whole configuration: kfp.local gives a loop's steps no output of an earlier task.
            one = place(control.configure_variant, variant=variant)
            trained = train(place, one, *prepare(place, one))
        place(control.compare, variants=planned, metrics=dsl.Collected(trained.metrics))

    told = "Configurations to compare, each with a name, a label that its seeds share, and overrides."
    more = {"variants": (list, [dict(variant) for variant in variants], told)}
    return build(f"{preset}-sweep", f"Sweep over {about(preset)}", preset, overrides or {}, settings, body, more)

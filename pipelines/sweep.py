"""The sweep pipeline: many configurations of one preset, then their comparison."""

import itertools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from lfm.components import begin, control
from lfm.config.overrides import apply_overrides
from lfm.config.schema import RunConfig
from lfm.config.sweeps import Part
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.task_settings import TaskFactory
from lfm.pipelines.training import Parameter, about, build, train

ITEMS = list[dict]  # type: ignore[type-arg]
"""Type of the list that is looped over. KFP reads the type of the items from it: of a plain list they are text, which a
backend then refuses where a dictionary is wanted (KFP 2.17.0, driver/resolve.go:199)."""
MOST = 25
"""Configurations of one pipeline run on a cluster.

Argo keeps a run's state in one object of at most 1 MiB, and packs the nodes' part with gzip before it gives up (Argo
4.0.5, workflow/packer/packer.go:15). Seen with KFP 2.17.0, a sweep of 3: 85 KB for the pipeline and, packed, 45 KB
for the nodes outside the loop, 23 KB for those of a configuration. So 39 would fit; further attempts are further nodes.
What the last step is told, 2.9 KB for each configuration, has to stay below 128 KiB.
"""
VARIANTS = "Configurations to compare, each with a name, a label that its seeds share, and overrides."
PART = "Which part of a larger sweep the list is, as lfm sweep --runner kfp writes it; empty: it is the whole."


def sweep_pipeline(
    config: RunConfig,
    variants: Sequence[Mapping[str, Any]],
    settings: ClusterSettings | None = None,
    parallelism: int = 1,
    part: Part | None = None,
) -> Any:
    """Plan -> for each configuration: prepare, two stages, evaluate -> compare.

    Configurations with the same data or text share them through the content-addressed store, where the steps share a
    volume, a machine or LFM_STORE. A sweep registers no model.

    Args:
        config: Configuration that all variants start from.
        variants: Default of the parameter `variants`, as `lfm.config.sweeps.variants_of` makes it.
        settings: Settings of a cluster; None: a local run.
        parallelism: Configurations that run at the same time in a local run; a cluster's settings have their own.
        part: Which part of a larger sweep the variants are.

    Raises:
        InputError: There are more than one pipeline run on a cluster holds.
    """
    if settings and len(variants) > MOST:
        raise InputError(
            f"a sweep of {len(variants)} configurations is too large for one run on a cluster, which holds {MOST}; "
            f"start it with lfm sweep {config.preset} --runner kfp, which makes several runs"
        )
    limit = settings.parallelism if settings else parallelism

    def body(tasks: TaskFactory, parameters: dict[str, Any]) -> None:
        planned = tasks.add(begin.plan_sweep, **parameters).output
        with dsl.ParallelFor(planned, parallelism=limit, name="configurations") as variant:
            # The item has its complete configuration: kfp.local gives a loop's steps no output of an earlier task.
            trained = train(tasks, tasks.add(control.prepare_variant, variant=variant))
        collected = dsl.Collected(trained.metrics)
        tasks.add(control.compare, variants=planned, metrics=collected, part=parameters["part"])

    configs = [apply_overrides(config, variant["overrides"]) for variant in variants]
    own = {
        "variants": Parameter(ITEMS, [dict(variant) for variant in variants], VARIANTS),
        "part": Parameter(str, str(part or ""), PART),
    }
    return build(f"{config.preset}-sweep", f"Sweep over {about(config.preset)}", config, settings, body, own, configs)


def parts(variants: Sequence[Mapping[str, Any]]) -> list[tuple[Part | None, Sequence[Mapping[str, Any]]]]:
    """The configurations of a large sweep, in as few lists of nearly the same length as pipeline runs take.

    Returns:
        Which part each list is, and the list; a single list is no part.
    """
    count = -(-len(variants) // MOST)
    ends = [len(variants) * k // count for k in range(count + 1)]
    lists = [variants[first:last] for first, last in itertools.pairwise(ends)]
    if count == 1:
        return [(None, lists[0])]
    name = uuid.uuid4().hex[:12]
    return [(Part(name, k, count, len(variants)), one) for k, one in enumerate(lists, 1)]

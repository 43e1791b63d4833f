"""What the largest step of a pipeline asks for, and whether a node of the cluster has it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lfm.components.resources import GIB
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compiled import Spec
from lfm.pipelines.kfp_connection import inside_a_cluster

SECONDS = 5
"""The longest wait for the nodes: they are only asked about, as a kindness."""


@dataclass(frozen=True)
class Ask:
    """What a pod requests, or what a node has for pods.

    Args:
        name: Name of the step or node.
        cpu: Cores.
        memory: GiB.
        accelerators: Number of GPUs.
    """

    name: str
    cpu: float
    memory: float
    accelerators: int = 0

    def within(self, node: "Ask") -> bool:
        """Whether the node has it all."""
        return self.cpu <= node.cpu and self.memory <= node.memory and self.accelerators <= node.accelerators

    def __str__(self) -> str:
        gpus = f", {self.accelerators} GPU{'s' * (self.accelerators > 1)}" if self.accelerators else ""
        return f"{self.cpu:g} CPUs, {self.memory:.4g} GiB{gpus}"


def asks(path: Path, gpus: int) -> list[Ask]:
    """What each step of a compiled pipeline requests, the largest first.

    Args:
        path: Compiled pipeline.
        gpus: Number of GPUs of a run, which is a parameter of the pipeline.
    """
    spec, found = Spec.read(path), []
    for component in map(spec.component, (place.task for place in spec.places())):
        if "executorLabel" not in component:  # a group of tasks
            continue
        resources = spec.container(component).get("resources", {})
        cpu, memory = (quantity(resources.get(f"resource{what}Request", 0)) for what in ("Cpu", "Memory"))
        accelerators = gpus if "accelerator" in resources else 0
        found.append(Ask(component["executorLabel"].removeprefix("exec-"), cpu, memory / GIB, accelerators))
    return sorted(found, key=lambda ask: (ask.accelerators, ask.memory, ask.cpu), reverse=True)


def report(path: Path, gpus: int, settings: ClusterSettings) -> Iterator[str]:
    """Lines for who submits: the largest step, and the steps that would wait for ever, if the nodes may be looked at.

    Args:
        path: Compiled pipeline.
        gpus: Number of GPUs of a run.
        settings: Settings of the cluster.
    """
    steps = asks(path, gpus)
    yield f"largest step: {steps[0].name} asks for {steps[0]}"
    context, nodes = _nodes()
    if not nodes:
        return
    for step in steps:
        selector = settings.node_selector if step.accelerators else {}
        tolerated = {toleration.key for toleration in settings.tolerations} if step.accelerators else set()
        open_to_it = [_has(node, settings.accelerator) for node in nodes if _takes(node, selector, tolerated)]
        if any(step.within(node) for node in open_to_it):
            continue
        there = f"the largest has {max(open_to_it, key=lambda n: (n.accelerators, n.memory))}" if open_to_it else "none"
        yield (
            f"warning: step {step.name} would stay Pending: no node of {context} that it may run on has {step} "
            f"({there}); ask for less under steps: in the cluster file (docs/pipelines.md)"
        )


def _nodes() -> tuple[str, list[Any]]:
    """The name of the cluster that this runs in or that kubectl knows, and its nodes; none where it may not look."""
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        if inside_a_cluster():
            config.load_incluster_config()
            context = "this cluster"
        else:
            known = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(known)
            context = str(config.list_kube_config_contexts(known)[1]["name"])
        api = client.CoreV1Api()
        api.api_client.configuration.retries = False
        return context, list(api.list_node(_request_timeout=SECONDS).items)
    except (config.ConfigException, client.ApiException, HTTPError, OSError, yaml.YAMLError):
        return "", []


def _takes(node: Any, selector: Mapping[str, str], tolerated: set[str]) -> bool:
    """Whether a pod with this selector and these tolerations may be placed on a node."""
    taints = [taint for taint in node.spec.taints or () if taint.effect in ("NoSchedule", "NoExecute")]
    labels = node.metadata.labels or {}
    return (
        not node.spec.unschedulable
        and all(labels.get(name) == value for name, value in selector.items())
        and all(taint.key in tolerated for taint in taints)
    )


def _has(node: Any, accelerator: str) -> Ask:
    has = node.status.allocatable
    gpus = int(quantity(has.get(accelerator, 0))) if accelerator else 0
    return Ask(node.metadata.name, quantity(has["cpu"]), quantity(has["memory"]) / GIB, gpus)


def quantity(text: Any) -> float:
    """A number as Kubernetes writes it: 500m is 0.5, 2Ki is 2048."""
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))

"""Resources that each step requests on a cluster, its time limit and retries. A local run ignores them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Resources:
    """Resources of one component.

    Args:
        cpu: CPU cores requested, as Kubernetes writes them.
        memory: Memory requested, which is also its limit.
        hours: Time limit of the step.
        gpu: Whether the step gets the GPUs of the run, and shared memory for the processes that load a batch.
        trains: Whether the step may start other machines to train on, and then needs little itself.
        retries: Attempts after a failure or a lost node; each continues from what the last had finished.
    """

    cpu: str
    memory: str
    hours: float
    gpu: bool = False
    trains: bool = False
    retries: int = 2


LAUNCHER = Resources("500m", "2Gi", 96)
"""What a training step requests that starts other machines and watches them."""

SMALL = Resources("1", "4Gi", 96)
"""The most that a step of the small encoder conv4 requests, so that it fits a node of 2 cores and 8 GiB. Pods with a
limit of 3Gi have prepared, trained and evaluated Fashion-MNIST-LT (KFP 2.17.0)."""


def at_most(resources: Resources, most: Resources) -> Resources:
    """The resources with no more CPU and memory than `most` has."""
    cpu = min(resources.cpu, most.cpu, key=_cores)
    return replace(resources, cpu=cpu, memory=min(resources.memory, most.memory, key=_gib))


def _cores(text: str) -> float:
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def _gib(text: str) -> float:
    return float(text.removesuffix("Gi"))


RESOURCES = {
    "plan-sweep": Resources("500m", "2Gi", 1),
    "prepare": Resources("4", "16Gi", 24),
    "prepare-retraining": Resources("4", "16Gi", 24),
    "prepare-variant": Resources("4", "16Gi", 24),
    "train-stage1": Resources("8", "32Gi", 96, gpu=True, trains=True, retries=5),
    "train-stage2": Resources("8", "32Gi", 48, gpu=True, trains=True, retries=5),
    "evaluate": Resources("4", "16Gi", 6, gpu=True),
    "register": Resources("1", "8Gi", 1),
    "decide": Resources("1", "4Gi", 1),
    "compare": Resources("1", "4Gi", 1),
    "finish": Resources("500m", "2Gi", 1, retries=0),
}

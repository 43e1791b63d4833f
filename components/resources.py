"""Resources that each step requests on a cluster, its time limit, retries and caching. A local run ignores them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Resources of one component.

    Args:
        cpu: CPU cores requested, as Kubernetes writes them.
        memory: Memory requested, which is also its limit.
        hours: Time limit of the step.
        cached: Whether KFP may reuse an earlier result for the same inputs: true only if the step writes nothing but
            its outputs.
        gpu: Whether the step gets the GPUs of the run, and shared memory for the processes that load a batch.
        retries: Attempts after a failure or a lost node; each continues from what the last had finished.
    """

    cpu: str
    memory: str
    hours: float
    cached: bool = False
    gpu: bool = False
    retries: int = 2


RESOURCES = {
    "configure": Resources("500m", "2Gi", 1),
    "plan-sweep": Resources("500m", "2Gi", 1),
    "configure-variant": Resources("500m", "2Gi", 1),
    "fetch-backbone": Resources("1", "8Gi", 2, cached=True),
    "prepare-data": Resources("4", "16Gi", 24, cached=True),
    "data-news": Resources("500m", "2Gi", 1),
    "embed-text": Resources("2", "8Gi", 2, cached=True),
    "train-stage1": Resources("8", "32Gi", 96, gpu=True, retries=5),
    "train-stage2": Resources("8", "32Gi", 48, gpu=True, retries=5),
    "evaluate": Resources("4", "16Gi", 6, gpu=True),
    "register": Resources("1", "8Gi", 1),
    "decide": Resources("1", "4Gi", 1),
    "compare": Resources("1", "4Gi", 1),
    "finish": Resources("500m", "2Gi", 1, retries=0),
}

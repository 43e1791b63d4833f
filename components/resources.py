"""What each step asks of a cluster. A local run asks for nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Of one component.

    Args:
        cpu: cores requested.
        memory: requested, and its limit.
        hours: after which the step is ended.
        cached: KFP may take an earlier result for the same inputs: the step is pure, and writes nowhere else.
        gpu: works on the GPUs of the run form; also gets shared memory for the processes that share a batch.
        retries: after a failure or a lost node. Steps go on from what they had finished.
    """

    cpu: str
    memory: str
    hours: float
    cached: bool = False
    gpu: bool = False
    retries: int = 2


NEEDS = {
    "configure": Needs("500m", "2Gi", 1),
    "plan-sweep": Needs("500m", "2Gi", 1),
    "configure-variant": Needs("500m", "2Gi", 1),
    "fetch-backbone": Needs("1", "8Gi", 2, cached=True),
    "prepare-data": Needs("4", "16Gi", 24, cached=True),
    "data-news": Needs("500m", "2Gi", 1),
    "embed-text": Needs("2", "8Gi", 2, cached=True),
    "train-stage1": Needs("8", "32Gi", 96, gpu=True, retries=5),
    "train-stage2": Needs("8", "32Gi", 48, gpu=True, retries=5),
    "evaluate": Needs("4", "16Gi", 6, gpu=True),
    "register": Needs("1", "8Gi", 1),
    "decide": Needs("1", "4Gi", 1),
    "compare": Needs("1", "4Gi", 1),
    "finish": Needs("500m", "2Gi", 1, retries=0),
}

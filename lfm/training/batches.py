"""Which images make the batches of a stage."""

from torch import Tensor

from lfm.config.schema import RunConfig
from lfm.method.mixup import PairSampler


def pair_sampler(
    config: RunConfig, stage: int, label_N: Tensor, text_CD: Tensor, alpha: float, batch_size: int
) -> PairSampler:
    """The batches of a stage under this configuration."""
    return PairSampler(
        config.mixup, label_N, text_CD, alpha=alpha, batch_size=batch_size, seed=config.seed, stage=stage
    )

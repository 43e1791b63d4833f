"""Which images make the batches of a stage."""

from torch import Tensor

from lfm.config.schema import RunConfig
from lfm.method.mixup import PairSampler


def pair_sampler(
    config: RunConfig, stage: int, label_N: Tensor, text_CD: Tensor, alpha: float, batch_size: int
) -> PairSampler:
    """The batches of a stage under this configuration."""
    mixup = config.mixup
    return PairSampler(
        label_N,
        text_CD,
        name=mixup.name,
        alpha=alpha,
        tau=mixup.tau,
        batch_size=batch_size,
        seed=config.seed,
        stage=stage,
        uniform_partner=mixup.partner == "uniform",
        until_used_up=mixup.partner_image == "until-used-up",
        b=mixup.beta,
        per_batch=mixup.lambda_per == "batch",
        remix_kappa=mixup.remix_kappa,
        remix_tau=mixup.remix_tau,
    )

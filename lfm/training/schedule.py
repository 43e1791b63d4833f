"""The learning rate of each step."""

import math

from lfm.config.schema import StageConfig


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine from lr towards min_lr (Franklin et al. 2024, Table 6).

    Args:
        stage: lr, min_lr, the warm-up's share of the steps, and whether the cosine goes by steps or by epochs. By
            epochs, each keeps the rate of its first step.
        step: from 0.
        steps: of the whole stage, every epoch as many.
    """
    warm = round(stage.warmup * steps)
    if step < warm:
        return stage.lr * (step + 1) / warm
    if stage.cosine == "epoch":
        step = max(warm, step - step % (steps // stage.epochs))
    done = (step - warm) / max(1, steps - warm)
    return stage.min_lr + (stage.lr - stage.min_lr) * (1 + math.cos(math.pi * done)) / 2

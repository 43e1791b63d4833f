"""The learning rate of each step."""

import math

from lfm.config.schema import StageConfig


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine from lr to min_lr at the last step (paper.md section 8).

    Args:
        stage: lr, min_lr and the warm-up's share of the steps.
        step: from 0.
        steps: of the whole stage.
    """
    warm = round(stage.warmup * steps)
    if step < warm:
        return stage.lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return stage.min_lr + (stage.lr - stage.min_lr) * (1 + math.cos(math.pi * done)) / 2

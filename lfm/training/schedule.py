"""The optimizer, and the learning rate of each step."""

import math

import torch
from torch import nn

from lfm.config.schema import StageConfig


def optimizer_of(stage: StageConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a stage, for the parameters that it trains; weight decay falls on all of them."""
    lr, weight_decay = stage.lr, stage.weight_decay
    if stage.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=stage.momentum, weight_decay=weight_decay, fused=True)
    adam = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return adam(trained, lr=lr, weight_decay=weight_decay, fused=True)


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

"""Which images make the batches of a stage."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lfm.config.schema import MixupConfig, RunConfig
from lfm.errors import InputError, unknown
from lfm.method.analysis import Pairs
from lfm.method.label_shares import LEAST_SHARE, LabelShares
from lfm.method.mixup import PairSampler
from lfm.method.partners import Barred

BLOCK = 2**22
"""Entries of the class-by-class table that are looked at together."""


def pair_sampler(
    config: RunConfig,
    stage: int,
    label_N: Tensor,
    text_CD: Tensor,
    alpha: float,
    batch_size: int,
    classes: Sequence[str] = (),
) -> PairSampler:
    """The batches of a stage under this configuration; `classes` are the names that `mixup.exclude` speaks of."""
    return PairSampler(
        config.mixup, label_N, text_CD, alpha=alpha, batch_size=batch_size, seed=config.seed, stage=stage,
        barred=barred_partners(config.mixup, classes, text_CD),
    )  # fmt: skip


def label_shares(
    config: RunConfig, stage: int, count_C: Tensor, text_CD: Tensor, alpha: float, batch_size: int,
    classes: Sequence[str] = (),
) -> LabelShares:  # fmt: skip
    """What share of the label mass each class gets in a stage under this configuration.

    Args:
        config: of the run.
        stage: 1 or 2.
        count_C: training images of each class.
        text_CD: class embeddings, rows of unit length.
        alpha: strength of the label shift, a number even where the configuration says "auto".
        batch_size: images of a step.
        classes: names that `mixup.exclude` speaks of.

    Raises:
        InputError: the loss would divide by the share of a class that gets no label mass.
    """
    mixup = config.mixup
    barred = barred_partners(mixup, classes, text_CD)
    pairs = Pairs(count_C, text_CD, mixup.tau, mixup.partner == "uniform", barred)
    shares = LabelShares(mixup, pairs, alpha, -(-int(count_C.sum()) // batch_size))
    if config.loss.adjust == "label-mass" and float(shares.mass_C.min()) < LEAST_SHARE:
        k = int(shares.mass_C.argmin())
        raise InputError(
            f"class {classes[k] if classes else k!r} gets no label mass in stage {stage} at alpha {alpha:g}, so "
            f"loss.adjust=label-mass has no logarithm of it; lower stage{stage}.alpha"
        )
    return shares


def barred_partners(config: MixupConfig, classes: Sequence[str], text_CD: Tensor) -> Barred | None:
    """The partners that `mixup.exclude` and `mixup.max_similarity` rule out; None if they rule out none.

    Args:
        config: of the mixup.
        classes: names of all classes.
        text_CD: their embeddings, rows of unit length.

    Raises:
        InputError: a name that is no class, a class with itself, or a class without any partner left.
    """
    if config.name != "lfm" or not (config.exclude or config.max_similarity < 1):
        return None
    number = {name: k for k, name in enumerate(classes)}
    for pair in config.exclude:
        if stranger := next((name for name in pair if name not in number), ""):
            raise unknown("class in mixup.exclude", stranger, classes)
        if pair[0] == pair[1]:
            raise InputError(f"mixup.exclude has {pair[0]!r} with itself; a pair is of two classes")
    pairs = [[number[name] for name in pair] for pair in config.exclude]
    barred = Barred(config.max_similarity, torch.tensor(pairs, dtype=torch.long).view(-1, 2))
    every_C = torch.arange(len(text_CD))
    for class_R in every_C.split(max(1, BLOCK // len(text_CD))):
        alone_RC = barred.mask(class_R, every_C[None], text_CD[class_R] @ text_CD.T) | (class_R[:, None] == every_C)
        if len(alone := class_R[alone_RC.all(dim=1)]):
            name = classes[int(alone[0])] if classes else int(alone[0])
            raise InputError(
                f"class {name!r} has no partner left; raise mixup.max_similarity ({config.max_similarity:g}), or take "
                f"pairs out of mixup.exclude"
            )
    return barred

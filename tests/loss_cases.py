"""Losses by name on drawn cosines.

Letters in the names give shapes: B images, C classes, D dimensions, K labels an image carries.
"""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.config.schema import LossConfig
from lfm.method.losses import LOSSES, Classes, LabelLoss, make_loss

few = settings(max_examples=25, deadline=None, derandomize=True)
each_loss = pytest.mark.parametrize("name", LOSSES)
seeds = st.integers(0, 9999)
class_numbers = st.integers(2, 7)


class Case(NamedTuple):
    """Random inputs in float64: cosines, mixed labels of two classes, and the classes."""

    cosine_BC: Tensor
    label_B2: Tensor
    weight_B2: Tensor
    classes: Classes


def make_case(seed: int, classes: int, images: int = 4) -> Case:
    rng = torch.Generator().manual_seed(seed)
    text_CD = torch.randn(classes, 5, generator=rng, dtype=torch.float64)
    weight_B = torch.rand(images, generator=rng, dtype=torch.float64)
    return Case(
        torch.rand(images, classes, generator=rng, dtype=torch.float64) * 2 - 1,
        torch.randint(classes, (images, 2), generator=rng),
        torch.stack([weight_B, 1 - weight_B], dim=1),
        Classes(torch.randint(1, 1000, (classes,), generator=rng), F.normalize(text_CD, dim=1)),
    )


def loss_of(name: str, classes: Classes, **values: Any) -> LabelLoss:
    return make_loss(LossConfig(name=name, **values), classes)


def target_of(case: Case) -> Tensor:
    """The mixed labels as one distribution over the classes, added up image by image."""
    target_BC = torch.zeros_like(case.cosine_BC)
    for b, (labels, weights) in enumerate(zip(case.label_B2.tolist(), case.weight_B2.tolist(), strict=True)):
        for label, weight in zip(labels, weights, strict=True):
            target_BC[b, label] += weight
    return target_BC

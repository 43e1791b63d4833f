"""The losses that the paper compares, on cosine logits (Franklin et al. 2024, Table 1).

Letters in the names give shapes: B images, C classes, K labels an image carries (1 hard, 2 mixed, C dense).

Every loss is cross-entropy on logits that depend on which label is asked about, so each is one function
`(cosine_BC, label_BK) -> loss_BK`, and a soft label's loss is the label-weighted sum. For CE that is exactly the
cross-entropy against the soft label; for the others it is what the authors' code does for MMS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:  # the losses themselves need torch alone
    from lfm.config.schema import LossConfig


@dataclass(frozen=True)
class Classes:
    """What a loss may know of the classes."""

    count_C: Tensor
    """Training images of each class, all above 0."""
    text_CD: Tensor
    """Class embeddings, rows of unit length."""
    adjusting_C: Tensor | None = None
    """Class shares that logit adjustment removes (`lfm.method.label_shares`), where `loss.adjust` asks for it."""


LabelLoss = Callable[[Tensor, Tensor], Tensor]


def ce(cosine_BC: Tensor, label_BK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy: -log softmax(z / T)_y. (B, K)."""
    return -(cosine_BC / temperature).log_softmax(dim=1).gather(1, label_BK)


def balce(cosine_BC: Tensor, label_BK: Tensor, temperature: float, count_C: Tensor) -> Tensor:
    """Balanced softmax (Ren et al. 2020, eq. 3): -log (n_y e^{z_y / T} / sum_k n_k e^{z_k / T}). (B, K)."""
    return ce(cosine_BC / temperature + count_C.to(cosine_BC.dtype).log(), label_BK, temperature=1.0)


def focal(cosine_BC: Tensor, label_BK: Tensor, temperature: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 4): -(1 - p_y)^gamma log p_y, p = softmax(z / T). (B, K)."""
    loss_BK = ce(cosine_BC, label_BK, temperature)
    if gamma == 0:
        return loss_BK
    # 1 - p from log p without cancellation; the floor keeps the power's slope finite at p = 1 for gamma < 1.
    miss_BK = (-torch.expm1(-loss_BK)).clamp_min(torch.finfo(loss_BK.dtype).tiny)
    return miss_BK.pow(gamma) * loss_BK


def ldam(cosine_BC: Tensor, label_BK: Tensor, margin: float, scale: float, count_C: Tensor) -> Tensor:
    """LDAM (Cao et al. 2019, eq. 13): cross-entropy of scale (z - m_y onehot(y)). (B, K).

    m_y is proportional to n_y^{-1/4}; the rarest class has `margin`.
    """
    margin_C = count_C.to(cosine_BC.dtype).pow(-0.25)
    margin_C = margin_C * (margin / margin_C.max())
    own_BKC = F.one_hot(label_BK, cosine_BC.shape[1])
    shifted_BKC = scale * (cosine_BC[:, None, :] - own_BKC * margin_C)
    return _cross_entropy(shifted_BKC, label_BK)


def mms(cosine_BC: Tensor, label_BK: Tensor, margin: float, temperature: float, text_CD: Tensor) -> Tensor:
    """Metric margin softmax (Shu et al. 2023, eq. 4). (B, K).

    Cross-entropy of (z_k + margin (1 - f_Ty . f_Tk)) / T: a wrong class's margin grows with its text distance.
    """
    text_CD = text_CD.to(cosine_BC.dtype)
    distance_BKC = 1 - text_CD[label_BK] @ text_CD.T
    distance_BKC = distance_BKC.scatter(2, label_BK[:, :, None], 0.0)  # a class is at no distance from itself
    return _cross_entropy((cosine_BC[:, None, :] + margin * distance_BKC) / temperature, label_BK)


def adjusted(loss: LabelLoss, temperature: float, strength: float, share_C: Tensor) -> LabelLoss:
    """Logit adjustment (Menon et al. 2021, eq. 10) of any loss: cross-entropy of z / T + s log pi.

    Every loss begins with cosines over some T, so adding T s log pi to the cosines adds s log pi to its logits.

    Args:
        loss: on the cosines.
        temperature: T, which the loss divides the cosines by.
        strength: s; 1 in the paper.
        share_C: pi, class shares above 0.
    """
    offset_C = temperature * strength * share_C.double().log()
    return lambda cosine_BC, label_BK: loss(cosine_BC + offset_C.to(cosine_BC), label_BK)


def _cross_entropy(logits_BKC: Tensor, label_BK: Tensor) -> Tensor:
    return -logits_BKC.log_softmax(dim=2).gather(2, label_BK[:, :, None])[:, :, 0]


LOSSES: dict[str, Callable[["LossConfig", Classes], LabelLoss]] = {
    "ce": lambda v, c: lambda z, y: ce(z, y, v.temperature),
    "balce": lambda v, c: lambda z, y: balce(z, y, v.temperature, c.count_C),
    "focal": lambda v, c: lambda z, y: focal(z, y, v.temperature, v.focal_gamma),
    "ldam": lambda v, c: lambda z, y: ldam(z, y, v.ldam_margin, v.ldam_scale, c.count_C),
    "mms": lambda v, c: lambda z, y: mms(z, y, v.mms_margin, v.mms_temperature, c.text_CD),
}


def make_loss(values: "LossConfig", classes: Classes) -> LabelLoss:
    """The loss named by the configuration, as `(cosine_BC, label_BK) -> loss_BK`."""
    loss = LOSSES[values.name](values, classes)
    if values.adjust == "none":
        return loss
    assert classes.adjusting_C is not None, "logit adjustment needs the shares that it removes"
    return adjusted(loss, values.divisor, values.adjust_strength, classes.adjusting_C)


def soft(loss: LabelLoss, cosine_BC: Tensor, label_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Loss of each image under a soft label: sum_k weight_k loss(label_k). (B,).

    Args:
        loss: from `make_loss`.
        cosine_BC: cosine logits in [-1, 1].
        label_BK: classes that carry label mass, int64.
        weight_BK: their mass, rows summing to 1.
    """
    return (loss(cosine_BC, label_BK) * weight_BK).sum(dim=1)


def hard(label_B: Tensor) -> tuple[Tensor, Tensor]:
    """A hard label as (label_BK, weight_BK) with K = 1."""
    return label_B[:, None], torch.ones(len(label_B), 1, device=label_B.device)


def dense(target_BC: Tensor) -> tuple[Tensor, Tensor]:
    """A dense soft label (B, C) as (label_BK, weight_BK) with K = C."""
    return torch.arange(target_BC.shape[1], device=target_BC.device).expand(target_BC.shape), target_BC

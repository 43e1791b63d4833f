"""What the method will do to a data set, computed exactly and before any training.

Source: Franklin et al. 2024, local sampling, and figures 4 to 6; the masses are ours (docs/method.md).

Letters in the names give shapes: C classes, D embedding dimensions, R rows of a block. The partner distribution
is C x C; it is walked in blocks of rows, so memory stays flat at any number of classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lfm.method.mixup import local_sampling_rows, uniform_rows
from lfm.method.partners import Barred

BLOCK_ENTRIES = 2**22
# Gauss-Jacobi nodes for the expectation over lambda_x ~ Beta(b, b); lambda_y has two kinks, hence so many.
NODES = 256


@dataclass(frozen=True)
class Pairs:
    """The distribution of training pairs: p(y_i) from the counts, p_ls(y_j | y_i) from the text.

    Args:
        count_C: training images of each class.
        text_CD: class embeddings, rows of unit length.
        tau: temperature of local sampling.
        uniform: partner class uniform over the others instead of by text.
        barred: partners that are never drawn.
    """

    count_C: Tensor
    text_CD: Tensor
    tau: float
    uniform: bool = False
    barred: Barred | None = None

    @property
    def prior_C(self) -> Tensor:
        """p(y) = n_y / N, float64."""
        return self.count_C.double() / self.count_C.sum()

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(classes R, p_ls rows (R, C)) until every class has been."""
        classes = len(self.count_C)
        for class_R in torch.arange(classes).split(max(1, BLOCK_ENTRIES // classes)):
            yield (
                class_R,
                uniform_rows(class_R, classes)
                if self.uniform and not self.barred
                else local_sampling_rows(self.text_CD, class_R, torch.inf if self.uniform else self.tau, self.barred),
            )

    def shift(self, class_R: Tensor) -> Tensor:
        """(n_i - n_j) / (n_i + n_j) for i in the block and every j, (R, C) float64."""
        n_i, n_j = self.count_C.double()[class_R][:, None], self.count_C.double()[None, :]
        return (n_i - n_j) / (n_i + n_j)


def seen_probability(pairs: Pairs) -> Tensor:
    """p(Y = y) = p(y) + (1 - p(y)) sum_{k != y} p_ls(y | k) p(k), of the paper's local sampling. (C,).

    The paper's formula, which takes the two images of a pair for independent; the exact share of pairs that show
    class y is p(y) + sum_{k != y} p_ls(y | k) p(k).
    """
    prior_C = pairs.prior_C
    partner_C = torch.zeros_like(prior_C)
    for class_R, rows_RC in pairs.blocks():
        partner_C += prior_C[class_R] @ rows_RC
    return prior_C + (1 - prior_C) * partner_C


def imbalance(value_C: Tensor) -> float:
    """Max / min over the classes: gamma of counts, gamma' of p(Y)."""
    return float(value_C.max() / value_C.min())


def own_label_mass(pairs: Pairs, alpha: float) -> Tensor:
    """Expected weight of a class's own label on its clean images, in both roles of a pair. (C,) in [0, 1].

    A clean image of class i as first (lambda_x = 1) keeps hi_ij = clamp(1 - alpha s_ij, 0, 1) of its label, as
    partner (lambda_x = 0) 1 - lo_ij with lo_ij = clamp(-alpha s_ij, 0, 1); s_ij = (n_i - n_j) / (n_i + n_j), and
    pairs weigh w_ij = p_i p_ls(j | i). Under one half, another class's label wins on the class's own images: it
    is about to collapse. Source: ours, docs/method.md.
    """
    prior_C = pairs.prior_C
    kept_C, seen_C = torch.zeros_like(prior_C), torch.zeros_like(prior_C)
    for class_R, rows_RC in pairs.blocks():
        weight_RC = prior_C[class_R][:, None] * rows_RC
        shift_RC = alpha * pairs.shift(class_R)
        kept_C[class_R] += (weight_RC * (1 - shift_RC).clamp(0, 1)).sum(1)
        kept_C += (weight_RC * (1 - (-shift_RC).clamp(0, 1))).sum(0)
        seen_C[class_R] += weight_RC.sum(1)
        seen_C += weight_RC.sum(0)
    return kept_C / seen_C


def label_mass(pairs: Pairs, alpha: float, beta: float = 0.5) -> Tensor:
    """M_c = sum_j w_cj E[lambda_y] + sum_i w_ic E[1 - lambda_y], lambda_x ~ Beta(beta, beta). (C,), sums to 1.

    The share of all label mass that class c receives in training. Source: ours, docs/method.md.
    """
    prior_C = pairs.prior_C
    mass_C = torch.zeros_like(prior_C)
    for class_R, rows_RC in pairs.blocks():
        weight_RC = prior_C[class_R][:, None] * rows_RC
        first_RC = expected_label_weight(alpha * pairs.shift(class_R), beta)
        mass_C[class_R] += (weight_RC * first_RC).sum(1)
        mass_C += (weight_RC * (1 - first_RC)).sum(0)
    return mass_C


def expected_label_weight(shift: Tensor, beta: float) -> Tensor:
    """E[clamp(lambda_x - shift, 0, 1)] for lambda_x ~ Beta(beta, beta), elementwise.

    For beta = 1/2 in closed form: lambda = sin^2(t), t uniform on [0, pi/2], so that with the clamp's borders a, b
    in t the mean is the integral of sin^2 between them, less the shift, plus the part that is clamped to 1.
    Otherwise by quadrature over the quantiles of Beta.
    """
    if beta == 0.5:
        low, high = (
            torch.asin(shift.clamp(0, 1).sqrt()),
            torch.asin((1 + shift).clamp(0, 1).sqrt()),
        )
        inside = (high - low) / 2 - (torch.sin(2 * high) - torch.sin(2 * low)) / 4 - shift * (high - low)
        return (inside + (torch.pi / 2 - high)) / (torch.pi / 2)
    total = torch.zeros_like(shift)
    for x, weight in zip(*_beta_nodes(beta), strict=True):
        total += weight * (x - shift).clamp(0, 1)
    return total


def _beta_nodes(beta: float) -> tuple[list[float], list[float]]:
    """Nodes and weights of Beta(beta, beta) on [0, 1], by Golub and Welsch on the Jacobi recurrence."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    a = beta - 1
    # Symmetric Jacobi polynomials: the diagonal is zero.
    squared = 4 * k * (k + a) ** 2 * (k + 2 * a) / ((2 * k + 2 * a) ** 2 * ((2 * k + 2 * a) ** 2 - 1))
    if a == -0.5:
        squared[0] = 0.5  # the general formula is 0 / 0 here
    matrix = torch.diag(squared.sqrt(), 1) + torch.diag(squared.sqrt(), -1)
    node, vector = torch.linalg.eigh(matrix)
    return ((1 + node) / 2).tolist(), (vector[0] ** 2).tolist()


def neighbours(text_CD: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """The k most similar other classes of each class: indices and cosines, both (C, k)."""
    k = min(k, len(text_CD) - 1)
    index, cosine = [], []
    for class_R in torch.arange(len(text_CD)).split(max(1, BLOCK_ENTRIES // len(text_CD))):
        similar_RC = (text_CD[class_R] @ text_CD.T).scatter_(1, class_R[:, None], -torch.inf)
        top = similar_RC.topk(k, dim=1)
        index.append(top.indices)
        cosine.append(top.values)
    return torch.cat(index), torch.cat(cosine)


def effective_partners(pairs: Pairs) -> float:
    """e^H, H the mean entropy of p_ls(. | y) over training images: how many partner classes an image has in effect.

    From 1, always the same, to C - 1, all alike. Unlike tau it means the same under any text tower. Source: ours.
    """
    entropy = 0.0
    for class_R, rows_RC in pairs.blocks():
        entropy += float(pairs.prior_C[class_R] @ torch.special.entr(rows_RC.double()).sum(dim=1))
    return math.exp(entropy)


def tau_for(pairs: Pairs, partners: float, steps: int = 30) -> float:
    """The temperature that gives so many effective partners, which rise with it; by bisection of its logarithm.

    Args:
        pairs: whose own temperature does not matter.
        partners: from 1 to C - 1.
        steps: of bisection.
    """
    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(steps):
        middle = (low + high) / 2
        enough = effective_partners(replace(pairs, tau=math.exp(middle))) >= partners
        low, high = (low, middle) if enough else (middle, high)
    return math.exp(high)


def auto_alpha(pairs: Pairs, threshold: float, most: float = 2.0, steps: int = 40) -> float:
    """The largest alpha in [0, most] that keeps every class's own-label mass at or above the threshold.

    The mass of a class never rises with alpha (1 - alpha s for s > 0, and 1 - (-alpha s) for s < 0, both fall),
    so bisection finds it. At alpha = 0 it is 1: there always is an answer. Rounded down to four decimals.
    """

    def keeps(alpha: float) -> bool:
        return bool(own_label_mass(pairs, alpha).min() >= threshold)

    if keeps(most):
        return most
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return int(low * 1e4) / 1e4

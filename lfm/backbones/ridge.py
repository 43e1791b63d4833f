"""Where a projection into the text space starts that no text was ever aligned with: ridge regression, in closed form.

Letters give shapes: N images, F features, C classes, D embedding dimensions, S strengths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 5))
"""Penalties that are tried, in units of the features' mean variance: 1e-4 to 1e2."""


class Projection(NamedTuple):
    """Features -> text space: `feature_NF @ weight_DF.T + bias_D`.

    Args:
        weight_DF: the map, float32.
        bias_D: its intercept, float32.
        penalty: of the squared weights, as the objective has it.
        errors_S: leave-one-out error of each of `STRENGTHS`.
    """

    weight_DF: Tensor
    bias_D: Tensor
    penalty: float
    errors_S: Tensor


def balanced_ridge(feature_NF: Tensor, label_N: Tensor, text_CD: Tensor) -> Projection:
    """The linear map from features to the embedding of each image's class, every class weighing the same.

        min over A, b of   sum_n w_n |A x_n + b - f_T(y_n)|^2 + penalty |A|^2,    w_n = 1 / (C n_{y_n})

    The penalty is the one of `STRENGTHS` with the least squared error on images left out, one at a time, which has a
    closed form as well (Allen 1974): the residual of image n in a fit without it is r_n / (1 - h_n), h_n being the
    weight of its own target in its own prediction. Classes of one image do not judge: without it, nothing of them is
    left.

    Args:
        feature_NF: of the training images.
        label_N: their classes.
        text_CD: class embeddings.
    """
    x_NF, text_CD = feature_NF.double(), text_CD.double()
    count_C = label_N.bincount(minlength=len(text_CD)).double()
    weight_N = (1 / (count_C * (count_C > 0).sum()))[label_N]  # they sum to 1
    mean_F, mean_D = weight_N @ x_NF, weight_N @ text_CD[label_N]
    x_NF = x_NF - mean_F
    target_CD = text_CD - mean_D

    spread_F, axes_FF = torch.linalg.eigh((x_NF * weight_N[:, None]).T @ x_NF)
    x_NF = x_NF @ axes_FF
    both_FD = (x_NF * weight_N[:, None]).T @ target_CD[label_N]
    penalty_S = torch.tensor(STRENGTHS, dtype=torch.float64) * spread_F.mean()
    judge_N = weight_N * (count_C[label_N] > 1)
    errors = []
    for penalty in penalty_S:
        shrink_F = 1 / (spread_F.clamp(min=0) + penalty)
        own_N = weight_N * (1 + x_NF.square() @ shrink_F)
        off_ND = (target_CD[label_N] - x_NF @ (both_FD * shrink_F[:, None])) / (1 - own_N)[:, None]
        errors.append(judge_N @ off_ND.square().sum(1))
    errors_S = torch.stack(errors)
    penalty = penalty_S[errors_S.argmin()]
    weight_DF = (both_FD / (spread_F.clamp(min=0) + penalty)[:, None]).T @ axes_FF.T
    return Projection(weight_DF.float(), (mean_D - weight_DF @ mean_F).float(), float(penalty), errors_S)

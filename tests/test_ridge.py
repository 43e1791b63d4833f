"""The closed form against scikit-learn's ridge regression, and its left-out errors against fits without each image."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from lfm.backbones.ridge import STRENGTHS, balanced_ridge

COUNTS = (20, 9, 3, 1)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """33 images of 40 features, more than there are images, of four classes in 6 dimensions."""
    rng = torch.Generator().manual_seed(0)
    label_N = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    centre_CF = 2 * torch.randn(4, 40, generator=rng)
    feature_NF = 5 + centre_CF[label_N] + torch.randn(len(label_N), 40, generator=rng)
    text_CD = torch.nn.functional.normalize(0.5 + torch.randn(4, 6, generator=rng), dim=1)
    shuffled_N = torch.randperm(len(label_N), generator=rng)
    return feature_NF[shuffled_N], label_N[shuffled_N], text_CD


def weights(label_N: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Each class weighs as much as any other: told image by image."""
    return np.array([1 / (4 * COUNTS[int(k)]) for k in label_N])


def test_it_is_scikit_learns(case: tuple[Tensor, Tensor, Tensor]) -> None:
    feature_NF, label_N, text_CD = case
    found = balanced_ridge(feature_NF, label_N, text_CD)
    oracle = Ridge(alpha=found.penalty).fit(
        feature_NF.double().numpy(), text_CD[label_N].double().numpy(), sample_weight=weights(label_N)
    )
    assert np.abs(found.weight_DF.numpy() - oracle.coef_).max() < 1e-6
    assert np.abs(found.bias_D.numpy() - oracle.intercept_).max() < 1e-5


def test_the_penalty_is_the_one_with_the_least_error_on_images_left_out(case: tuple[Tensor, Tensor, Tensor]) -> None:
    feature_NF, label_N, text_CD = case
    found = balanced_ridge(feature_NF, label_N, text_CD)
    x, y, w = feature_NF.double().numpy(), text_CD[label_N].double().numpy(), weights(label_N)
    mean = w @ x
    variance = float(w @ ((x - mean) ** 2).mean(1))
    errors = []
    for strength in STRENGTHS:
        error = 0.0
        for n in range(len(x)):
            if COUNTS[int(label_N[n])] > 1:
                rest = np.arange(len(x)) != n
                fit = Ridge(alpha=strength * variance).fit(x[rest], y[rest], sample_weight=w[rest])
                error += w[n] * float(((fit.predict(x[n : n + 1])[0] - y[n]) ** 2).sum())
        errors.append(error)
    assert found.errors_S.numpy() == pytest.approx(errors, rel=1e-6)
    best = int(np.argmin(errors))
    assert 0 < best < len(STRENGTHS) - 1 and found.penalty == pytest.approx(STRENGTHS[best] * variance)

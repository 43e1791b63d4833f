"""The calibrated temperature against the minimum of the same likelihood written as a loop."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from lfm.evaluation.calibration import RANGE, fit_temperature


def draws(temperature: float, images: int = 4000, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines, and labels drawn from softmax(cosine / temperature)."""
    rng = torch.Generator().manual_seed(0)
    cosine_NC = torch.rand(images, classes, generator=rng) * 2 - 1
    return cosine_NC, (cosine_NC / temperature).softmax(dim=1).multinomial(1, generator=rng)[:, 0]


@pytest.mark.parametrize("true", [0.05, 0.3, 2.0])
def test_it_finds_the_temperature_that_drew_the_labels_and_scipys_minimum(true: float) -> None:
    cosine_NC, label_N = draws(true)

    def loss(log: float) -> float:
        total = 0.0
        for row, label in zip(cosine_NC.tolist(), label_N.tolist(), strict=True):
            total += math.log(sum(math.exp((z - row[label]) / math.exp(log)) for z in row))
        return total / len(label_N)

    found = fit_temperature(cosine_NC, label_N, 0.1, "val")
    best = minimize_scalar(loss, bounds=(math.log(true / 5), math.log(5 * true)), method="bounded")
    assert found.temperature == pytest.approx(math.exp(best.x), rel=1e-3) == pytest.approx(true, rel=0.15)
    assert found.after == pytest.approx(best.fun, rel=1e-6) and found.after <= found.before
    assert found.before == pytest.approx(loss(math.log(0.1)), rel=1e-6)
    assert (found.images, found.split) == (4000, "val")


def test_answers_that_are_all_right_or_all_wrong_end_at_the_bounds() -> None:
    cosine_NC = torch.eye(5)
    label_N = torch.arange(5)
    assert fit_temperature(cosine_NC, label_N, 0.1, "val").temperature == pytest.approx(0.1 / RANGE, rel=1e-6)
    assert fit_temperature(cosine_NC, label_N.flip(0), 0.1, "val").temperature == pytest.approx(0.1 * RANGE, rel=1e-6)

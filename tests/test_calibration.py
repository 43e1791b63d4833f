"""The calibrated temperature against the minimum of the same likelihood written as a loop."""

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from lfm.evaluation.calibration import RANGE, fit_shift, fit_temperature


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


def shifted_draws(images: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Cosines over 0.2 that stand for uneven shares, of images in other shares: exact posteriors, and their labels."""
    rng = torch.Generator().manual_seed(0)
    own_C = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    label_N = torch.tensor([0.25, 0.15, 0.2, 0.4]).multinomial(images, replacement=True, generator=rng)
    mean_CD = torch.eye(4, dtype=torch.float64)
    x_ND = mean_CD[label_N] + 0.8 * torch.randn(images, 4, generator=rng, dtype=torch.float64)
    return 0.2 * (x_ND @ mean_CD.T / 0.8**2 + own_C.log()), label_N, own_C.tolist()


def test_the_shares_that_logits_stand_for_are_found_whatever_training_says() -> None:
    cosine_NC, label_N, own = shifted_draws(40_000)
    for said in (own, [0.25] * 4):
        found = fit_shift(cosine_NC, label_N, 0.05, "val", torch.tensor(said))
        assert found.temperature == pytest.approx(0.2, rel=0.02)
        assert list(found.prior) == pytest.approx(own, abs=0.015) and sum(found.prior) == pytest.approx(1)
        assert found.after < found.before and (found.images, found.split) == (40_000, "val")


def test_it_is_the_minimum_of_the_penalised_likelihood_written_as_a_loop() -> None:
    cosine_NC, label_N, _ = shifted_draws(60)
    said = [0.4, 0.3, 0.2, 0.1]
    shares = [(label_N == k).double().mean().item() for k in range(4)]

    def objective(x: Any) -> float:
        total = sum(v**2 for v in x[1:]) / 2
        for row, label in zip(cosine_NC.tolist(), label_N.tolist(), strict=True):
            logit = [z * math.exp(x[0]) / 0.1 + math.log(shares[k] / said[k]) - x[k + 1] for k, z in enumerate(row)]
            total += math.log(sum(math.exp(v) for v in logit)) - logit[label]
        return total / 60

    best = minimize(objective, [0.0] * 5, method="BFGS", options={"gtol": 1e-8})
    found = fit_shift(cosine_NC, label_N, 0.1, "val", torch.tensor(said))
    assert found.temperature == pytest.approx(0.1 / math.exp(best.x[0]), rel=1e-3)
    wanted = [p * math.exp(v) for p, v in zip(said, best.x[1:], strict=True)]
    assert list(found.prior) == pytest.approx([w / sum(wanted) for w in wanted], abs=1e-4)


def test_few_images_leave_the_shares_of_training_and_a_class_without_images_alone() -> None:
    cosine_NC, label_N, own = shifted_draws(12)
    none = label_N != 3
    found = fit_shift(cosine_NC[none], label_N[none], 0.2, "val", torch.tensor(own))
    assert list(found.prior) == pytest.approx(own, abs=0.2)
    unchanged = fit_shift(cosine_NC[:1], label_N[:1], 0.2, "val", torch.tensor(own))
    assert list(unchanged.prior) == pytest.approx(own, abs=1e-6), "one image's class has all of it: nothing to learn"

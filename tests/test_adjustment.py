"""Logit adjustment after training against loops, ties, and a mixture whose right answer is known.

Letters in the names give shapes: N images, C classes, D dimensions.
"""

import math

import pytest
import torch
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.config.presets import load
from lfm.evaluation.adjustment import STRENGTHS, direction, predict_adjusted, tune
from lfm.report.tables import MOST_STRENGTH, adjusted_name

CONFIG = load("fashion-mnist-lt", {"train.precision": "fp32"})
T = 0.05


def model_of(classes: int) -> LFM:
    """Its cosines are the first entries of features of unit length."""
    text_CD = torch.eye(classes, classes + 1)
    return LFM(conv4(1, classes + 1, 0), text_CD)


def features(cosine_NC: Tensor) -> Tensor:
    """Features of unit length with these cosines, whose squares add up to less than 1. (N, C + 1)."""
    rest_N1 = (1 - cosine_NC.square().sum(dim=1, keepdim=True)).sqrt()
    assert not rest_N1.isnan().any()
    return torch.cat([cosine_NC, rest_N1], dim=1)


def looped(cosine: list[list[float]], labels: list[int], log_prior: list[float]) -> tuple[float, float, list[int]]:
    """The best strength, its mean accuracy of the classes in percent, and the answers, in plain Python."""
    best, found, answers = 0.0, -1.0, []
    for k in range(31):
        strength = k / 10
        said = [
            max(range(len(z)), key=lambda c, z=z: z[c] / T - strength * log_prior[c])  # type: ignore[misc]
            for z in cosine
        ]
        shares = [
            sum(a == c for a, y in zip(said, labels, strict=True) if y == c) / labels.count(c)
            for c in sorted(set(labels))
        ]
        mean = 100 * math.fsum(shares) / len(shares)
        if mean > found + 1e-9:
            best, found, answers = strength, mean, said
    return best, found, answers


@pytest.mark.parametrize("seed", range(6))
def test_the_strength_is_that_of_a_loop_over_images_and_classes(seed: int) -> None:
    rng, classes = torch.Generator().manual_seed(seed), 6
    prior_C = torch.tensor([0.5, 0.25, 0.12, 0.08, 0.03, 0.02], dtype=torch.float64)
    label_N = torch.randint(classes - 1, (120,), generator=rng)  # one class has no validation image
    cosine_NC = 0.02 * torch.randn(120, classes, generator=rng) + 0.05 * prior_C.log().float()
    cosine_NC[torch.arange(120), label_N] += 0.05
    tuned = tune(model_of(classes), features(cosine_NC), label_N, prior_C.log(), T, CONFIG)
    strength, mean, answers = looped(cosine_NC.tolist(), label_N.tolist(), prior_C.log().tolist())
    assert 0 < strength < 3, "the case is no border case"
    assert (tuned.strength, tuned.images) == (strength, 120)
    assert tuned.after == pytest.approx(mean) and tuned.after > tuned.before
    assert predict_adjusted(model_of(classes), features(cosine_NC), tuned, CONFIG).tolist() == answers


def test_of_equally_good_strengths_the_smallest_is_taken() -> None:
    cosine_NC = torch.tensor([[0.9, 0.0], [0.0, 0.9]])  # right whatever is taken off
    tuned = tune(model_of(2), features(cosine_NC), torch.tensor([0, 1]), torch.tensor([0.7, 0.3]).log(), T, CONFIG)
    assert (tuned.strength, tuned.before, tuned.after) == (0.0, 100.0, 100.0)
    assert tuned.offset_C.tolist() == [0.0, 0.0]


def test_exact_posteriors_of_a_long_tailed_mixture_are_put_right_by_strength_one() -> None:
    """Three Gaussians in one dimension: what a model trained on shares pi says, asked about even shares."""
    mean_C, prior_C = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    label_N = torch.arange(3).repeat(20_000)
    x_N = mean_C[label_N] + 0.6 * torch.randn(len(label_N), generator=rng)
    logit_NC = -((x_N[:, None] - mean_C) ** 2) / (2 * 0.6**2) + prior_C.log().float()
    scale = 0.01
    tuned = tune(model_of(3), features(scale * logit_NC.clamp_min(-60)), label_N, prior_C.log(), scale, CONFIG)
    assert tuned.strength == pytest.approx(1.0, abs=0.1)
    bayes = 100 * float(((x_N[:, None] - mean_C).abs().argmin(dim=1) == label_N).float().mean())
    assert tuned.after == pytest.approx(bayes, abs=0.1) and tuned.before < bayes - 10


def test_shares_that_are_all_the_same_give_way_to_those_of_the_training_images() -> None:
    count_C = torch.tensor([6, 3, 1])
    even_C = torch.full((3,), 1 / 3, dtype=torch.float64) + torch.tensor([0, 1e-12, 0], dtype=torch.float64)
    assert direction(even_C, count_C).exp().tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert direction(torch.tensor([0.4, 0.4, 0.2]), count_C).exp().tolist() == pytest.approx([0.4, 0.4, 0.2])


def test_strengths_and_name() -> None:
    assert (STRENGTHS[0], STRENGTHS[8], STRENGTHS[-1], len(STRENGTHS)) == (0.0, 0.8, MOST_STRENGTH, 31)
    assert adjusted_name("lfm + ce", 0.8) == "lfm + ce, adjusted (strength 0.8)"

"""Mixing and label weights against the paper's rules in loops, and the Beta distribution.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lfm.method.draws import beta
from lfm.method.mixup import (
    label_shift,
    mix,
    remix_label,
)
from tests.mixup_cases import few, make_sampler

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Mixing and label shift -------------------------------------------------------------------


@few
@given(
    lambda_x=st.floats(0, 1),
    n_i=st.integers(1, 5000),
    n_j=st.integers(1, 5000),
    alpha=st.floats(0, 3),
)
def test_label_shift_is_the_argmin_of_theorem_1(lambda_x: float, n_i: int, n_j: int, alpha: float) -> None:
    steps = 20_000
    p = n_i / (n_i + n_j)
    grid = np.linspace(0, 1, steps + 1)
    objective = (grid - lambda_x) ** 2 / 2 + alpha * ((grid - 0.5) ** 2 - (grid - p) ** 2)
    shifted = label_shift(
        torch.tensor([lambda_x], dtype=torch.float64), torch.tensor([n_i]), torch.tensor([n_j]), alpha
    )
    assert shifted.item() == pytest.approx(grid[objective.argmin()], abs=1 / steps)


@pytest.mark.parametrize(
    ("lambda_x", "n_i", "n_j", "alpha", "expected"),
    [
        (0.7, 90, 10, 0.5, 0.3),  # the frequent first class gives 0.4 of its label away
        (0.7, 10, 90, 0.5, 1.0),  # mirrored it would be 1.1: clamped
        (0.7, 90, 10, 1.0, 0.0),
        (0.2, 10, 30, 1.0, 0.7),
        (0.2, 30, 30, 2.0, 0.2),  # equal counts are ordinary mixup
        (0.2, 90, 10, 0.0, 0.2),  # and so is alpha = 0
        (0.5, 2**40, 1, 0.25, 0.25),
    ],
)
def test_label_shift_by_hand(lambda_x: float, n_i: int, n_j: int, alpha: float, expected: float) -> None:
    shifted = label_shift(torch.tensor([lambda_x]), torch.tensor([n_i]), torch.tensor([n_j]), alpha)
    assert shifted.item() == pytest.approx(expected, abs=1e-6)


@few
@given(lambda_x=st.floats(0, 1), n_i=st.integers(1, 999), n_j=st.integers(1, 999), alpha=st.floats(0, 3))
def test_label_shift_does_not_depend_on_who_is_first(lambda_x: float, n_i: int, n_j: int, alpha: float) -> None:
    lambda_x_B = torch.tensor([lambda_x], dtype=torch.float64)
    n_i_B, n_j_B = torch.tensor([n_i]), torch.tensor([n_j])
    forward = label_shift(lambda_x_B, n_i_B, n_j_B, alpha).item()
    backward = label_shift(1 - lambda_x_B, n_j_B, n_i_B, alpha).item()
    assert forward == pytest.approx(1 - backward, abs=1e-6)


@few
@given(
    lambda_x=st.floats(0, 1),
    n_i=st.integers(1, 60),
    n_j=st.integers(1, 60),
    kappa=st.sampled_from([1.5, 2.0, 3.0, 4.0]),
    tau=st.floats(0, 1),
)
def test_remix_is_the_published_rule(lambda_x: float, n_i: int, n_j: int, kappa: float, tau: float) -> None:
    if n_i / n_j >= kappa and lambda_x < tau:
        expected = 0.0
    elif n_i / n_j <= 1 / kappa and 1 - lambda_x < tau:
        expected = 1.0
    else:
        expected = lambda_x
    lambda_x_B = torch.tensor([lambda_x], dtype=torch.float64)
    assert remix_label(lambda_x_B, torch.tensor([n_i]), torch.tensor([n_j]), kappa, tau).item() == expected


def test_remix_gives_the_label_to_the_rarer_class() -> None:
    """kappa 3, tau 0.5: moves at three to one exactly, only when the frequent class weighs under one half."""
    lambda_x_B = torch.tensor([0.4, 0.6, 0.4, 0.6, 0.4, 0.5, 0.5])
    n_i_B = torch.tensor([30, 30, 10, 10, 29, 30, 10])
    n_j_B = torch.tensor([10, 10, 30, 30, 10, 10, 30])
    expected_B = torch.tensor([0.0, 0.6, 0.4, 1.0, 0.4, 0.5, 0.5])
    assert torch.equal(remix_label(lambda_x_B, n_i_B, n_j_B, kappa=3.0, tau=0.5), expected_B)


def test_swapped_remix_gives_the_label_to_the_more_frequent_class() -> None:
    """The same pairs move as above, the other way; the rest stays."""
    lambda_x_B = torch.tensor([0.4, 0.6, 0.4, 0.6, 0.4, 0.5, 0.5])
    n_i_B = torch.tensor([30, 30, 10, 10, 29, 30, 10])
    n_j_B = torch.tensor([10, 10, 30, 30, 10, 10, 30])
    expected_B = torch.tensor([1.0, 0.6, 0.4, 0.0, 0.4, 0.5, 0.5])
    assert torch.equal(remix_label(lambda_x_B, n_i_B, n_j_B, kappa=3.0, tau=0.5, swapped=True), expected_B)


def test_mix_weighs_every_pixel() -> None:
    rng = torch.Generator().manual_seed(0)
    image_i, image_j = torch.randn(2, 3, 2, 4, 5, generator=rng)
    weights = [0.0, 0.3, 1.0]
    mixed = mix(image_i, image_j, torch.tensor(weights, dtype=torch.float64))
    for b, weight in enumerate(weights):
        pixels = zip(mixed[b].flatten(), image_i[b].flatten(), image_j[b].flatten(), strict=True)
        for pixel, i, j in pixels:
            assert pixel.item() == pytest.approx(weight * i.item() + (1 - weight) * j.item(), abs=1e-6)
    assert torch.equal(mixed[0], image_j[0])
    assert torch.equal(mixed[2], image_i[2])
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize("b", [0.01, 0.05, 0.2, 0.5, 0.8, 1.0, 2.0, 30.0, 1e4])
def test_beta_follows_the_beta_distribution(b: float) -> None:
    """Draws above one half are folded down: for small b, float64 has no numbers to tell them apart beside 1."""
    drawn = beta(b, 100_000, torch.Generator().manual_seed(0)).numpy()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    low, high = drawn[drawn < 0.5], drawn[drawn >= 0.5]
    assert stats.binomtest(len(low), len(drawn)).pvalue > 0.01
    assert stats.kstest(low, lambda x: 2 * stats.beta(b, b).cdf(x)).pvalue > 0.01
    if b >= 0.5:
        assert stats.kstest(high, lambda x: 2 * stats.beta(b, b).cdf(x) - 1).pvalue > 0.01


@pytest.mark.parametrize("b", [0.01, 0.5, 1.0, 1e4])
@pytest.mark.parametrize("u", [0.0, 2**-53, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("v", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_beta_is_a_weight_at_the_ends_of_its_uniform_draws(
    u: float, v: float, b: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.tensor([[u], [v]], dtype=torch.float64))
    assert 0 <= beta(b, 1, torch.Generator()).item() <= 1


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (0.2, [0.00045191200067548674, 0.0005007831122206451, 0.7666697467441544, 0.2734160236308512]),
        (0.5, [0.021060782601828372, 0.02448029977898744, 0.6665857537991673, 0.39361716126738866]),
        (1.0, [0.07916243214856471, 0.09058888762540161, 0.6168855191916703, 0.4320879264618147]),
        (3.0, [0.2115325805238457, 0.22941010408702023, 0.5670721742930911, 0.46332264750093977]),
    ],
)
def test_beta_draws_the_same_in_every_release(b: float, expected: list[float]) -> None:
    """Of ours and of PyTorch's; the last digits are the processor's."""
    assert beta(b, 4, torch.Generator().manual_seed(7)).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_batch_draws_the_same_in_every_release() -> None:
    batch = make_sampler(batch_size=4, seed=5).batch(1, 2)
    assert batch.index_B2.tolist() == [[7, 19], [119, 16], [72, 31], [59, 96]]
    assert batch.lambda_x_B.tolist() == pytest.approx([0.9908738, 0.1453116, 0.0818578, 0.9994431], abs=1e-7)

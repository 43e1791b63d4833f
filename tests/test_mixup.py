"""The method against oracles written with loops, and its samplers against the distributions of the paper.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lfm.config.overrides import apply_overrides
from lfm.config.schema import MixupConfig, RunConfig
from lfm.method.draws import beta
from lfm.method.mixup import (
    MIXUPS,
    LocalFeatureMixup,
    PairBatch,
    PairSampler,
    label_shift,
    local_sampling_rows,
    mix,
    partner_sampler,
    remix_label,
    uniform_rows,
)
from lfm.method.partners import BLOCK, ChunkPartners, PartnerSampler

few = settings(max_examples=30, deadline=None, derandomize=True)
COUNTS = [
    60,
    31,
    17,
    8,
    4,
]  # images of each class of the small training set; class order is not sorted by text
TAUS = [0.002, 0.05, 1.0, 31.25]
NAMES = ["none", "mixup", "remix", "lfm"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On tensors this small threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_text(
    classes: int, seed: int = 0, dim: int = 6, dtype: torch.dtype = torch.float32, spread: float = 1.0
) -> Tensor:
    """Random unit rows; the smaller the spread, the more they all point one way, as CLIP's do."""
    rng = torch.Generator().manual_seed(seed)
    text_CD = 0.7 + spread * torch.randn(classes, dim, generator=rng, dtype=dtype)
    return text_CD / text_CD.norm(dim=1, keepdim=True)


def make_labels(counts: list[int], seed: int = 0) -> Tensor:
    label_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return label_N[torch.randperm(len(label_N), generator=torch.Generator().manual_seed(seed))]


def make_sampler(counts: list[int] = COUNTS, **values: Any) -> PairSampler:
    """A sampler of LFM at alpha 1 and tau 0.5, but for the values given, of the mixup or the sampler."""
    of_sampler = {"alpha": 1.0, "batch_size": 16, "seed": 0, "stage": 1}
    of_sampler |= {name: values.pop(name) for name in list(values) if name in of_sampler}
    config = MixupConfig(**{"tau": 0.5, **values})
    return PairSampler(config, make_labels(counts), make_text(len(counts)), **of_sampler)  # type: ignore[arg-type]


def oracle_row(text_CD: Tensor, i: int, tau: float) -> list[float]:
    """p_ls(. | i) by loops, every exponent relative to the largest."""
    rows = text_CD.double().tolist()
    scores = [math.fsum(a * b for a, b in zip(rows[i], row, strict=True)) / tau for row in rows]
    top = max(score for k, score in enumerate(scores) if k != i)
    mass = [0.0 if k == i else math.exp(score - top) for k, score in enumerate(scores)]
    return [m / math.fsum(mass) for m in mass]


def oracle_uniform_row(classes: int, i: int) -> list[float]:
    return [0.0 if k == i else 1 / (classes - 1) for k in range(classes)]


def pairs_of(sampler: PairSampler, epochs: int) -> PairBatch:
    """All pairs of some epochs as one batch."""
    batches = [batch for epoch in range(epochs) for batch in sampler.epoch(epoch)]
    return PairBatch(
        torch.cat([b.index_B2 for b in batches]),
        torch.cat([b.lambda_x_B for b in batches]),
        torch.cat([b.label_B2 for b in batches]),
        torch.cat([b.weight_B2 for b in batches]),
        batches[-1].rng,
    )


def assert_same_batch(a: PairBatch, b: PairBatch) -> None:
    for field in ("index_B2", "lambda_x_B", "label_B2", "weight_B2"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert torch.equal(a.rng.get_state(), b.rng.get_state())


def chi_square(observed: list[list[int]], expected: list[list[float]]) -> float:
    """p-value of independent multinomial rows; cells expected under 5 are pooled within their row."""
    statistic, freedom = 0.0, 0
    for row_observed, row_expected in zip(observed, expected, strict=True):
        cells = [(o, e) for o, e in zip(row_observed, row_expected, strict=True) if e >= 5]
        rest_o = sum(row_observed) - sum(o for o, _ in cells)
        rest_e = sum(row_expected) - sum(e for _, e in cells)
        if rest_e > 1e-9:
            cells.append((rest_o, rest_e))
        else:
            assert rest_o == 0, "drawn without any probability"
        statistic += sum((o - e) ** 2 / e for o, e in cells)
        freedom += len(cells) - 1
    return float(stats.chi2.sf(statistic, freedom))


# --- Local sampling: the partner distribution -----------------------------------------------------------------


@few
@given(classes=st.integers(2, 8), seed=st.integers(0, 999), tau=st.sampled_from(TAUS))
def test_partner_distribution_is_the_formula(classes: int, seed: int, tau: float) -> None:
    text_CD = make_text(classes, seed, dtype=torch.float64)
    rows_CC = local_sampling_rows(text_CD, torch.arange(classes), tau)
    expected_CC = [oracle_row(text_CD, i, tau) for i in range(classes)]
    torch.testing.assert_close(rows_CC, torch.tensor(expected_CC, dtype=torch.float64), rtol=1e-9, atol=1e-15)
    assert rows_CC.diagonal().eq(0).all()


def test_partner_distribution_by_hand() -> None:
    """Three classes in the plane: cosines of class 0 are 0.6 and 0, so at tau 0.3 the odds are e^2 to 1."""
    text_CD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    rows = local_sampling_rows(text_CD, torch.tensor([0]), tau=0.3)
    assert rows.tolist()[0] == pytest.approx([0, math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)], rel=1e-6)


def test_low_temperature_pairs_the_nearest_and_high_tends_to_uniform() -> None:
    text_CD = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    low_CC = local_sampling_rows(text_CD, torch.arange(4), tau=0.002)
    assert low_CC.argmax(dim=1).tolist() == [1, 2, 1, 2]
    assert low_CC.max(dim=1).values.min() > 1 - 1e-12
    high_CC = local_sampling_rows(text_CD, torch.arange(4), tau=31.25)
    others_C3 = high_CC[~torch.eye(4, dtype=torch.bool)].view(4, 3)
    # Cosines within [0, 1] bound the odds of any two partners by e^(1 / tau).
    assert (others_C3.max(dim=1).values / others_C3.min(dim=1).values).max() <= math.exp(1 / 31.25) + 1e-6


@pytest.mark.parametrize("tau", [1e-30, 1e-6, 1e6, 1e300])
def test_partner_distribution_survives_extreme_temperatures(tau: float) -> None:
    """Classes 1 and 2 have the same text, so they share alike whatever the temperature."""
    text_CD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]])
    row = local_sampling_rows(text_CD, torch.tensor([0]), tau)[0].tolist()
    expected = [0, 0.5, 0.5, 0] if tau < 1 else [0, 1 / 3, 1 / 3, 1 / 3]
    assert row == pytest.approx(expected, abs=1e-5)


def test_uniform_rows_leave_out_the_class_itself() -> None:
    rows = uniform_rows(torch.tensor([2, 0]), classes=4)
    assert rows.tolist() == [oracle_uniform_row(4, 2), oracle_uniform_row(4, 0)]


# --- Drawing partner classes -----------------------------------------------------------------------------


def in_chunks(text_CD: Tensor, tau: float) -> ChunkPartners:
    """As for many classes, however few there are."""
    return ChunkPartners(text_CD, tau, partial(local_sampling_rows, text_CD, tau=tau))


PATHS: dict[str, Callable[[Tensor, float], PartnerSampler]] = {
    "table": partner_sampler,
    "chunks": in_chunks,
    "uniform": partial(partner_sampler, uniform=True),
}


def path_row(path: str, text_CD: Tensor, i: int, tau: float) -> list[float]:
    return oracle_uniform_row(len(text_CD), i) if path == "uniform" else oracle_row(text_CD, i, tau)


def draws(sampler: PartnerSampler, class_B: Tensor, u_BK: Tensor) -> Tensor:
    """K partners of each class, (B, K)."""
    return sampler.draw(class_B.repeat_interleave(u_BK.shape[1]), u_BK.flatten()).view_as(u_BK)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("path", PATHS)
def test_draw_inverts_the_cumulative_distribution(path: str, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partner is the first class whose cumulative mass exceeds u; chunks of 3 of 7 classes."""
    classes = 7
    monkeypatch.setattr("lfm.method.partners.CHUNK", 3)
    text_CD = make_text(classes, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    class_B = torch.randint(classes, (25,), generator=rng)
    u_BK = torch.rand(25, 40, generator=rng, dtype=torch.float64)
    partner_BK = draws(PATHS[path](text_CD, tau), class_B, u_BK).tolist()
    compared = 0
    for i, us, partners in zip(class_B.tolist(), u_BK.tolist(), partner_BK, strict=True):
        ends = np.cumsum(path_row(path, text_CD, i, tau))
        for u, partner in zip(us, partners, strict=True):
            if abs(ends - u).min() > (1e-6 if path == "chunks" else 1e-9):  # masses are kept in float32
                assert partner == next(k for k in range(classes) if ends[k] > u)
                compared += 1
    assert compared > 0.99 * u_BK.numel()


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("tau", [0.002, 31.25])
@pytest.mark.parametrize("path", PATHS)
def test_no_class_is_its_own_partner_even_at_the_ends_of_u(path: str, tau: float, classes: int) -> None:
    text_CD = make_text(classes)
    u_CK = torch.tensor([0.0, 5e-324, 0.5, 1 - 2**-53], dtype=torch.float64).expand(classes, -1)
    partner_CK = draws(PATHS[path](text_CD, tau), torch.arange(classes), u_CK)
    assert partner_CK.min() >= 0
    assert partner_CK.max() < classes
    assert (partner_CK != torch.arange(classes)[:, None]).all()
    if classes == 2:
        assert partner_CK.tolist() == [[1] * 4, [0] * 4]


@pytest.mark.parametrize("chunk", [1, 5, 64, 128])
@pytest.mark.parametrize("block", [1, 7, 32])
@pytest.mark.parametrize("tau", [0.002, 31.25])
def test_table_and_chunks_draw_the_same_classes(
    tau: float, block: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same u, whatever the pieces, but for the rounding of float32 cosines, which tau = .002 magnifies."""
    classes = 64
    for name, value in (("CHUNK", chunk), ("BLOCK", block)):
        monkeypatch.setattr(f"lfm.method.partners.{name}", value)
    text_CD = make_text(classes, dim=100, spread=0.1)
    rng = torch.Generator().manual_seed(0)
    table, chunks = partner_sampler(text_CD, tau), in_chunks(text_CD, tau)
    size = 64_000
    class_B = torch.randint(classes, (size,), generator=rng)
    u_B = torch.rand(size, generator=rng, dtype=torch.float64)
    assert (table.draw(class_B, u_B) != chunks.draw(class_B, u_B)).sum() <= 1 + size / 1000


@pytest.mark.parametrize("tau", [0.05, 0.5])
@pytest.mark.parametrize("path", PATHS)
def test_partner_classes_follow_the_distribution(path: str, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm.method.partners.CHUNK", 4)
    each = 20_000
    text_CD = make_text(6)
    u_CK = torch.rand(6, each, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    partner_CK = draws(PATHS[path](text_CD, tau), torch.arange(6), u_CK)
    observed = [row.bincount(minlength=6).tolist() for row in partner_CK]
    expected = [[each * p for p in path_row(path, text_CD, i, tau)] for i in range(6)]
    assert chi_square(observed, expected) > 0.01


@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_kept_masses_are_sums_of_the_softmax(tau: float) -> None:
    """Chunks of 32 of 75 classes, the last of 11: each row against the whole softmax in float64."""
    classes, text_CD = 75, make_text(75, dim=20, spread=0.3)
    sampler = in_chunks(text_CD, tau)
    sampler.draw(torch.arange(classes), torch.full((classes,), 0.5, dtype=torch.float64))
    for i in range(classes):
        row = oracle_row(text_CD, i, tau)
        expected = [math.fsum(row[start : start + 32]) for start in range(0, classes, 32)]
        assert sampler.mass_CM[i].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-30)


def test_a_draw_does_not_depend_on_what_was_drawn_before_or_beside_it() -> None:
    """Bit for bit: fresh, warmed, in another order, one at a time; so resuming is exact though masses are kept."""
    classes, steps = 1000, 6
    text_CD = make_text(classes, dim=64, spread=0.5)
    rng = torch.Generator().manual_seed(4)
    class_SB = torch.randint(classes, (steps, 50), generator=rng)
    u_SB = torch.rand(steps, 50, generator=rng, dtype=torch.float64)

    def fresh() -> ChunkPartners:
        return in_chunks(text_CD, 0.05)

    warmed = fresh()
    warmed.draw(torch.arange(classes), torch.zeros(classes, dtype=torch.float64))
    backwards, alone = fresh(), fresh()
    drawn_SB = torch.stack([fresh().draw(class_SB[s], u_SB[s]) for s in range(steps)])
    for s in reversed(range(steps)):
        assert torch.equal(backwards.draw(class_SB[s], u_SB[s]), drawn_SB[s])
        assert torch.equal(warmed.draw(class_SB[s], u_SB[s]), drawn_SB[s])
        single = [alone.draw(class_SB[s, b : b + 1], u_SB[s, b : b + 1]) for b in range(50)]
        assert torch.equal(torch.cat(single), drawn_SB[s])
    for sampler in (backwards, alone):
        kept_C = sampler.filled.repeat_interleave(BLOCK)[:classes]
        assert kept_C.sum() > classes / 2
        assert torch.equal(sampler.mass_CM[kept_C], warmed.mass_CM[kept_C])


@pytest.mark.parametrize("classes", [2_049, 8_142, 33_000, 100_000, 1_000_000])
def test_masses_stay_within_their_budget_and_take_memory_only_as_they_are_filled(classes: int) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    text_CD = torch.ones(classes, 1)
    before = resident()
    sampler = partner_sampler(text_CD, 0.05)
    assert isinstance(sampler, ChunkPartners)
    assert resident() - before < 20e6
    assert sampler.mass_CM.numel() * 4 <= 270e6
    assert sampler.mass_CM.shape[1] * sampler.chunk >= classes
    # No chunk is longer than the budget makes it: with any shorter one the masses would not fit.
    assert sampler.chunk == 32 or -(-classes // (sampler.chunk - 1)) * classes * 4 > 270e6


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


# --- The sampler of a stage ------------------------------------------------------------------------------


def test_the_schema_names_the_mixups_that_there_are() -> None:
    assert list(get_args(MixupConfig.model_fields["name"].annotation)) == list(MIXUPS) == NAMES


@few
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    name=st.sampled_from(NAMES),
    batch_size=st.integers(1, 20),
    partner_image=st.sampled_from(["uniform", "until-used-up"]),
    partner=st.sampled_from(["text", "uniform"]),
)
def test_an_epoch_shows_each_image_once_as_the_first(
    counts: list[int], name: str, batch_size: int, partner_image: str, partner: str
) -> None:
    sampler = make_sampler(counts, name=name, batch_size=batch_size, partner_image=partner_image, partner=partner)
    batches = list(sampler.epoch(3))
    assert [len(b.index_B2) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    pairs = pairs_of(sampler, epochs=1)
    assert pairs.index_B2[:, 0].sort().values.tolist() == list(range(sum(counts)))
    assert torch.equal(pairs.label_B2, make_labels(counts)[pairs.index_B2])
    torch.testing.assert_close(pairs.weight_B2.sum(dim=1), torch.ones(sum(counts)))
    if name == "lfm":
        assert (pairs.label_B2[:, 0] != pairs.label_B2[:, 1]).all()


def test_the_order_of_first_images_is_new_each_epoch_and_stage() -> None:
    orders = [
        torch.cat([b.index_B2[:, 0] for b in make_sampler(seed=seed, stage=stage).epoch(epoch)])
        for seed, stage, epoch in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]
    ]
    for a in range(4):
        for b in range(a):
            assert not torch.equal(orders[a], orders[b])


@pytest.mark.parametrize("path", PATHS)
def test_pairs_follow_the_partner_distribution_and_are_uniform_in_the_class(path: str) -> None:
    epochs = 40
    sampler = make_sampler()
    assert isinstance(sampler.mixup, LocalFeatureMixup)
    sampler.mixup.partners = PATHS[path](make_text(5), 0.5)
    pairs = pairs_of(sampler, epochs)
    observed_class = [[0] * 5 for _ in COUNTS]
    observed_image = [[0] * n for n in COUNTS]
    place = {int(n): r for k in range(5) for r, n in enumerate((make_labels(COUNTS) == k).nonzero())}
    for (y_i, y_j), j in zip(pairs.label_B2.tolist(), pairs.index_B2[:, 1].tolist(), strict=True):
        observed_class[y_i][y_j] += 1
        observed_image[y_j][place[j]] += 1
    expected_class = [[n * epochs * p for p in path_row(path, make_text(5), i, 0.5)] for i, n in enumerate(COUNTS)]
    assert chi_square(observed_class, expected_class) > 0.01
    assert chi_square(observed_image, [[sum(row) / len(row)] * len(row) for row in observed_image]) > 0.01


def test_pairs_show_the_classes_that_the_paper_says() -> None:
    """Frequencies within four standard deviations, of the pairs as drawn and of independent halves.

    A pair shows y as y_i, or as the partner of another y_i: p_i(y) + sum_{k != y} p_ls(y | k) p_i(k). The
    factor 1 - p_i(y) of the paper makes that the frequency where both halves are drawn apart: here, first
    images beside the partners of other pairs.
    """
    epochs = 150
    pairs = pairs_of(make_sampler(batch_size=120), epochs)
    first_P, partner_P = pairs.label_B2.unbind(dim=1)
    apart_P = partner_P[torch.randperm(len(partner_P), generator=torch.Generator().manual_seed(0))]
    rows = [oracle_row(make_text(5), i, 0.5) for i in range(5)]
    for y, n_y in enumerate(COUNTS):
        p_y = n_y / sum(COUNTS)
        as_partner = sum(rows[k][y] * n_k / sum(COUNTS) for k, n_k in enumerate(COUNTS) if k != y)
        for second_P, expected in [(partner_P, p_y + as_partner), (apart_P, p_y + (1 - p_y) * as_partner)]:
            shown = ((first_P == y) | (second_P == y)).double().mean().item()
            assert abs(shown - expected) < 4 * math.sqrt(expected * (1 - expected) / len(first_P))


@pytest.mark.parametrize("name", ["mixup", "remix", "lfm"])
def test_label_weights_of_a_batch_follow_the_rule_of_its_name(name: str) -> None:
    pairs = pairs_of(make_sampler(name=name, alpha=0.7, remix_kappa=2.0, remix_tau=0.6), epochs=2)
    rows = zip(pairs.lambda_x_B.tolist(), pairs.label_B2.tolist(), pairs.weight_B2.tolist(), strict=True)
    moved = 0
    for lambda_x, (y_i, y_j), (weight_i, weight_j) in rows:
        n_i, n_j = COUNTS[y_i], COUNTS[y_j]
        expected = lambda_x
        if name == "lfm":
            expected = min(1.0, max(0.0, lambda_x - 0.7 * (n_i - n_j) / (n_i + n_j)))
        if name == "remix" and n_i / n_j >= 2 and lambda_x < 0.6:
            expected = 0.0
        if name == "remix" and n_i / n_j <= 1 / 2 and 1 - lambda_x < 0.6:
            expected = 1.0
        assert (weight_i, weight_j) == pytest.approx((expected, 1 - expected), abs=1e-6)
        moved += expected != lambda_x
    assert (moved > 0) == (name != "mixup")


def released_label(name: str, lambda_x: float, n_i: int, n_j: int, alpha: float) -> float:
    """What the first label weighs in the authors' released code, told in words and written down from them.

    Mixup: as much as the first image. Remix: the first class three times as large or larger and its image under one
    half: all. The first class at most a third as large and the partner's image under one half: nothing. Otherwise as
    the image. LFM: as the image, less alpha times the difference of the counts over their sum, kept within 0 and 1.
    """
    if name == "remix":
        if n_i / n_j >= 3 and lambda_x < 0.5:
            return 1.0
        if n_i / n_j <= 1 / 3 and 1 - lambda_x < 0.5:
            return 0.0
    if name == "lfm":
        return min(1.0, max(0.0, lambda_x - alpha * (n_i - n_j) / (n_i + n_j)))
    return lambda_x


@pytest.mark.parametrize(("name", "b"), [("mixup", 1.0), ("remix", 0.5), ("lfm", 0.2)])
def test_fidelity_code_draws_batches_by_the_rules_of_the_released_code(name: str, b: float) -> None:
    """One lambda a batch from the law of the mixup, labels by its rule, partners as it finds them."""
    run = RunConfig(preset="test", mixup=MixupConfig(tau=0.5))
    config = apply_overrides(run, {"fidelity": "code", "mixup.name": name}).mixup
    sampler = PairSampler(config, make_labels(COUNTS), make_text(5), alpha=0.7, batch_size=4, seed=0, stage=1)
    batches = [batch for epoch in range(60) for batch in sampler.epoch(epoch)]
    assert all(batch.lambda_x_B.eq(batch.lambda_x_B[0]).all() for batch in batches)
    lambdas = np.array([batch.lambda_x_B[0].item() for batch in batches])
    assert len(lambdas) == 60 * 30
    assert stats.kstest(lambdas, stats.beta(b, b).cdf).pvalue > 0.01
    for batch in batches:
        rows = zip(batch.lambda_x_B.tolist(), batch.label_B2.tolist(), batch.weight_B2.tolist(), strict=True)
        for lambda_x, (y_i, y_j), (weight_i, weight_j) in rows:
            expected = released_label(name, lambda_x, COUNTS[y_i], COUNTS[y_j], 0.7)
            assert (weight_i, weight_j) == pytest.approx((expected, 1 - expected), abs=1e-6)
        first, partner = batch.index_B2.unbind(dim=1)
        assert (sorted(first.tolist()) == sorted(partner.tolist())) == (name != "lfm")
    for epoch in range(60 if name == "lfm" else 0):  # no image of a class again before all of it
        of_epoch = torch.cat([batch.index_B2[:, 1] for batch in sampler.epoch(epoch)]).tolist()
        for k, n in enumerate(COUNTS):
            drawn = [j for j in of_epoch if make_labels(COUNTS)[j] == k]
            assert all(len(set(drawn[at : at + n])) == len(drawn[at : at + n]) for at in range(0, len(drawn), n))


@pytest.mark.parametrize("name", ["mixup", "remix"])
def test_mixup_and_remix_pair_within_the_batch(name: str) -> None:
    for batch in make_sampler(name=name).epoch(0):
        assert torch.equal(batch.index_B2[:, 0].sort().values, batch.index_B2[:, 1].sort().values)
        assert not torch.equal(batch.index_B2[:, 0], batch.index_B2[:, 1])


def test_none_gives_hard_labels_and_whole_images() -> None:
    for batch in make_sampler(name="none").epoch(0):
        assert torch.equal(batch.index_B2[:, 0], batch.index_B2[:, 1])
        assert batch.lambda_x_B.eq(1).all()
        assert batch.weight_B2.unique(dim=0).tolist() == [[1.0, 0.0]]


def test_lambda_is_one_per_pair_or_one_per_batch() -> None:
    """Both from Beta(b, b)."""
    each_P = pairs_of(make_sampler(beta=0.2), epochs=10).lambda_x_B
    inner_P = each_P[(each_P > 0.01) & (each_P < 0.99)]  # float32 has few values beside 1
    assert len(inner_P) > 300
    assert inner_P.unique().numel() > 0.99 * inner_P.numel()
    assert stats.kstest(each_P.numpy(), stats.beta(0.2, 0.2).cdf).pvalue > 0.01
    batches = [b.lambda_x_B for epoch in range(60) for b in make_sampler(lambda_per="batch").epoch(epoch)]
    assert all(lambda_x_B.eq(lambda_x_B[0]).all() for lambda_x_B in batches)
    shared = np.array([lambda_x_B[0].item() for lambda_x_B in batches])
    assert stats.kstest(shared, stats.beta(0.5, 0.5).cdf).pvalue > 0.01


# --- Partner images until used up ------------------------------------------------------------------------


def test_until_used_up_repeats_an_image_only_after_all_of_its_class() -> None:
    label_N = make_labels(COUNTS)
    rounds_differ = False
    for epoch in range(5):
        batches = list(make_sampler(partner_image="until-used-up").epoch(epoch))
        drawn = torch.cat([batch.index_B2[:, 1] for batch in batches]).tolist()
        for k, n in enumerate(COUNTS):
            of_class = [j for j in drawn if label_N[j] == k]
            rounds = [of_class[start : start + n] for start in range(0, len(of_class), n)]
            assert all(len(set(images)) == len(images) for images in rounds)
            rounds_differ |= n >= 4 and len({tuple(images) for images in rounds if len(images) == n}) > 1
    assert rounds_differ


def test_until_used_up_starts_each_class_anywhere() -> None:
    """The first partner image of a class in an epoch is uniform; the partner classes stay."""
    counts, epochs = [6, 3], 240
    label_N = make_labels(counts)
    ways = ("until-used-up", "uniform")
    sampler, free = (make_sampler(counts, batch_size=9, partner_image=way) for way in ways)
    seen = torch.zeros(9, dtype=torch.long)
    for epoch in range(epochs):
        batch = sampler.batch(epoch, 0)
        assert torch.equal(batch.label_B2, free.batch(epoch, 0).label_B2)
        for k in range(2):
            seen[batch.index_B2[:, 1][batch.label_B2[:, 1] == k][0]] += 1
    observed = [seen[label_N == k].tolist() for k in range(2)]
    assert chi_square(observed, [[epochs / n] * n for n in counts]) > 0.01


# --- Randomness is a function of (seed, stage, epoch, step) ----------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "mixup": {"name": "mixup"},
    "remix-per-batch": {"name": "remix", "lambda_per": "batch"},
    "lfm": {"name": "lfm"},
    "lfm-uniform": {"name": "lfm", "partner": "uniform"},
    "lfm-until-used-up": {"name": "lfm", "partner_image": "until-used-up"},
}
each_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_a_batch_depends_on_its_place_alone(values: dict[str, Any]) -> None:
    """Asked directly, in any order or afresh, a sampler gives what iterating gives: resuming is exact."""
    iterated = make_sampler(**values)
    batches = {(epoch, step): b for epoch in range(3) for step, b in enumerate(iterated.epoch(epoch))}
    places = list(batches)
    shared = make_sampler(**values)
    for n in torch.randperm(len(places), generator=torch.Generator().manual_seed(3)).tolist():
        assert_same_batch(shared.batch(*places[n]), batches[places[n]])
    assert_same_batch(make_sampler(**values).batch(2, 5), batches[2, 5])
    resumed = make_sampler(**values).epoch(1, first_step=4)
    for step, batch in enumerate(resumed, start=4):
        assert_same_batch(batch, batches[1, step])


@each_variant
def test_the_global_random_state_is_neither_read_nor_moved(values: dict[str, Any]) -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(make_sampler(**values).batch(1, 2))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same_batch(*drawn)


def test_seed_stage_epoch_and_step_each_change_the_draw() -> None:
    places = [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    drawn = {make_sampler(seed=a, stage=b).batch(c, d).lambda_x_B[0].item() for a, b, c, d in places}
    assert len(drawn) == len(places)


# --- What it needs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_method_runs_on_torch_alone() -> None:
    """Its types come from the configuration, but nothing of that is imported when it runs."""
    program = (
        "import sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import lfm.method.analysis, lfm.method.losses, lfm.method.mixup\n"
        "added = {name.partition('.')[0] for name in sys.modules} - before - sys.stdlib_module_names\n"
        "print(sorted(added), sorted(name for name in sys.modules if name.startswith('lfm.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = ["method", *(f"method.{name}" for name in ("analysis", "draws", "losses", "mixup", "partners"))]
    assert done.stdout.strip() == f"{['lfm']} {[f'lfm.{name}' for name in ours]}"

"""Partner distributions against the formula in loops, and the classes drawn against the distribution.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lfm.method.mixup import (
    local_sampling_rows,
    partner_sampler,
    uniform_rows,
)
from lfm.method.partners import BLOCK, ChunkPartners
from tests.mixup_cases import (
    PATHS,
    chi_square,
    draws,
    few,
    in_chunks,
    make_text,
    oracle_row,
    oracle_uniform_row,
    path_row,
)

TAUS = [0.002, 0.05, 1.0, 31.25]


pytestmark = pytest.mark.usefixtures("one_thread")


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

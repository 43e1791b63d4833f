"""The sampler of a stage: whole batches of pairs, by the paper and by the released code.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lfm.config.overrides import apply_overrides
from lfm.config.schema import MixupConfig, RunConfig
from lfm.method.mixup import (
    MIXUPS,
    LocalFeatureMixup,
    PairBatch,
    PairSampler,
)
from tests.mixup_cases import COUNTS, PATHS, chi_square, few, make_labels, make_sampler, make_text, oracle_row, path_row

NAMES = ["none", "mixup", "remix", "lfm"]


pytestmark = pytest.mark.usefixtures("one_thread")


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

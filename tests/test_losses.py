"""The losses against loops over math.exp and math.log.

Letters in the names give shapes: B images, C classes, D dimensions, K labels an image carries.
"""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from lfm.config.schema import LossConfig
from lfm.method.losses import LOSSES, Classes, dense, hard, make_loss, soft
from tests.loss_cases import class_numbers, each_loss, few, loss_of, make_case, seeds, target_of

pytestmark = pytest.mark.usefixtures("one_thread")


# Each oracle: cosines of one image, the class asked about, the configuration, counts and text as lists.
Oracle = Callable[[list[float], int, LossConfig, list[int], list[list[float]]], float]


def ce_oracle(z: list[float], y: int, v: LossConfig, counts: list[int], text: list[list[float]]) -> float:
    return -math.log(math.exp(z[y] / v.temperature) / math.fsum(math.exp(a / v.temperature) for a in z))


def balce_oracle(z: list[float], y: int, v: LossConfig, counts: list[int], text: list[list[float]]) -> float:
    prior = [n / sum(counts) for n in counts]
    mass = [p * math.exp(a / v.temperature) for p, a in zip(prior, z, strict=True)]
    return -math.log(mass[y] / math.fsum(mass))


def focal_oracle(z: list[float], y: int, v: LossConfig, counts: list[int], text: list[list[float]]) -> float:
    others = math.fsum(math.exp((a - z[y]) / v.temperature) for k, a in enumerate(z) if k != y)
    return (others / (1 + others)) ** v.focal_gamma * math.log(1 + others)


def ldam_oracle(z: list[float], y: int, v: LossConfig, counts: list[int], text: list[list[float]]) -> float:
    margin = v.ldam_margin * (min(counts) / counts[y]) ** 0.25
    own = math.exp(v.ldam_scale * (z[y] - margin))
    return -math.log(own / (own + math.fsum(math.exp(v.ldam_scale * a) for k, a in enumerate(z) if k != y)))


def mms_oracle(z: list[float], y: int, v: LossConfig, counts: list[int], text: list[list[float]]) -> float:
    total = 0.0
    for k, a in enumerate(z):
        distance = 0.0 if k == y else 1 - math.fsum(p * q for p, q in zip(text[y], text[k], strict=True))
        total += math.exp((a - z[y] + v.mms_margin * distance) / v.mms_temperature)
    return math.log(total)


ORACLES: dict[str, Oracle] = {
    "ce": ce_oracle,
    "balce": balce_oracle,
    "focal": focal_oracle,
    "ldam": ldam_oracle,
    "mms": mms_oracle,
}


def test_every_configurable_loss_exists_and_has_an_oracle() -> None:
    names = get_args(LossConfig.model_fields["name"].annotation)
    assert sorted(names) == sorted(LOSSES) == sorted(ORACLES)


@each_loss
@few
@given(
    seed=seeds,
    classes=class_numbers,
    temperature=st.sampled_from([0.05, 0.5, 1.0]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    margin=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_loss_is_its_equation(
    name: str, seed: int, classes: int, temperature: float, gamma: float, margin: float
) -> None:
    case = make_case(seed, classes)
    values = LossConfig(
        name=name,
        temperature=temperature,
        focal_gamma=gamma,
        ldam_margin=margin,
        ldam_scale=10 / temperature,
        mms_margin=margin,
        mms_temperature=temperature / 5,
    )
    counts, text = case.classes.count_C.tolist(), case.classes.text_CD.tolist()
    expected = [
        [ORACLES[name](z, y, values, counts, text) for y in labels]
        for z, labels in zip(case.cosine_BC.tolist(), case.label_B2.tolist(), strict=True)
    ]
    loss_BK = make_loss(values, case.classes)(case.cosine_BC, case.label_B2)
    torch.testing.assert_close(loss_BK, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("ce", {}, math.log(1 + math.exp(-0.5))),
        ("ce", {"temperature": 0.5}, math.log(1 + math.exp(-1))),
        ("balce", {}, math.log(1 + 4 * math.exp(-0.5))),
        ("focal", {"focal_gamma": 1}, math.log(1 + math.exp(-0.5)) / (1 + math.exp(0.5))),
        ("ldam", {"ldam_margin": 0.5, "ldam_scale": 2}, math.log(1 + math.exp(0))),
        ("mms", {"mms_margin": 0.25, "mms_temperature": 1}, math.log(1 + math.exp(-0.5 + 0.25 * 0.4))),
    ],
)
def test_loss_by_hand(name: str, values: dict[str, float], expected: float) -> None:
    """Cosines 0.6 and 0.1, label 0; 16 and 64 images; the class texts at cosine 0.6."""
    classes = Classes(torch.tensor([16, 64]), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    loss_BK = loss_of(name, classes, **values)(torch.tensor([[0.6, 0.1]]), torch.tensor([[0]]))
    assert loss_BK.item() == pytest.approx(expected, rel=1e-5)


# --- Hard, mixed and dense labels ----------------------------------------------------------------------


@few
@given(seed=seeds, classes=class_numbers, temperature=st.sampled_from([0.01, 0.05, 1.0]))
def test_soft_ce_is_torch_cross_entropy_with_probabilities(seed: int, classes: int, temperature: float) -> None:
    case = make_case(seed, classes)
    ours = soft(loss_of("ce", case.classes, temperature=temperature), case.cosine_BC, case.label_B2, case.weight_B2)
    reference = F.cross_entropy(case.cosine_BC / temperature, target_of(case), reduction="none")
    torch.testing.assert_close(ours, reference)


@each_loss
@few
@given(seed=seeds, classes=class_numbers)
def test_pair_and_dense_labels_agree_with_the_weighted_sum(name: str, seed: int, classes: int) -> None:
    case = make_case(seed, classes)
    loss = loss_of(name, case.classes)
    pair_B = soft(loss, case.cosine_BC, case.label_B2, case.weight_B2)
    dense_B = soft(loss, case.cosine_BC, *dense(target_of(case)))
    by_hand = [
        sum(
            weight * loss(case.cosine_BC[b : b + 1], torch.tensor([[label]])).item()
            for label, weight in zip(case.label_B2[b].tolist(), case.weight_B2[b].tolist(), strict=True)
        )
        for b in range(len(case.cosine_BC))
    ]
    torch.testing.assert_close(pair_B, torch.tensor(by_hand, dtype=torch.float64))
    torch.testing.assert_close(dense_B, pair_B)


@each_loss
def test_a_hard_label_is_one_label_is_the_same_class_twice(name: str) -> None:
    case = make_case(seed=3, classes=5)
    loss = loss_of(name, case.classes)
    label_B = case.label_B2[:, 0]
    label_B1, weight_B1 = hard(label_B)
    assert label_B1.shape == weight_B1.shape == (4, 1)
    hard_B = soft(loss, case.cosine_BC, label_B1, weight_B1)
    torch.testing.assert_close(hard_B, loss(case.cosine_BC, label_B[:, None])[:, 0])
    twice_B = soft(loss, case.cosine_BC, label_B[:, None].expand(-1, 2), case.weight_B2)
    torch.testing.assert_close(twice_B, hard_B)
    one_hot_B = soft(loss, case.cosine_BC, *dense(F.one_hot(label_B, 5).double()))
    torch.testing.assert_close(one_hot_B, hard_B)

"""The losses against loops over math.exp and math.log, and what must hold of them for any input.

Letters in the names give shapes: B images, C classes, D dimensions, K labels an image carries.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.config.schema import LossConfig
from lfm.method.losses import LOSSES, Classes, LabelLoss, dense, hard, make_loss, soft

few = settings(max_examples=25, deadline=None, derandomize=True)
each_loss = pytest.mark.parametrize("name", LOSSES)
seeds = st.integers(0, 9999)
class_numbers = st.integers(2, 7)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On tensors this small threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case(NamedTuple):
    """Random inputs in float64: cosines, mixed labels of two classes, and the classes."""

    cosine_BC: Tensor
    label_B2: Tensor
    weight_B2: Tensor
    classes: Classes


def make_case(seed: int, classes: int, images: int = 4) -> Case:
    rng = torch.Generator().manual_seed(seed)
    text_CD = torch.randn(classes, 5, generator=rng, dtype=torch.float64)
    weight_B = torch.rand(images, generator=rng, dtype=torch.float64)
    return Case(
        torch.rand(images, classes, generator=rng, dtype=torch.float64) * 2 - 1,
        torch.randint(classes, (images, 2), generator=rng),
        torch.stack([weight_B, 1 - weight_B], dim=1),
        Classes(torch.randint(1, 1000, (classes,), generator=rng), F.normalize(text_CD, dim=1)),
    )


def loss_of(name: str, classes: Classes, **values: Any) -> LabelLoss:
    return make_loss(LossConfig(name=name, **values), classes)


def target_of(case: Case) -> Tensor:
    """The mixed labels as one distribution over the classes, added up image by image."""
    target_BC = torch.zeros_like(case.cosine_BC)
    for b, (labels, weights) in enumerate(zip(case.label_B2.tolist(), case.weight_B2.tolist(), strict=True)):
        for label, weight in zip(labels, weights, strict=True):
            target_BC[b, label] += weight
    return target_BC


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


# --- What the losses reduce to -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "temperature"),
    [
        ("focal", {"focal_gamma": 0, "temperature": 0.2}, 0.2),
        ("ldam", {"ldam_margin": 0, "ldam_scale": 8}, 1 / 8),
        ("mms", {"mms_margin": 0, "mms_temperature": 0.1}, 0.1),
    ],
)
def test_without_its_margin_or_focus_a_loss_is_ce(name: str, values: dict[str, float], temperature: float) -> None:
    case = make_case(seed=1, classes=6)
    ours = loss_of(name, case.classes, **values)(case.cosine_BC, case.label_B2)
    for k in range(2):
        reference = F.cross_entropy(case.cosine_BC / temperature, case.label_B2[:, k], reduction="none")
        torch.testing.assert_close(ours[:, k], reference)


def test_balce_sees_only_the_ratios_of_the_counts() -> None:
    case = make_case(seed=2, classes=5)
    text_CD = case.classes.text_CD
    losses = [
        loss_of("balce", Classes(count_C, text_CD))(case.cosine_BC, case.label_B2)
        for count_C in (case.classes.count_C, 7 * case.classes.count_C, torch.full((5,), 9))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], loss_of("ce", case.classes)(case.cosine_BC, case.label_B2))
    assert not torch.allclose(losses[2], losses[0])


def test_at_high_temperature_only_the_prior_is_left_and_at_low_only_the_winner() -> None:
    case = make_case(seed=4, classes=5)
    flat = loss_of("ce", case.classes, temperature=1e9)(case.cosine_BC, case.label_B2)
    torch.testing.assert_close(flat, torch.full_like(flat, math.log(5)))
    prior_C = case.classes.count_C.double() / case.classes.count_C.sum()
    prior = loss_of("balce", case.classes, temperature=1e9)(case.cosine_BC, case.label_B2)
    torch.testing.assert_close(prior, -prior_C[case.label_B2].log())
    every_BC = torch.arange(5).expand(4, 5)
    sharp_BC = loss_of("ce", case.classes, temperature=1e-4)(case.cosine_BC, every_BC)
    gap_BC = (case.cosine_BC.max(dim=1, keepdim=True).values - case.cosine_BC) / 1e-4
    torch.testing.assert_close(sharp_BC, gap_BC)


# --- Properties for any input --------------------------------------------------------------------------


@each_loss
@few
@given(seed=seeds, classes=class_numbers)
def test_losses_are_never_negative_and_do_not_see_a_shift_of_all_cosines(name: str, seed: int, classes: int) -> None:
    case = make_case(seed, classes)
    loss = loss_of(name, case.classes)
    loss_BK = loss(case.cosine_BC, case.label_B2)
    assert (loss_BK >= 0).all()
    torch.testing.assert_close(loss(case.cosine_BC + 0.3, case.label_B2), loss_BK, rtol=1e-6, atol=1e-9)


@each_loss
@few
@given(seed=seeds, classes=class_numbers)
def test_renaming_the_classes_changes_nothing(name: str, seed: int, classes: int) -> None:
    case = make_case(seed, classes)
    old_C = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))  # class old_C[c] is now c
    new_C = torch.tensor([old_C.tolist().index(c) for c in range(classes)])
    renamed = Classes(case.classes.count_C[old_C], case.classes.text_CD[old_C])
    torch.testing.assert_close(
        loss_of(name, renamed)(case.cosine_BC[:, old_C], new_C[case.label_B2]),
        loss_of(name, case.classes)(case.cosine_BC, case.label_B2),
    )


@few
@given(seed=seeds, classes=class_numbers)
def test_margins_only_make_it_harder_and_focus_only_easier(seed: int, classes: int) -> None:
    case = make_case(seed, classes)
    values = {"temperature": 0.1, "ldam_scale": 10, "mms_temperature": 0.1}
    ce, focal, ldam, mms = (
        loss_of(name, case.classes, **values)(case.cosine_BC, case.label_B2) for name in ("ce", "focal", "ldam", "mms")
    )
    assert (focal <= ce).all()
    assert (ldam > ce).all()
    assert (mms > ce).all()


# --- Gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["one", "two", "dense"])
@each_loss
def test_gradients_match_finite_differences(name: str, labels: str) -> None:
    case = make_case(seed=5, classes=4, images=3)
    loss = loss_of(name, case.classes, temperature=0.3, focal_gamma=1.5, ldam_scale=5, mms_temperature=0.2)
    forms = {
        "one": (case.label_B2[:, :1], torch.ones(3, 1, dtype=torch.float64)),
        "two": (case.label_B2, case.weight_B2),
        "dense": dense(target_of(case)),
    }
    label_BK, weight_BK = forms[labels]
    cosine_BC = case.cosine_BC.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft(loss, z, label_BK, weight_BK), (cosine_BC,))


def test_the_gradient_of_soft_ce_is_prediction_less_target() -> None:
    case = make_case(seed=6, classes=5)
    cosine_BC = case.cosine_BC.requires_grad_()
    loss = loss_of("ce", case.classes, temperature=0.2)
    soft(loss, cosine_BC, case.label_B2, case.weight_B2).sum().backward()
    expected_BC = ((cosine_BC / 0.2).softmax(dim=1) - target_of(case)) / 0.2
    torch.testing.assert_close(cosine_BC.grad, expected_BC.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ce", {"temperature": 0.005}),
        ("balce", {"temperature": 0.005}),
        ("focal", {"temperature": 0.005, "focal_gamma": 0.5}),
        ("focal", {"temperature": 0.005, "focal_gamma": 2.0}),
        ("focal", {"temperature": 1.0, "focal_gamma": 0.1}),
        ("ldam", {}),
        ("mms", {}),
    ],
)
def test_gradients_stay_finite_at_extreme_cosines(name: str, values: dict[str, float], dtype: torch.dtype) -> None:
    """Certain and right, certain and wrong, undecided, and in between; counts from 1 to 100,000."""
    text_CD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    loss = loss_of(name, Classes(torch.tensor([100_000, 50, 1]), text_CD), **values)
    rows = [[1, -1, -1], [-1, 1, 1], [1, 1, 1], [-1, -1, 1], [0, 0, 0], [1, 0.999, -1]]
    cosine_BC = torch.tensor(rows, dtype=dtype, requires_grad=True)
    loss_BK = loss(cosine_BC, torch.arange(3).expand(len(rows), 3))
    loss_BK.sum().backward()
    assert loss_BK.isfinite().all()
    assert cosine_BC.grad is not None
    assert cosine_BC.grad.isfinite().all()
    assert (cosine_BC.grad != 0).any()

"""What must hold of the losses for any input: reductions, symmetries, gradients.

Letters in the names give shapes: B images, C classes, D dimensions, K labels an image carries.
"""

import math

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F  # noqa: N812

from lfm.method.losses import Classes, dense, soft
from tests.loss_cases import class_numbers, each_loss, few, loss_of, make_case, seeds, target_of

pytestmark = pytest.mark.usefixtures("one_thread")


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

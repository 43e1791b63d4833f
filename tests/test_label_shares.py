"""The exact shares of label mass against the sampler itself, the series against SciPy, and logit adjustment by hand.

Letters in the names give shapes: C classes, B images, K labels an image carries.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.config.overrides import apply_overrides
from lfm.config.presets import load
from lfm.config.schema import LossConfig, MixupConfig, RunConfig
from lfm.errors import InputError
from lfm.method.analysis import Pairs
from lfm.method.label_shares import LabelShares, beta_below
from lfm.method.losses import LOSSES, Classes, make_loss
from lfm.training.batches import label_shares, pair_sampler
from lfm.training.checkpoints import made_with
from lfm.training.loop import Stage
from tests import small_stage

COUNTS = [40, 7, 23, 7, 1, 90, 120, 12]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
PAIRS, BATCHES = 250_000, 6_000
"""Drawn for a mean, whichever is less; its deviation is at most 0.5 / sqrt(pairs) a class."""


def text_of(classes: int) -> Tensor:
    rows_CD = torch.randn(classes, 4, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.normalize(rows_CD, dim=1)


def run_of(**values: Any) -> RunConfig:
    return load("fashion-mnist-lt", {k.replace("__", "."): v for k, v in values.items()})


def drawn_mass(
    config: RunConfig, alpha: float, batch_size: int, counts: Sequence[int] = COUNTS
) -> tuple[Tensor, float]:
    """The share of label mass of each class in batches that training would draw, and what it may be off by."""
    label_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sampler = pair_sampler(config, 1, label_N, text_of(len(counts)), alpha, batch_size, NAMES[: len(counts)])
    total_C = torch.zeros(len(counts), dtype=torch.float64)
    epochs = min(-(-PAIRS // len(label_N)), -(-BATCHES // sampler.steps_per_epoch))
    for epoch in range(epochs):
        for batch in sampler.epoch(epoch):
            total_C.index_add_(0, batch.label_B2.flatten(), batch.weight_B2.flatten().double())
    return total_C / total_C.sum(), 2 * 0.5 / math.sqrt(epochs * len(label_N))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "alpha", "batch_size"),
    [
        ({"mixup__name": "none"}, 0.0, 32),
        ({"mixup__name": "mixup", "mixup__lambda_per": "batch"}, 0.0, 300),
        ({"mixup__name": "remix"}, 0.0, 7),
        ({"mixup__name": "remix", "mixup__remix_branches": "swapped", "mixup__beta": 0.7}, 0.0, 64),
        ({"mixup__name": "remix", "mixup__remix_kappa": 1.7, "mixup__remix_tau": 0.8, "mixup__beta": 1.0}, 0.0, 300),
        ({"mixup__name": "lfm", "mixup__tau": 0.25}, 0.5, 32),
        ({"mixup__name": "lfm", "mixup__tau": 0.05}, 1.3, 64),
        ({"mixup__name": "lfm", "mixup__partner": "uniform", "mixup__beta": 0.2}, 1.0, 32),
        ({"mixup__name": "lfm", "mixup__partner_image": "until-used-up", "mixup__lambda_per": "batch"}, 1.0, 7),
        ({"mixup__name": "lfm", "mixup__exclude": [["gnu", "fox"], ["bee", "ant"]]}, 1.0, 32),
        ({"mixup__name": "lfm", "mixup__max_similarity": 0.6}, 0.8, 32),
    ],
)
def test_the_mass_is_what_the_sampler_draws(values: dict[str, Any], alpha: float, batch_size: int) -> None:
    config = run_of(**values)
    counts_C, text_CD = torch.tensor(COUNTS), text_of(len(COUNTS))
    exact_C = label_shares(config, 1, counts_C, text_CD, alpha, batch_size, NAMES).mass_C
    assert float(exact_C.sum()) == pytest.approx(1, abs=1e-9)
    drawn_C, atol = drawn_mass(config, alpha, batch_size)
    torch.testing.assert_close(drawn_C, exact_C, atol=atol, rtol=0)


@pytest.mark.slow
def test_an_image_that_is_its_own_partner_counts() -> None:
    """In batches of two every other partner is the image itself; without that, Remix would be off by a half."""
    config = run_of(mixup__name="remix", mixup__remix_tau=1.0)
    counts_C, text_CD = torch.tensor(COUNTS), text_of(len(COUNTS))
    two_C, all_C = (label_shares(config, 1, counts_C, text_CD, 0.0, size, NAMES).mass_C for size in (2, 300))
    drawn_C, atol = drawn_mass(config, 0.0, 2)
    torch.testing.assert_close(drawn_C, two_C, atol=atol, rtol=0)
    assert float((two_C - all_C).abs().max()) > 3 * atol, "the two are told apart"


@given(
    x=st.floats(0, 1, allow_subnormal=False),
    b=st.sampled_from([0.01, 0.2, 0.5, 1.0, 3.0, 40.0]),
    more=st.sampled_from([0, 1]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_incomplete_beta_function_is_scipys(x: float, b: float, more: int) -> None:
    assert beta_below(x, b, more) == pytest.approx(float(special.betainc(b + more, b, x)), abs=1e-12)


# --- The loss ------------------------------------------------------------------------------------------


def transcribed(
    loss: LossConfig, z: list[float], y: int, counts: list[int], text: list[list[float]], pi: list[float]
) -> float:
    """-log of the label's probability, from the logits of each loss with s log pi added, in plain Python."""
    logits = []
    for k, cosine in enumerate(z):
        dots = sum(p * q for p, q in zip(text[y], text[k], strict=True))
        margin_C = [n**-0.25 * loss.ldam_margin / min(counts) ** -0.25 for n in counts]
        logit = {
            "ce": cosine / loss.temperature,
            "focal": cosine / loss.temperature,
            "ldam": loss.ldam_scale * (cosine - (margin_C[k] if k == y else 0)),
            "mms": (cosine + (0 if k == y else loss.mms_margin * (1 - dots))) / loss.mms_temperature,
        }[loss.name]
        logits.append(logit + loss.adjust_strength * math.log(pi[k]))
    highest = max(logits)
    nll = math.log(math.fsum(math.exp(v - highest) for v in logits)) + highest - logits[y]
    return (1 - math.exp(-nll)) ** loss.focal_gamma * nll if loss.name == "focal" else nll


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"balce"}))
@pytest.mark.parametrize("adjust", ["prior", "label-mass"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_every_loss_is_adjusted_on_the_scale_of_its_logits(name: str, adjust: str, strength: float) -> None:
    config = run_of(loss__name=name, loss__adjust=adjust, loss__adjust_strength=strength, loss__temperature=0.07)
    counts_C, text_CD = torch.tensor(COUNTS), text_of(len(COUNTS)).double()
    shares = label_shares(config, 1, counts_C, text_CD, 0.5, 32, NAMES)
    loss = make_loss(config.loss, Classes(counts_C, text_CD, shares.adjusting(config.loss)))
    cosine_BC = torch.rand(5, len(COUNTS), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    label_BK = torch.tensor([[0, 4], [1, 1], [6, 2], [7, 5], [3, 0]])
    mass = [n / sum(COUNTS) for n in COUNTS] if adjust == "prior" else drawn_free_mass(config)
    expected = [
        [transcribed(config.loss, z, y, COUNTS, text_CD.tolist(), mass) for y in labels]
        for z, labels in zip(cosine_BC.tolist(), label_BK.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss(cosine_BC, label_BK), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9
    )


def drawn_free_mass(config: RunConfig) -> list[float]:
    """M_c of lfm at alpha 0.5 by the definition: pairs weigh p_i p_ls(j | i), labels their mean over a fine grid."""
    text, tau, classes = text_of(len(COUNTS)).double(), config.mixup.tau, range(len(COUNTS))
    grid = [math.sin((k + 0.5) / 20_000 * math.pi / 2) ** 2 for k in range(20_000)]  # quantiles of Beta(1/2, 1/2)
    grid_G = torch.tensor(grid, dtype=torch.float64)
    mass = [0.0] * len(COUNTS)
    for i in classes:
        likely = [0.0 if j == i else math.exp(float(text[i] @ text[j]) / tau) for j in classes]
        for j in classes:
            weight = COUNTS[i] / sum(COUNTS) * likely[j] / sum(likely)
            shift = 0.5 * (COUNTS[i] - COUNTS[j]) / (COUNTS[i] + COUNTS[j])
            first = float((grid_G - shift).clamp(0, 1).mean())
            mass[i] += weight * first
            mass[j] += weight * (1 - first)
    return mass


def test_ce_adjusted_by_the_prior_is_balce() -> None:
    counts_C, text_CD = torch.tensor(COUNTS), text_of(len(COUNTS))
    prior_C = counts_C.double() / counts_C.sum()
    classes = Classes(counts_C, text_CD, prior_C)
    cosine_BC, label_BK = torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([[0, 6], [4, 2]])
    ours = make_loss(LossConfig(name="ce", temperature=0.05, adjust="prior"), classes)(cosine_BC, label_BK)
    balce = make_loss(LossConfig(name="balce", temperature=0.05), classes)(cosine_BC, label_BK)
    torch.testing.assert_close(ours, balce)


# --- What the logits stand for, and what is refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"loss__name": "ce"}, [n / sum(COUNTS) for n in COUNTS]),
        ({"loss__name": "balce"}, [1 / 8] * 8),
        ({"loss__adjust": "prior"}, [1 / 8] * 8),
        ({"loss__adjust": "label-mass"}, [1 / 8] * 8),
        (
            {"loss__adjust": "prior", "loss__adjust_strength": 0.5},
            [n**0.5 / sum(m**0.5 for m in COUNTS) for n in COUNTS],
        ),
    ],
)
def test_what_remains_in_the_logits_without_mixup(values: dict[str, Any], expected: list[float]) -> None:
    config = run_of(mixup__name="none", **values)
    shares = label_shares(config, 1, torch.tensor(COUNTS), text_of(8), 0.0, 32, NAMES)
    assert shares.remaining(config.loss).tolist() == pytest.approx(expected, rel=1e-9)


def test_what_remains_with_lfm_is_its_mass_over_what_was_removed() -> None:
    text_CD, counts_C = text_of(8), torch.tensor(COUNTS)
    for adjust in ("none", "prior", "label-mass"):
        config = run_of(loss__adjust=adjust)
        shares = label_shares(config, 1, counts_C, text_CD, 0.5, 32, NAMES)
        mass = drawn_free_mass(config)
        ratio = [{"none": m, "prior": m / n, "label-mass": 1.0}[adjust] for m, n in zip(mass, COUNTS, strict=True)]
        assert shares.remaining(config.loss).tolist() == pytest.approx([r / sum(ratio) for r in ratio], rel=1e-6)


def test_a_class_without_label_mass_is_refused_by_name() -> None:
    config, text_CD = run_of(loss__adjust="label-mass", mixup__partner="uniform"), text_of(3)
    counts_C = torch.tensor([1000, 10, 10])
    with pytest.raises(InputError, match=r"'ant' gets no label mass in stage 2 at alpha 2.*lower stage2.alpha"):
        label_shares(config, 2, counts_C, text_CD, 2.0, 32, NAMES[:3])
    unadjusted = run_of(mixup__partner="uniform")
    assert label_shares(unadjusted, 2, counts_C, text_CD, 2.0, 32, NAMES[:3]).remaining(unadjusted.loss).min() > 0


@pytest.mark.parametrize("adjust", ["prior", "label-mass"])
def test_balce_is_not_adjusted_twice(adjust: str) -> None:
    with pytest.raises(InputError, match=r"does not go with balce.*set adjust=none, or name=ce"):
        apply_overrides(run_of(), {"loss.name": "balce", "loss.adjust": adjust})


@pytest.mark.parametrize("name", ["none", "mixup"])
def test_without_shifted_labels_the_mass_is_the_prior(name: Any) -> None:
    pairs = Pairs(torch.tensor(COUNTS), text_of(8), 0.05)
    shares = LabelShares(MixupConfig(name=name), pairs, 1.0, 3)
    assert shares.mass_C.tolist() == [n / sum(COUNTS) for n in COUNTS]


# --- In training -----------------------------------------------------------------------------------------


def first_loss(config: RunConfig, folder: Path, alpha: float) -> float:
    """The loss that a stage logs after an epoch of one batch."""
    logged: list[dict[str, float]] = []
    model = LFM(conv4(1, 32, config.seed), small_stage.text())
    data, val = small_stage.images(), small_stage.images(1)
    Stage(1, config, model, data, val, folder, lambda v, _: logged.append(dict(v)), alpha).run()
    return logged[0]["stage1/loss"]


@pytest.mark.parametrize(("adjust", "share"), [("prior", "prior_C"), ("label-mass", "mass_C")])
def test_a_stage_trains_on_the_adjusted_loss(adjust: str, share: str, tmp_path: Path) -> None:
    """The logged loss of one batch against logits, labels and the logarithm added by hand."""
    plain = small_stage.config(
        stage1__epochs=1, stage1__batch_size=200, train__precision="fp32", train__flip=False, mixup__name="lfm"
    )
    config = apply_overrides(plain, {"loss.adjust": adjust, "loss.adjust_strength": 1.5})
    data, model = small_stage.images(), LFM(conv4(1, 32, 0), small_stage.text())
    counts_C = torch.tensor(small_stage.COUNTS)
    shares = label_shares(plain, 1, counts_C, small_stage.text(), 0.5, 200)
    added_C = 1.5 * getattr(shares, share).log()
    model.train_stage(1)
    batch = pair_sampler(plain, 1, data.label_N, small_stage.text(), 0.5, 200).batch(0, 0)
    pixels = data.fetch(batch.index_B2.flatten()).float().view(-1, 2, 1, 12, 12) / 255
    weight_B = batch.lambda_x_B[:, None, None, None]
    mixed = ((weight_B * pixels[:, 0] + (1 - weight_B) * pixels[:, 1]) - 0.5) / 0.3
    log_p_BC = (model(mixed).double() / plain.loss.temperature + added_C).log_softmax(dim=1)
    expected = -(log_p_BC.gather(1, batch.label_B2) * batch.weight_B2).sum(dim=1).mean()
    loss = first_loss(config, tmp_path / "adjusted", 0.5)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert loss != pytest.approx(first_loss(plain, tmp_path / "plain", 0.5), rel=1e-2)


def test_an_adjusted_stage_is_another_stage(tmp_path: Path) -> None:
    """Its inputs differ, so nothing is reused, and its checkpoints are not resumed with other values."""
    config = small_stage.config(loss__adjust="prior")
    assert made_with(config, 1, 0.5)["loss.adjust"] == "prior"
    other = small_stage.config(loss__adjust="prior", loss__adjust_strength=0.5)
    assert made_with(config, 1, 0.5) != made_with(other, 1, 0.5)
    assert [config.method, other.method] == ["lfm + ce + la(prior)", "lfm + ce + la(prior 0.5)"]


@pytest.mark.parametrize("name", ["remix", "lfm"])
def test_a_batch_size_that_is_searched_for_gives_the_same_loss(name: str, tmp_path: Path) -> None:
    config = small_stage.config(stage1__batch_size="auto", mixup__name=name, loss__adjust="label-mass")
    model = LFM(conv4(1, 32, 0), small_stage.text())
    data, val = small_stage.images(), small_stage.images(1)
    stage = Stage(1, config, model, data, val, tmp_path, lambda v, _: None, 0.5)
    expected = label_shares(config, 1, torch.tensor(small_stage.COUNTS), small_stage.text(), 0.5, stage.batch_size)
    torch.testing.assert_close(stage.shares.mass_C, expected.mass_C, rtol=0, atol=0)
    z_BC, label_BK = torch.zeros(2, small_stage.CLASSES), torch.tensor([[0], [5]])
    torch.testing.assert_close(stage.loss(z_BC, label_BK)[:, 0], -expected.mass_C.log()[[0, 5]].float())

"""Partners that are ruled out: `mixup.exclude` and `mixup.max_similarity`, against rows computed by loops."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lfm.config.overrides import parse_overrides
from lfm.config.presets import load
from lfm.config.run_parameters import pipeline_arguments, to_overrides
from lfm.config.schema import MixupConfig, RunConfig
from lfm.errors import InputError
from lfm.jobs.preview import inspect
from lfm.method.mixup import local_sampling_rows, partner_sampler
from lfm.method.partners import Barred, ChunkPartners, PartnerSampler
from lfm.training.batches import barred_partners, pair_sampler

NAMES = ("left hand", "right hand", "normal x-ray", "abnormal x-ray", "boat", "bicycle", "owl", "fox")
C = len(NAMES)


def text() -> Tensor:
    """Pairs of opposites lie close together, as sentence encoders put them."""
    rng = torch.Generator().manual_seed(3)
    text_CD = torch.randn(C, 12, generator=rng)
    text_CD[1] = text_CD[0] + 0.1 * torch.randn(12, generator=rng)
    text_CD[3] = text_CD[2] + 0.1 * torch.randn(12, generator=rng)
    return torch.nn.functional.normalize(text_CD, dim=1)


PAIRS = torch.tensor([[1, 0], [5, 7]])
RULES = {"pairs": Barred(pair_P2=PAIRS), "ceiling": Barred(0.9), "both": Barred(0.9, PAIRS)}


def oracle(i: int, tau: float, barred: Barred, uniform: bool) -> list[float]:
    rows = text().double()
    mass = []
    for k in range(C):
        cosine = float(rows[i] @ rows[k])
        out = k == i or ({i, k} in ({0, 1}, {5, 7}) and len(barred.pair_P2) > 0)
        out = out or (barred.max_similarity < 1 and cosine > barred.max_similarity)
        mass.append(0.0 if out else float(np.exp(0 if uniform else cosine / tau)))
    return [m / sum(mass) for m in mass]


def in_chunks(text_CD: Tensor, tau: float, barred: Barred) -> ChunkPartners:
    return ChunkPartners(text_CD, tau, partial(local_sampling_rows, text_CD, tau=tau, barred=barred), barred)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["table", "chunks", "uniform"])
def test_barred_partners_are_never_drawn_and_the_others_share(
    rule: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfm.method.partners.CHUNK", 3)
    barred, tau, each = RULES[rule], 0.3, 20_000
    sampler: PartnerSampler
    if way == "chunks":
        sampler = in_chunks(text(), tau, barred)
    else:
        sampler = partner_sampler(text(), tau, way == "uniform", barred)
    u_N = torch.rand(each, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u_N[:4] = torch.tensor([0.0, 5e-324, 0.5, 1 - 2**-53], dtype=torch.float64)
    for i in range(C):
        found_C = sampler.draw(torch.full((each,), i), u_N).bincount(minlength=C).numpy() / each
        expected = np.array(oracle(i, tau, barred, way == "uniform"))
        assert (found_C[expected == 0] == 0).all()
        assert np.abs(found_C - expected).max() < 4 * 0.5 / each**0.5


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_the_formula_without_them(rule: str) -> None:
    rows_CC = local_sampling_rows(text(), torch.arange(C), 0.3, RULES[rule])
    expected = [oracle(i, 0.3, RULES[rule], uniform=False) for i in range(C)]
    torch.testing.assert_close(rows_CC, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def labels() -> Tensor:
    return torch.arange(C).repeat_interleave(torch.arange(20, 20 + C))


def test_training_draws_no_barred_pair_and_off_changes_nothing() -> None:
    config = load("fashion-mnist-lt", {"mixup.exclude": [["boat", "owl"]], "mixup.max_similarity": 0.9})
    sampler = pair_sampler(config, 1, labels(), text(), 0.5, 32, NAMES)
    drawn = {tuple(pair) for e in range(20) for batch in sampler.epoch(e) for pair in batch.label_B2.tolist()}
    for a, b in ((0, 1), (2, 3), (4, 6)):
        assert not {(a, b), (b, a)} & drawn
    assert {(0, 2), (4, 5), (6, 7)} & drawn
    plain = load("fashion-mnist-lt")
    assert plain.mixup.exclude == () and plain.mixup.max_similarity == 1
    first, other = (pair_sampler(plain, 1, labels(), text(), 0.5, 32, names).batch(0, 1) for names in ((), NAMES))
    assert torch.equal(first.index_B2, other.index_B2)
    assert barred_partners(plain.mixup, NAMES, text()) is None


def test_what_is_shown_before_training_knows_of_it(tmp_path: Path) -> None:
    info = {"classes": NAMES, "counts": [400, 30, 300, 20, 200, 100, 50, 10]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    save_file({"text_CD": text()}, tmp_path / "text.safetensors")
    plain = inspect(load("fashion-mnist-lt"), 1, tmp_path, tmp_path)["own_label_mass"]
    barred = inspect(load("fashion-mnist-lt", {"mixup.max_similarity": 0.9}), 1, tmp_path, tmp_path)["own_label_mass"]
    # A left hand's label went to the rarer right hand most of the time.
    assert barred[0] > plain[0] and barred != plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exclude": (("boat", "foxx"),)}, r"unknown class in mixup.exclude 'foxx'; did you mean fox"),
        ({"exclude": (("fox", "fox"),)}, r"mixup.exclude has 'fox' with itself"),
        ({"max_similarity": -0.99}, r"class 'left hand' has no partner left; raise mixup.max_similarity \(-0.99\)"),
        (
            {"exclude": tuple(("owl", n) for n in NAMES if n != "owl")},
            r"class 'owl' has no partner left.*take pairs out",
        ),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        barred_partners(MixupConfig.model_validate(values), NAMES, text())


def test_it_comes_through_the_command_line_and_the_run_form() -> None:
    given = parse_overrides(['mixup.exclude=[["left hand", "right hand"], ["a, b", "c"]]', "mixup.max_similarity=0.93"])
    config = load("custom", given | {"data.source": "x"})
    assert config.mixup.exclude == (("left hand", "right hand"), ("a, b", "c"))
    arguments = json.loads(json.dumps(pipeline_arguments(config)))
    assert load("custom", {**to_overrides(arguments), **arguments["overrides"]}) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config

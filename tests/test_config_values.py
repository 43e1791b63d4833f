"""The configuration: what cannot be assigned, the paper's text and released code, what is derived."""

from typing import Any

import pytest
from pydantic import ValidationError

from lfm.cli.options import read_config
from lfm.config.overrides import apply_overrides, code_values, flatten
from lfm.config.presets import load
from lfm.config.schema import RunConfig, Section
from lfm.errors import InputError
from tests.config_cases import BASE, SECTIONS, changed

# --- Immutability --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(flatten(BASE)))
def test_no_field_can_be_assigned(name: str) -> None:
    section, _, leaf = name.rpartition(".")
    owner = getattr(BASE, section) if section else BASE
    with pytest.raises(ValidationError, match="frozen"):
        setattr(owner, leaf, flatten(BASE)[name])


@pytest.mark.parametrize("section", [RunConfig, *(type(getattr(BASE, name)) for name in SECTIONS)])
def test_no_undeclared_field_is_taken(section: type[Section]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        section.model_validate({"preset": "test", "colour": "red"} if section is RunConfig else {"colour": "red"})


# --- Text and released code ----------------------------------------------------------------------------


# Where the released code differs, by mixup: read in its repository (docs/method.md), and written down here once more.
OF_ALL = {
    "mixup.lambda_per": "batch",
    "shots.few": 21,
    "loss.focal_gamma": 0.0,
    "stage1.cosine": "epoch",
    "stage2.cosine": "epoch",
}


RELEASED = {
    "none": OF_ALL,
    "mixup": OF_ALL | {"mixup.beta": 1.0},
    "remix": OF_ALL | {"mixup.beta": 0.5, "mixup.remix_branches": "swapped"},
    "lfm": OF_ALL | {"mixup.beta": 0.2, "mixup.partner_image": "until-used-up"},
}


def test_the_defaults_are_the_papers_text() -> None:
    text = {
        "mixup.beta": 0.5,
        "mixup.lambda_per": "pair",
        "mixup.partner_image": "uniform",
        "mixup.remix_branches": "published",
        "shots.few": 20,
        "loss.focal_gamma": 2.0,
        "stage1.cosine": "step",
        "stage2.cosine": "step",
    }
    both = {
        "mixup.remix_kappa": 3.0,
        "mixup.remix_tau": 0.5,
        "loss.temperature": 1.0,
        "loss.mms_margin": 0.3,
        "loss.mms_temperature": 0.01,
        "loss.ldam_margin": 0.5,
        "loss.ldam_scale": 30.0,
        "mixup.tau": 0.05,
        "stage1.alpha": 1.0,
        "stage2.alpha": 1.0,
        "seed": 0,
        "text.prompt": "a photo of a {}",
    }
    assert flatten(BASE) == flatten(BASE) | text | both


@pytest.mark.parametrize("name", RELEASED)
def test_fidelity_code_sets_what_the_released_code_does_with_this_mixup(name: str) -> None:
    """Whether the mixup is the base's or is chosen along with it."""
    expected = flatten(BASE) | RELEASED[name] | {"fidelity": "code", "mixup.name": name}
    base = apply_overrides(BASE, {"mixup.name": name})
    assert flatten(apply_overrides(base, {"fidelity": "code"})) == expected
    assert flatten(apply_overrides(BASE, {"fidelity": "code", "mixup.name": name})) == expected
    assert flatten(apply_overrides(BASE, {"mixup.name": name, "fidelity": "code"})) == expected
    assert code_values(name) == RELEASED[name]


@pytest.mark.parametrize("name", RELEASED)
def test_explicit_overrides_win_over_the_code_values(name: str) -> None:
    """Wherever they stand beside `fidelity`, and also over a base that is already at `code`."""
    explicit = {"mixup.beta": 0.7, "mixup.remix_branches": "published", "stage1.cosine": "step", "shots.few": 5}
    mixup = {"mixup.name": name}
    expected = flatten(BASE) | RELEASED[name] | {"fidelity": "code"} | mixup | explicit
    assert flatten(apply_overrides(BASE, {"fidelity": "code"} | mixup | explicit)) == expected
    assert flatten(apply_overrides(BASE, explicit | mixup | {"fidelity": "code"})) == expected
    code = RunConfig(preset="test", fidelity="code")
    assert flatten(apply_overrides(code, mixup | explicit)) == expected
    assert flatten(apply_overrides(code, {"fidelity": "text"})) == flatten(BASE)


def test_an_unknown_mixup_is_refused_with_the_known_ones_under_code_too() -> None:
    for overrides in ({"mixup.name": "cutmix"}, {"mixup.name": "cutmix", "fidelity": "code"}):
        with pytest.raises(InputError, match=r"mixup.name = 'cutmix'.*'none', 'mixup', 'remix' or 'lfm'"):
            apply_overrides(BASE, overrides)


# --- What is derived -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, "lfm + ce"),
        ({"mixup__name": "remix", "loss__name": "mms"}, "remix + mms"),
        ({"mixup__name": "none", "loss__name": "balce"}, "balce"),
        ({"loss__adjust": "label-mass"}, "lfm + ce + la(mass)"),
        ({"mixup__name": "none", "loss__adjust": "prior", "loss__adjust_strength": 0.5}, "ce + la(prior 0.5)"),
        ({"stage1__epochs": 0}, "lfm + ce"),
        ({"stage1__epochs": 0, "stage2__epochs": 0}, "zero-shot"),
    ],
)
def test_the_name_of_the_method(values: dict[str, Any], method: str) -> None:
    assert changed(**values).method == method


def test_stages_and_shots_by_name() -> None:
    config = changed(stage1__epochs=7, stage2__epochs=8, shots__few=21)
    assert (config.stage(1).epochs, config.stage(2).epochs) == (7, 8)
    assert config.shots.rule == "many > 100, few < 21"


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        ("custom", {"data.imbalance": 50}, r"imbalance 50 has no effect with profile=as-is; set imbalance=100"),
        ("custom", {"data.max_per_class": 9}, r"max_per_class 9 has no effect with profile=as-is"),
        ("fashion-mnist-lt", {"data.profile": "as-is", "data.imbalance": 10}, r"imbalance 10 has no effect"),
        ("custom", {"data.max_bad": 0.2}, r"max_bad 0.2 has no effect with on_bad_image=stop"),
        ("custom", {"data.depth": [5, 5]}, r"depth \[5.0, 5.0\] is \[level of black, level of white\]"),
    ],
)
def test_fields_that_have_no_effect_beside_others_are_refused(
    preset: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(preset, values)


def test_what_a_preset_says_of_its_subset_goes_with_the_subset() -> None:
    assert load("fashion-mnist-lt", {"data.profile": "as-is"}).data.max_per_class == 0
    assert load("custom", {"data.profile": "step", "data.imbalance": 50}).data.imbalance == 50
    assert load("custom", {"data.on_bad_image": "skip", "data.max_bad": 0.2}).data.max_bad == 0.2
    for item in ("data.imbalance=100", "data.max_per_class=0"):
        with pytest.raises(InputError, match=r"has no effect with data.profile=as-is; leave it out"):
            read_config("custom", [item])
    assert load("custom", {"data.depth": [0, 4095]}).data.depth == (0, 4095)

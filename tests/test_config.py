"""The configuration: every value checked, every error naming the field, the rule and the fix."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lfm.cli.options import read_config
from lfm.config.overrides import apply_overrides, code_values, field_names, flatten, parse_overrides
from lfm.config.presets import PRESETS, load
from lfm.config.schema import RunConfig, Section
from lfm.errors import InputError

BASE = RunConfig(preset="test")
SECTIONS = [name for name, value in BASE if isinstance(value, Section)]


def changed(**values: Any) -> RunConfig:
    """The base with `section__field=value` applied."""
    return apply_overrides(BASE, {name.replace("__", "."): value for name, value in values.items()})


# --- Presets and documentation -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_under_its_own_name(name: str) -> None:
    config = load(name)
    assert config == PRESETS[name]()
    assert config.preset == name
    assert f"lfm run {name}" in (PRESETS[name].__doc__ or "")
    assert load(name, {"fidelity": "code"}).fidelity == "code"


def test_an_unknown_preset_names_the_nearest_or_lists_all() -> None:
    with pytest.raises(InputError, match="did you mean fashion-mnist-lt"):
        load("fashion-mnist")
    with pytest.raises(InputError) as error:
        load("qqq")
    assert all(name in str(error.value) for name in PRESETS)


def test_every_field_is_documented() -> None:
    sections: list[type[BaseModel]] = [RunConfig, *(type(getattr(BASE, name)) for name in SECTIONS)]
    for section in sections:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert name in SECTIONS or field.description, f"{section.__name__}.{name}"


def test_flatten_and_field_names_list_every_value_once() -> None:
    flat = flatten(BASE)
    assert list(flat) == [name for name in flat if name in {"preset", *field_names()}]
    assert set(field_names()) <= set(flat)
    assert flat["stage2.epochs"] == BASE.stage2.epochs
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize("name", field_names())
def test_every_name_offered_can_be_set(name: str) -> None:
    """Setting a field to the value it has changes nothing."""
    assert apply_overrides(BASE, {name: flatten(BASE)[name]}) == BASE


# --- Reading and applying overrides --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [
        ("stage1.epochs=3", "stage1.epochs", 3),
        ("stage1.lr=2e-3", "stage1.lr", 0.002),  # text in YAML 1.1
        ("stage1.lr=1E-9", "stage1.lr", 1e-9),
        ("stage1.lr=.5", "stage1.lr", 0.5),
        ("train.flip=false", "train.flip", False),
        ("stage2.alpha=auto", "stage2.alpha", "auto"),
        ("stage2.alpha=1.25", "stage2.alpha", 1.25),
        ("text.prompt=a sketch = of a {}", "text.prompt", "a sketch = of a {}"),
        ("data.source=''", "data.source", ""),
        (" mixup.tau = 31.25", "mixup.tau", 31.25),
    ],
)
def test_overrides_are_yaml_scalars(item: str, name: str, value: Any) -> None:
    assert parse_overrides([item]) == {name: value}
    applied = flatten(apply_overrides(BASE, parse_overrides([item])))
    assert applied == {**flatten(BASE), name: value}


def test_later_overrides_win() -> None:
    assert parse_overrides(["seed=1", "stage1.lr=1", "seed=2"]) == {"seed": 2, "stage1.lr": 1}


@pytest.mark.parametrize("item", ["seed", "=3", "", "data.source=[1", "data.source='"])
def test_an_item_that_cannot_be_read_is_quoted(item: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(item))):
        parse_overrides([item])


@pytest.mark.parametrize("name", [n for n in field_names() if type(flatten(BASE)[n]) is int])
def test_whole_floats_are_taken_for_whole_numbers(name: str) -> None:
    """Kubeflow hands every number over as a float."""
    value = flatten(BASE)[name]
    set_value = flatten(apply_overrides(BASE, {name: float(value)}))[name]
    assert set_value == value
    assert type(set_value) is int
    with pytest.raises(InputError, match=re.escape(name)):
        apply_overrides(BASE, {name: value + 0.5})


def test_overrides_do_not_touch_the_base() -> None:
    before = BASE.model_dump()
    assert changed(stage1__epochs=99).stage1.epochs == 99
    assert BASE.model_dump() == before


# --- Errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mixup.tua", "mixup.tau"),
        ("stage1.epoch", "stage1.epochs"),
        ("stage2.learning_lr", "stage2.min_lr"),
        ("data.imbalanse", "data.imbalance"),
        ("train.validate", "train.validate_every"),
        ("loss.mms_temprature", "loss.mms_temperature"),
        ("mixup.tau.x", "mixup.tau"),
        ("sed", "seed"),
        ("", None),
        ("qqqqqq", None),
        ("a.b.c.d", None),
    ],
)
def test_an_unknown_field_names_the_nearest_or_lists_all(name: str, nearest: str | None) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides(BASE, {name: 1})
    message = str(error.value)
    assert repr(name) in message
    if nearest is None:
        assert all(known in message for known in field_names())
    else:
        assert message.endswith(f"did you mean {nearest}?")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(field_names()), place=st.integers(0, 40), letter=st.sampled_from("qzx_"))
def test_a_field_with_one_letter_too_many_is_recognised(name: str, place: int, letter: str) -> None:
    place %= len(name) + 1
    with pytest.raises(InputError, match=f"did you mean {re.escape(name)}\\?"):
        apply_overrides(BASE, {name[:place] + letter + name[place:]: 1})


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_cannot_be_set(name: str) -> None:
    for value in (3, {}, {"epochs": 1}):
        with pytest.raises(InputError) as error:
            apply_overrides(BASE, {name: value})
        fields = type(getattr(BASE, name)).model_fields
        assert all(f"{name}.{field}" in str(error.value) for field in fields)


def test_the_preset_cannot_be_set() -> None:
    with pytest.raises(InputError, match="preset is not a field to set"):
        apply_overrides(BASE, {"preset": "fashion-mnist-lt"})


BAD_VALUES = [
    ("seed", -1),
    ("seed", "many"),
    ("fidelity", "paper"),
    ("data.imbalance", 0.5),
    ("data.max_per_class", -1),
    ("seed", 2**32),
    ("data.val_per_class", -1),
    ("text.encoder", "bert"),
    ("mixup.name", "cutmix"),
    ("mixup.tau", 0),
    ("mixup.tau", -0.05),
    ("mixup.tau", None),
    ("mixup.tau", [0.05]),
    ("mixup.beta", 0),
    ("mixup.lambda_per", "image"),
    ("mixup.remix_kappa", 0.9),
    ("mixup.remix_tau", 1.1),
    ("loss.name", "hinge"),
    ("loss.temperature", 0),
    ("loss.focal_gamma", -1),
    ("loss.mms_temperature", 0),
    ("stage1.epochs", -1),
    ("stage1.epochs", 1.5),
    ("stage1.lr", 0),
    ("stage1.warmup", 1),
    ("stage1.optimizer", "lion"),
    ("stage1.batch_size", 0),
    ("stage1.alpha", "large"),
    ("shots.few", -1),
    ("train.checkpoint_minutes", 0),
    ("train.own_label_threshold", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_field_and_value(name: str, value: Any) -> None:
    """Every complaint of the message starts with a name that can be set."""
    with pytest.raises(InputError) as error:
        apply_overrides(BASE, {name: value})
    complaints = str(error.value).split("; ")
    assert [c for c in complaints if not c.startswith(f"{name} = {value!r}: ")] == []


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(InputError) as error:
        changed(stage1__lr=-1, mixup__tau=0)
    assert "stage1.lr = -1" in str(error.value)
    assert "mixup.tau = 0" in str(error.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stage1__lr": 1e-6, "stage1__min_lr": 1e-3}, ["stage1", "min_lr 0.001", "lr 1e-06", "lower it"]),
        ({"stage2__alpha": -0.5}, ["stage2", "alpha -0.5", "0 or more, or auto"]),
        ({"shots__few": 102}, ["shots", "few (102)", "many + 1 (101)"]),
        ({"text__prompt": "a photo"}, ["text", "'a photo'", "exactly one {}"]),
        ({"text__prompt": "{} or {}"}, ["text", "'{} or {}'", "exactly one {}"]),
        ({"text__prompt": "{} is {name}"}, ["text", "exactly one {}"]),
        ({"text__prompt": "a {} }"}, ["text", "exactly one {}"]),
        ({"text__prompt": ["a {}", "b"]}, ["text", "'b'", "exactly one {}"]),
        ({"text__prompt": []}, ["text", "prompt is empty"]),
        ({"stage1__epochs": True}, ["stage1", "epochs is true, which is no number"]),
        ({"stage1__lr": False}, ["stage1", "lr is false, which is no number"]),
        ({"model__image_size": 4}, ["model", "image_size 4", "8 or more"]),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(InputError) as error:
        changed(**values)
    assert all(part in str(error.value) for part in told)


@pytest.mark.parametrize("name", ["stage1.alpha", "stage1.lr", "mixup.beta"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match=re.escape(name.rpartition(".")[2])):
        apply_overrides(BASE, parse_overrides([f"{name}={value}"]))


def test_values_at_the_edge_of_their_range_are_taken() -> None:
    config = changed(stage1__alpha=0, stage1__lr=1e-12, stage1__min_lr=1e-12, shots__few=101, data__imbalance=1)
    assert (config.stage1.alpha, config.stage1.min_lr, config.shots.few) == (0, 1e-12, 101)
    assert changed(stage1__epochs=0, mixup__remix_kappa=1.001, mixup__remix_tau=1).stage1.epochs == 0


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

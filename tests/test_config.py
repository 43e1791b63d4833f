"""The configuration: presets, --set, and values that are refused."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lfm.config.overrides import apply_overrides, field_names, flatten, parse_overrides
from lfm.config.presets import PRESETS, load
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from tests.config_cases import BASE, SECTIONS, changed

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

"""Which configurations a grid means."""

import pytest

from lfm.config.presets import load
from lfm.config.sweeps import BASELINES, Part, check, variants_of
from lfm.errors import InputError

BASE = load("fashion-mnist-lt")


def test_the_baselines_are_the_rows_of_the_papers_tables() -> None:
    variants = variants_of("baselines")
    assert [variant["label"] for variant in variants] == list(BASELINES)
    methods = [config.method for config in check(BASE, variants)]
    assert methods == ["ce", "balce", "focal", "ldam", "mms", "mixup + ce", "remix + ce", "lfm + ce", "lfm + mms"]


@pytest.mark.parametrize(
    ("grid", "fields", "values"),
    [
        ("imbalance", ["data.imbalance"], [10, 50, 100]),
        ("alpha", ["stage1.alpha", "stage2.alpha"], [k / 4 for k in range(9)]),
        ("tau", ["mixup.tau"], [0.002, 0.01, 0.05, 0.25, 1.25, 31.25]),
    ],
)
def test_the_curves_are_the_papers(grid: str, fields: list[str], values: list[float]) -> None:
    variants = variants_of(grid)
    assert [variant["value"] for variant in variants] == values
    for variant, value in zip(variants, values, strict=True):
        assert variant["overrides"] == {**dict.fromkeys(fields, value), "seed": 0}
        assert variant["over"] == grid and variant["name"] == f"{grid} {value:g}"


def test_seeds_share_a_label_and_values_can_be_given() -> None:
    variants = variants_of("alpha", [0.5, 1], seeds=2, first_seed=5)
    assert [variant["name"] for variant in variants] == [
        "alpha 0.5, seed 5", "alpha 0.5, seed 6", "alpha 1, seed 5", "alpha 1, seed 6"
    ]  # fmt: skip
    assert [variant["label"] for variant in variants] == ["alpha 0.5", "alpha 0.5", "alpha 1", "alpha 1"]
    assert {variant["overrides"]["seed"] for variant in variants} == {5, 6}


def test_any_field_may_be_varied() -> None:
    words, numbers = variants_of("loss.name=ce, mms"), variants_of("loss.temperature=0.02,5e-2")
    assert [variant["overrides"]["loss.name"] for variant in words] == ["ce", "mms"] and "value" not in words[0]
    assert [variant["value"] for variant in numbers] == [0.02, 0.05]
    assert variants_of("stage1.alpha=auto,0.5")[0]["overrides"]["stage1.alpha"] == "auto"


@pytest.mark.parametrize(
    ("grid", "values", "message"),
    [
        ("alhpa", [], "unknown grid 'alhpa'; did you mean alpha"),
        ("baselines", [1], "--values does not go with the grid baselines"),
        ("seed=1,2", [3], "has its values already"),
        ("stage1.epoch=1,2", [], r"stage1.epoch 1: unknown config field 'stage1.epoch'; did you mean stage1.epochs"),
        ("tau", [-1], r"tau -1: mixup.tau = -1: should be greater than 0"),
        ("tau", [1, 1.0], "the sweep has tau 1 more than once"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(grid: str, values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(BASE, variants_of(grid, values))


def test_an_empty_sweep_is_refused() -> None:
    with pytest.raises(InputError, match="the sweep has no configurations"):
        check(BASE, [])


def test_a_part_of_a_sweep_is_text_that_is_read_back() -> None:
    part = Part("a1b2c3", 2, 3, 60)
    assert Part.parse(str(part)) == part and Part.parse("") is None
    for wrong in ("2 of 3", "a, part 4 of 3, 60 configurations", "a, part 0 of 3, 60 configurations"):
        with pytest.raises(InputError, match="is not written as a1b2c3, part 2 of 3, 60 configurations"):
            Part.parse(wrong)

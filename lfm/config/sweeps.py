"""Grids of configurations to compare: the paper's baselines, imbalance factors, alpha and tau, or any field."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lfm.config.overrides import apply_overrides, parse_overrides
from lfm.config.schema import RunConfig
from lfm.errors import InputError, unknown

BASELINES: dict[str, dict[str, Any]] = {
    name: {"mixup.name": mixup, "loss.name": loss, "loss.adjust": "none"}
    for name, mixup, loss in (
        ("CE", "none", "ce"),
        ("BalCE", "none", "balce"),
        ("Focal", "none", "focal"),
        ("LDAM", "none", "ldam"),
        ("MMS", "none", "mms"),
        ("Mixup + CE", "mixup", "ce"),
        ("Remix + CE", "remix", "ce"),
        ("LFM + CE", "lfm", "ce"),
        ("LFM + MMS", "lfm", "mms"),
    )
}
"""The losses of Table 1 and the mixups of Table 5 of Franklin et al. 2024, none with logit adjustment."""

# Grid -> the fields that take each value, and the paper's values (Table 2, Figs. 9 and 10).
CURVES: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "imbalance": (("data.imbalance",), (10.0, 50.0, 100.0)),
    "alpha": (("stage1.alpha", "stage2.alpha"), (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
    "tau": (("mixup.tau",), (0.002, 0.01, 0.05, 0.25, 1.25, 31.25)),
}
Variant = dict[str, Any]


class Part(NamedTuple):
    """What one of several pipeline runs has of a large sweep. It goes to them as text: a parameter of the pipeline."""

    sweep: str
    """Names the sweep."""
    number: int
    """Of this part, from 1."""
    of: int
    """Number of parts."""
    configurations: int
    """Of the whole sweep."""

    def __str__(self) -> str:
        return f"{self.sweep}, part {self.number} of {self.of}, {self.configurations} configurations"

    @classmethod
    def parse(cls, text: str) -> "Part | None":
        """What `str` made; None of an empty text.

        Raises:
            InputError: It is neither.
        """
        if not text:
            return None
        match = re.fullmatch(r"(\w+), part (\d+) of (\d+), (\d+) configurations", text)
        if not match or not 1 <= int(match[2]) <= int(match[3]):
            raise InputError(f"part {text!r} is not written as {cls('a1b2c3', 2, 3, 60)}; empty is a whole sweep")
        return cls(match[1], int(match[2]), int(match[3]), int(match[4]))


def variants_of(grid: str, values: Sequence[Any] = (), seeds: int = 1, first_seed: int = 0) -> list[Variant]:
    """The configurations of a grid.

    Args:
        grid: Name of the grid: `baselines`, one of `CURVES`, or `FIELD=VALUE,VALUE,...`.
        values: Values in place of the paper's, for a grid of `CURVES`.
        seeds: Number of seeds for each configuration.
        first_seed: First of the consecutive seeds.

    Returns:
        For each its `name`, the `label` that its seeds share, `value` where the grid is over numbers, `overrides`.

    Raises:
        InputError: The grid is unknown, or does not take values.
    """
    arms = _arms(grid, values)
    return [
        {
            **arm,
            "name": arm["label"] if seeds == 1 else f"{arm['label']}, seed {seed}",
            "overrides": arm["overrides"] | {"seed": seed},
        }
        for arm in arms
        for seed in range(first_seed, first_seed + seeds)
    ]


def _arms(grid: str, values: Sequence[Any]) -> list[Variant]:
    if grid == "baselines":
        if values:
            raise InputError("--values does not go with the grid baselines; leave it out")
        return [{"label": name, "overrides": dict(overrides)} for name, overrides in BASELINES.items()]
    if grid in CURVES:
        fields, own = CURVES[grid]
        name, values = grid, values or own
    elif "=" in grid and not values:
        name, _, listed = grid.partition("=")
        fields, values = (name,), [parse_overrides([f"{name}={v.strip()}"])[name] for v in listed.split(",")]
    elif "=" in grid:
        raise InputError(f"--grid {grid} has its values already; leave --values out")
    else:
        raise unknown("grid", grid, ["baselines", *CURVES, "FIELD=VALUE,VALUE,..."])
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return [
        {
            "label": f"{name} {v:g}" if numbers else f"{name} {v}",
            "overrides": dict.fromkeys(fields, v),
            **({"value": float(v), "over": name} if numbers else {}),
        }
        for v in values
    ]


def check(base: RunConfig, variants: Sequence[Mapping[str, Any]]) -> list[RunConfig]:
    """Every configuration of a sweep, checked.

    Raises:
        InputError: There is no variant, a name occurs twice, or a variant's configuration is invalid.
    """
    if not variants:
        raise InputError("the sweep has no configurations; give some, as in --grid alpha")
    names = [str(variant["name"]) for variant in variants]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"the sweep has {', '.join(sorted(twice))} more than once; list each value once")
    found = []
    for variant in variants:
        try:
            found.append(apply_overrides(base, variant["overrides"]))
        except InputError as error:
            raise InputError(f"{variant['name']}: {error}") from error
    return found

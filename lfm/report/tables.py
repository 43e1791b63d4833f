"""Metrics -> plain tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from lfm.config.schema import GROUPS

COLUMNS = (*GROUPS, "all")


def percent(value: float | None) -> str:
    """One decimal; a dash where there is no such class."""
    return "-" if value is None else f"{value:.1f}"


MOST_STRENGTH = 3.0
"""Largest strength that `lfm.evaluation.adjustment` tries: the best may lie beyond it."""


def adjusted_name(name: str, strength: float) -> str:
    """What tables call a model with adjusted logits (`lfm.evaluation.adjustment`)."""
    return f"{name}, adjusted (strength {strength:g}{', the most tried' if strength >= MOST_STRENGTH else ''})"


def table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Many / medium / few / all of several methods, side by side, in plain text."""
    width = max(len(name) for name in methods) + 2
    lines = [" " * width + "".join(f"{c:>9}" for c in COLUMNS)]
    lines += [f"{name:<{width}}" + "".join(f"{percent(m[c]):>9}" for c in COLUMNS) for name, m in methods.items()]
    return "\n".join(lines)


def histogram(
    classes: Sequence[str], values: Mapping[str, Sequence[Any]], bars: Sequence[float], most: int = 20
) -> str:
    """A row a class: its name, some columns of numbers, and a bar.

    Args:
        classes: names.
        values: heading -> a value a class, formatted by `str`.
        bars: length of each bar, relative to the largest.
        most: rows; of more classes the first and the last are shown.
    """
    width = max(len(name) for name in classes) + 1
    lines = [" " * width + "".join(f"{heading:>10}" for heading in values)]
    for k, name in enumerate(classes):
        if len(classes) > most and most // 2 <= k < len(classes) - most // 2:
            lines += [f"... {len(classes) - 2 * (most // 2)} more"] if k == most // 2 else []
            continue
        cells = "".join(f"{column[k]!s:>10}" for column in values.values())
        lines.append(f"{name:<{width}}{cells}  {'█' * max(1, round(24 * bars[k] / max(bars)))}")
    return "\n".join(lines)

"""Metrics and configuration -> tables for people: plain text and one self-contained HTML page."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm.evaluate import GROUPS

COLUMNS = (*GROUPS, "all")


def percent(value: float | None) -> str:
    """One decimal; a dash where there is no such class."""
    return "-" if value is None else f"{value:.1f}"


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


def picture(path: Path, title: str, found: Mapping[str, Any]) -> None:
    """Draw p(y), p(Y) and own-label mass of each class.

    Args:
        path: .png, .svg or .pdf to write.
        title: above it.
        found: from `lfm.jobs.inspect`.
    """
    from matplotlib.figure import Figure

    classes = found["classes"]
    figure = Figure(figsize=(max(7, min(24, len(classes) * 0.6)), 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    place = range(len(classes))
    above.bar([k - 0.2 for k in place], found["prior"], 0.4, label=f"p(y), gamma {found['gamma']:.0f}")
    above.bar([k + 0.2 for k in place], found["seen"], 0.4, label=f"p(Y), gamma' {found['gamma_effective']:.1f}")
    above.set_yscale("log")
    above.set_title(title)
    above.legend()
    below.bar(place, found["own_label_mass"], color="tab:green")
    below.axhline(0.5, color="tab:red", linestyle="--")
    below.set_ylim(0, 1.05)
    below.set_ylabel(f"own-label mass, alpha {found['alpha']:g}")
    if len(classes) <= 60:
        below.set_xticks(list(place), classes, rotation=45, ha="right")
    figure.savefig(path)


STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #3b82c4; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
td div { background: var(--bar); height: .8rem; border-radius: 2px; }
td.bar { width: 40%; }
footer { color: #888; font-size: .85rem; margin-top: 2rem; overflow-wrap: anywhere; }
"""


def page(title: str, methods: Mapping[str, Mapping[str, Any]], provenance: Mapping[str, Any]) -> str:
    """One HTML page without external requests: the shot table, each class, and what the score is of.

    Args:
        title: of the page.
        methods: name -> metrics; the last one is shown class by class.
        provenance: data, split, shot rule, weights, seed, commit, in the order to show.
    """
    last = methods[list(methods)[-1]]
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td>{percent(m[c])}</td>" for c in COLUMNS) + "</tr>"
        for name, m in methods.items()
    )
    classes = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count}</td><td>{percent(score)}</td>"
        f'<td class="bar"><div style="width:{score or 0:.1f}%"></div></td></tr>'
        for name, count, score in zip(last["classes"], last["counts"], last["per_class"], strict=True)
    )
    facts = " · ".join(f"{html.escape(str(k))}: {html.escape(str(v))}" for k, v in provenance.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1><p>Top-1 accuracy on the test images, in percent.</p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<h2>Each class</h2><table><thead><tr><th>class</th><th>training images</th><th>accuracy</th><th></th></tr>"
        f"</thead><tbody>{classes}</tbody></table><footer>{facts}</footer></body></html>"
    )

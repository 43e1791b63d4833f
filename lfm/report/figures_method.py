"""Figures of what training sees: who is shown how often, who is paired with whom (Figs. 4 to 7)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.report.draw import BLUE, MUTED, ORANGE, RED, Piece, legend_above, panels, plain_log, short, style
from lfm.report.figures_scores import model_colours

NAMED = 24
"""Up to so many classes have a bar and a name of their own; more are a line."""
WRITTEN = 12
SHADE = 0.75


def _class_axis(axes: Any, names: Sequence[str]) -> None:
    axes.grid(axis="x", visible=False)
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), [short(name, 18) for name in names], rotation=45, ha="right")
    else:
        axes.set_xlabel("classes, most training images first")


def class_probability(
    classes: Sequence[str],
    count_C: NDArray[np.int64],
    seen_C: Sequence[float],
    gamma: float,
    effective: float,
    used: str,
) -> Piece:
    """p(y) and p(Y), the share of training pairs that show a class (Figs. 4 to 6).

    Args:
        classes: names.
        count_C: training images.
        seen_C: p(Y).
        gamma: imbalance of the counts.
        effective: imbalance gamma' of p(Y).
        used: what was done with it, for the caption.
    """
    order = np.argsort(-count_C, kind="stable")
    prior, seen = (count_C / count_C.sum())[order], np.asarray(seen_C)[order]
    tips: dict[str, list[str]] = {}
    with style():
        figure, axes = panels(height=3.1)
        place = np.arange(len(order))
        for shift, values, colour, label in ((-0.2, prior, MUTED, "p(y)"), (0.2, seen, BLUE, "p(Y)")):
            if len(order) > NAMED:
                axes.plot(place, values, color=colour, label=label)
                continue
            for k, bar in enumerate(axes.bar(place + shift, values, 0.4, color=colour, label=label)):
                bar.set_gid(f"{label}{k}.")
                tips[f"{label}{k}."] = [f"{classes[order[k]]}: {label} = {values[k]:.4f}"]
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        _class_axis(axes, [classes[k] for k in order])
        legend_above(axes)
    caption = (
        f"Imbalance gamma = {gamma:.1f} in the data, gamma' = {effective:.2f} in what training sees. "
        f"p(y): share of training images; p(Y): share of training pairs that show the class. {used}"
    )
    rows = [[classes[k], int(count_C[k]), p, s] for k, p, s in zip(order, prior, seen, strict=True)]
    columns = ("class", "training images", "p(y)", "p(Y)")
    return Piece("class-probability", "How often a class is seen", caption, figure, columns, rows, tips)


def own_label(
    classes: Sequence[str], count_C: NDArray[np.int64], stages: Mapping[str, Mapping[str, Any]], threshold: float
) -> Piece:
    """Own-label mass of each class in each stage.

    Args:
        classes: names.
        count_C: training images; the order is theirs.
        stages: "1", "2" -> `own_label_mass` and `alpha`.
        threshold: under which a class is about to collapse.
    """
    order = np.argsort(-count_C, kind="stable")
    columns = ["class", "training images"]
    rows: list[list[Any]] = [[classes[k], int(count_C[k])] for k in order]
    lines, tips = [], {}
    with style():
        figure, axes = panels(height=2.9)
        for number, (stage, found) in enumerate(stages.items()):
            own = np.asarray(found["own_label_mass"])[order]
            few = len(order) <= NAMED
            axes.plot(
                own, ("-", "--")[number], color=(BLUE, ORANGE)[number], marker="o" if few else "",
                markersize=5 - number, label=f"stage {stage}, alpha {found['alpha']:g}", gid=f"own{stage}.",
            )  # fmt: skip
            lines.append(f"{own.min():.2f} to {own.max():.2f} in stage {stage}")
            tips[f"own{stage}."] = [f"{classes[k]}: {v:.2f}" for k, v in zip(order, own, strict=True)] if few else []
            columns.append(f"own-label mass, stage {stage}")
            for row, value in zip(rows, own, strict=True):
                row.append(float(value))
        axes.axhline(threshold, color=RED, linestyle=":", linewidth=1.2)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("own-label mass")
        _class_axis(axes, [classes[k] for k in order])
        legend_above(axes, 2)
    caption = (
        f"How much of its own label a class keeps on its own images: {' and '.join(lines)}. "
        f"Under the dotted line ({threshold:g}) another class's label wins and the class is about to collapse."
    )
    return Piece("own-label-mass", "Own-label mass", caption, figure, columns, rows, tips)


def affinity(names: Sequence[str], partner: Any, shares: Mapping[str, NDArray[np.float64]], tau: float) -> Piece:
    """Partner distribution and the confusion of a model or two (Fig. 7); diagonals are left out.

    Args:
        names: of the classes shown.
        partner: p_ls, rows given, (K, K).
        shares: model -> percent of row's images taken for column, (K, K).
        tau: of the partner distribution.
    """
    pictures = {
        f"p_ls, tau {tau:g}": 100 * np.asarray(partner, float),
        **{f"{n}: confusion": v for n, v in shares.items()},
    }
    rows, tips = [], {}
    size = len(names)
    with style():
        figure, all_axes = panels(
            len(pictures), 1, height=0.9 + len(pictures) * (1.4 + min(2.6, 0.22 * size)), sharex=True
        )
        for number, (axes, (title, value)) in enumerate(zip(all_axes, pictures.items(), strict=True)):
            value = value * ~np.eye(size, dtype=bool)
            axes.set_title(f"{title}, %", loc="left")
            most = max(float(value.max()), 1e-9)
            for i in range(size):
                for j in range(size):
                    if i == j:
                        axes.text(j, i, "·", ha="center", va="center", color=MUTED)
                        continue
                    rows.append([title, names[i], names[j], float(value[i, j])])
                    shade = SHADE * float(value[i, j]) / most
                    if shade < 0.01:
                        continue
                    gid = f"cell{number}.{i}.{j}."
                    axes.add_patch(_cell(j, i, shade, gid))
                    tips[gid] = [f"{names[i]} → {names[j]}: {value[i, j]:.1f} %"]
                    if size <= WRITTEN and value[i, j] >= 1:
                        axes.text(j, i, f"{value[i, j]:.0f}", ha="center", va="center", fontsize=7.5)
            axes.set_xlim(-0.5, size - 0.5)
            axes.set_ylim(size - 0.5, -0.5)
            axes.grid(visible=False)
            axes.set_yticks(range(size), [short(name, 16) for name in names])
            axes.set_xticks(range(size), [short(name, 16) for name in names], rotation=60, ha="right")
    caption = (
        "Rows: the class drawn first, or the truth; columns: its partner, or the answer. "
        "Where the pictures look alike, text knows which classes the eye confuses."
    )
    return Piece(
        "affinity",
        "Partners by text and confusion",
        caption,
        figure,
        ("picture", "row", "column", "percent"),
        rows,
        tips,
    )


def _cell(x: int, y: int, shade: float, gid: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=BLUE, alpha=shade, linewidth=0, gid=gid)


def similarity(curve: Mapping[str, Sequence[Sequence[float]]], rho: Mapping[str, float | None], pairs: int) -> Piece:
    """Confusion against text similarity, in twentieths of the class pairs."""
    colour = model_colours(list(curve))
    rows, tips = [], {}
    with style():
        figure, axes = panels()
        for number, (name, points) in enumerate(curve.items()):
            axes.plot(*zip(*points, strict=True), color=colour[name], linewidth=1.2)
            axes.scatter(*zip(*points, strict=True), 18, colour[name], label=name, gid=f"similar{number}")
            tips[f"similar{number}"] = [f"{name}: cosine {x:.2f}, taken for each other {y:.2f} %" for x, y in points]
            rows += [[name, x, y] for x, y in points]
        axes.set_xlabel("text cosine of two classes")
        axes.set_ylabel("images taken for the other, %")
        legend_above(axes)
    correlations = ", ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in rho.items())
    caption = (
        f"Spearman's rank correlation between text similarity and confusion over {pairs:,} ordered pairs of classes: "
        f"{correlations}. Each point is the mean of an equal part of the pairs."
    )
    return Piece(
        "similarity",
        "Does text foretell confusion?",
        caption,
        figure,
        ("model", "mean cosine", "mean percent"),
        rows,
        tips,
    )

"""Figures of the paper: who is shown how often, who is paired with whom, where images and boundaries lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.report.draw import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, Piece, legend_above, panels, plain_log, style
from lfm.report.figures_scores import model_colours
from lfm.report.stats import Boundary, boundary

NAMED = 24
"""Up to so many classes have a bar and a name of their own; more are a line."""
WRITTEN = 12
PAIR_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
SHADE = 0.75
BEYOND = 1.5
"""A boundary further from midway than so many distances of the means is not drawn: the model cannot tell the two."""


def _class_axis(axes: Any, names: Sequence[str]) -> None:
    axes.grid(axis="x", visible=False)
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), [_short(name, 18) for name in names], rotation=45, ha="right")
    else:
        axes.set_xlabel("classes, most training images first")


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def class_probability(
    classes: Sequence[str], count_C: NDArray[np.int64], seen_C: Sequence[float], gamma: float, effective: float, used: str
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


def own_label(classes: Sequence[str], count_C: NDArray[np.int64], stages: Mapping[str, Mapping[str, Any]], threshold: float) -> Piece:
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
            axes.plot(own, color=(BLUE, ORANGE)[number], marker="o" if few else "", markersize=5 - number, linestyle=("-", "--")[number],
                      label=f"stage {stage}, alpha {found['alpha']:g}", gid=f"own{stage}.")  # fmt: skip
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
    """Partner distribution beside the confusion of a model or two (Fig. 7); diagonals are left out.

    Args:
        names: of the classes shown.
        partner: p_ls, rows given, (K, K).
        shares: model -> percent of row's images taken for column, (K, K).
        tau: of the partner distribution.
    """
    pictures = {f"p_ls, tau {tau:g}": 100 * np.asarray(partner, float), **{f"{n}: confusion": v for n, v in shares.items()}}
    rows, tips = [], {}
    size = len(names)
    with style():
        figure, all_axes = panels(len(pictures), 1, height=0.9 + len(pictures) * (1.4 + min(2.6, 0.22 * size)), sharex=True)
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
            axes.set_yticks(range(size), [_short(name, 16) for name in names])
            axes.set_xticks(range(size), [_short(name, 16) for name in names], rotation=60, ha="right")
    caption = (
        "Rows: the class drawn first, or the truth; columns: its partner, or the answer. "
        "Where the pictures look alike, text knows which classes the eye confuses."
    )
    return Piece("affinity", "Partners by text beside confusion", caption, figure, ("picture", "row", "column", "percent"), rows, tips)


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
    told = ", ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in rho.items())
    caption = (
        f"Spearman's rank correlation between text similarity and confusion over {pairs:,} ordered pairs of classes: "
        f"{told}. Each point is the mean of an equal part of the pairs."
    )
    return Piece("similarity", "Does text foretell confusion?", caption, figure, ("model", "mean cosine", "mean percent"), rows, tips)


def boundaries(
    pairs: Sequence[tuple[str, str]], of_models: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]
) -> tuple[Piece, list[list[Any]]]:
    """Where the decision boundary of a tail class and its head neighbour lies for each model (Figs. 1 and 8).

    Args:
        pairs: names of tail and head.
        of_models: model -> margins of each pair.

    Returns:
        The figure, and a row for each pair and model: tail, head, model, position, shares on the right side.
    """
    colour = model_colours(list(of_models))
    rows: list[list[Any]] = []
    tips = {}
    with style():
        figure, axes = panels(height=1.3 + 0.42 * len(pairs))
        axes.axvline(0.5, color=MUTED, linestyle=":", linewidth=1.2)
        for m, (name, margins) in enumerate(of_models.items()):
            found = [boundary(of["tail"], of["head"]) or Boundary(None, np.nan, np.nan) for of in margins]
            shown = [(k, b) for k, b in enumerate(found) if b.position is not None and abs(b.position - 0.5) <= BEYOND]
            x = [b.position for _, b in shown]
            axes.scatter(x, [k for k, _ in shown], 46, colour[name], label=name, gid=f"boundary{m}", zorder=3)
            tips[f"boundary{m}"] = [
                f"{name}: boundary at {b.position:.2f}, tail right {b.tail_right:.0%}, head right {b.head_right:.0%}"
                for _, b in shown
            ]
            rows += [[*pair, name, b.position, b.tail_right, b.head_right] for pair, b in zip(pairs, found, strict=True)]
        axes.set_yticks(range(len(pairs)), [f"{_short(t, 16)}\n| {_short(h, 16)}" for t, h in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlabel("boundary: 0 = mean of the head's images, 1 = of the tail's")
        legend_above(axes)
    caption = (
        "For test images of a tail class t (first name) and its head neighbour h, the margin f_I · (f_Tt - f_Th) decides "
        "between the two at 0. Shown is where that 0 lies between the mean margins of the two classes: one half is "
        "midway, further right the tail's side is the smaller one. A model that has the means in the wrong order, "
        "or both on one side and far off, has no point."
    )
    columns = ("tail", "head", "model", "position", "tail right", "head right")
    return Piece("boundary", "Decision boundary between tail and head", caption, figure, columns, rows, tips), rows


def margin_histograms(
    pairs: Sequence[tuple[str, str]], of_models: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]
) -> Piece:
    """The margins themselves: a row a pair, a column a model."""
    rows: list[list[Any]] = []
    with style():
        figure, all_axes = panels(len(pairs), len(of_models), height=0.9 + 1.05 * len(pairs), squeeze=False)
        for m, (name, margins) in enumerate(of_models.items()):
            for k, (pair, of) in enumerate(zip(pairs, margins, strict=True)):
                axes = all_axes[k][m]
                both = [*of["tail"], *of["head"]] or [0.0]
                bins = np.linspace(min(both), max(max(both), min(both) + 1e-6), 25).tolist()
                for side, colour in (("head", MUTED), ("tail", ORANGE)):
                    axes.hist(of[side], bins, color=colour, alpha=0.6, label=side, histtype="stepfilled")
                    rows += [[*pair, name, side, value] for value in of[side]]
                axes.axvline(0, color=INK, linewidth=1)
                axes.set_yticks([])
                axes.locator_params(axis="x", nbins=3)
                axes.grid(visible=False)
                if k == 0:
                    axes.set_title(name)
                if m == 0:
                    axes.set_ylabel(f"{_short(pair[0], 12)}\n{_short(pair[1], 12)}", fontsize=8)
        figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, labelcolor=INK)
    caption = "Margins of the test images of both classes; images right of the line are answered with the tail class."
    return Piece("margins", "Margins of tail and head images", caption, figure, ("tail", "head", "model", "side", "margin"), rows)


def tsne(names: Sequence[str], class_M: Sequence[int], places: Mapping[str, Sequence[Sequence[int]]]) -> Piece:
    """t-SNE of image features in three dimensions, a panel a model (Fig. 3). Pairs of classes share a colour.

    Args:
        names: of the classes shown, pairs one after the other.
        class_M: each point's place in `names`.
        places: model -> (M, 3).
    """
    rows: list[list[Any]] = []
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * len(places), 3.6), layout="constrained")
        for number, (model, place) in enumerate(places.items(), 1):
            axes = figure.add_subplot(1, len(places), number, projection="3d")
            axes.set_title(model)
            point = np.asarray(place, float)
            for k, name in enumerate(names):
                here = np.asarray(class_M) == k
                marker = "o" if k % 2 == 0 else "^"
                axes.scatter(*point[here].T, s=7, color=PAIR_COLOURS[k // 2 % len(PAIR_COLOURS)], marker=marker, label=_short(name, 18))
            axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
            rows += [[model, names[k], *p] for k, p in zip(class_M, place, strict=True)]
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, labelcolor=INK, fontsize=8)
    caption = (
        "t-SNE of test image features (1,000 iterations, seed 1): each point is an image. Two classes of a pair "
        "share a colour, the first is a disc, the second a triangle."
    )
    return Piece("tsne", "Image features in three dimensions", caption, figure, ("model", "class", "x", "y", "z"), rows)

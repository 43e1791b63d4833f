"""Figures of where test images and decision boundaries lie (Figs. 1, 3 and 8)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lfm.report.draw import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, Piece, legend_above, panels, short, style
from lfm.report.figures_scores import model_colours
from lfm.report.stats import Boundary, boundary

PAIR_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
BEYOND = 1.5
"""A boundary further from midway than so many distances of the means is not drawn: the model cannot tell the two."""


def boundaries(
    pairs: Sequence[tuple[str, str]], of_models: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]
) -> tuple[Piece, list[list[Any]]]:
    """Where the decision boundary of a tail class and its head neighbour is for each model (Figs. 1 and 8).

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
            rows += [
                [*pair, name, b.position, b.tail_right, b.head_right] for pair, b in zip(pairs, found, strict=True)
            ]
        axes.set_yticks(range(len(pairs)), [f"{short(t, 16)}\n| {short(h, 16)}" for t, h in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlabel("boundary: 0 = mean of the head's images, 1 = of the tail's")
        legend_above(axes)
    caption = (
        "For test images of a tail class t (first name) and its head neighbour h, the margin f_I · (f_Tt - f_Th) "
        "decides between the two at 0. Shown is where that 0 is between the mean margins of the two classes: one "
        "half is midway, further right the tail's side is the smaller one. A model that has the means in the wrong "
        "order, or both on one side and far off, has no point."
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
                    axes.set_ylabel(f"{short(pair[0], 12)}\n{short(pair[1], 12)}", fontsize=8)
        figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, labelcolor=INK)
    caption = "Margins of the test images of both classes; images right of the line are answered with the tail class."
    return Piece(
        "margins", "Margins of tail and head images", caption, figure, ("tail", "head", "model", "side", "margin"), rows
    )


def tsne(names: Sequence[str], class_M: Sequence[int], places: Mapping[str, Sequence[Sequence[int]]]) -> Piece:
    """t-SNE of image features in three dimensions, a panel a model (Fig. 3). Pairs of classes share a colour.

    Args:
        names: of the classes shown, pairs one after the other.
        class_M: each point's place in `names`.
        places: model -> (M, 3).
    """
    rows: list[list[Any]] = []
    with style():
        figure = Figure(figsize=(3.2 * len(places), 3.6), layout="constrained")
        for number, (model, place) in enumerate(places.items(), 1):
            axes = figure.add_subplot(1, len(places), number, projection="3d")
            axes.set_title(model)
            point = np.asarray(place, float)
            for k, name in enumerate(names):
                here = np.asarray(class_M) == k
                marker = "o" if k % 2 == 0 else "^"
                axes.scatter(
                    *point[here].T,
                    s=7,
                    color=PAIR_COLOURS[k // 2 % len(PAIR_COLOURS)],
                    marker=marker,
                    label=short(name, 18),
                )
            axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
            rows += [[model, names[k], *p] for k, p in zip(class_M, place, strict=True)]
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, labelcolor=INK, fontsize=8)
    caption = (
        "t-SNE of test image features (1,000 iterations, seed 1): each point is an image. Two classes of a pair "
        "share a colour, the first is a disc, the second a triangle."
    )
    return Piece("tsne", "Image features in three dimensions", caption, figure, ("model", "class", "x", "y", "z"), rows)

"""Figures of what a model gets right and wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import GROUPS
from lfm.report.draw import BLUE, GREY, GROUP_COLOUR, INK, MUTED, PURPLE, Piece, legend_above, panels, plain_log, style
from lfm.report.stats import Interval, calibration, regression
from lfm.report.tables import COLUMNS, percent

MODEL_COLOURS = (GREY, PURPLE, BLUE)
FLOW_COLOURS = {"right": BLUE, **{name: GROUP_COLOUR[name] for name in GROUPS}}


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """Grey for the model before training, blue for this run, purple between."""
    return dict(zip(models, (GREY, BLUE) if len(models) == 2 else MODEL_COLOURS, strict=False))


def scores(methods: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Interval | None]]) -> Piece:
    """Accuracy of each shot group with its interval, the methods side by side.

    Args:
        methods: name -> scores in percent.
        intervals: name -> interval of each score.
    """
    names = list(methods)
    colour = model_colours(names)
    rows: list[list[Any]] = []
    with style():
        figure, axes = panels()
        for m, name in enumerate(names):
            shift = 0.18 * (m - (len(names) - 1) / 2)
            for x, column in enumerate(COLUMNS):
                value, bounds = methods[name][column], intervals[name][column]
                rows.append([name, column, value, *(bounds or ("", ""))])
                if value is not None and bounds:
                    axes.plot([x + shift] * 2, bounds, color=colour[name], linewidth=2.4, alpha=0.5)
            present = [(x, methods[name][c]) for x, c in enumerate(COLUMNS) if methods[name][c] is not None]
            axes.scatter(
                [x + shift for x, _ in present], [v for _, v in present], 34, colour[name], label=name, gid=f"dots{m}"
            )
        axes.set_xticks(range(len(COLUMNS)), COLUMNS)
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(axis="x", visible=False)
        legend_above(axes)
    tips = {
        f"dots{m}": [f"{name}, {c}: {percent(methods[name][c])} %" for c in COLUMNS if methods[name][c] is not None]
        for m, name in enumerate(names)
    }
    scores_shown = "; ".join(
        f"{name} " + ", ".join(f"{c} {percent(methods[name][c])}" for c in COLUMNS) for name in names
    )
    caption = f"Top-1 accuracy in percent: {scores_shown}. Bars: 95 % bootstrap intervals over the test images."
    return Piece(
        "scores", "Accuracy by shot group", caption, figure, ("method", "group", "accuracy", "low", "high"), rows, tips
    )


def accuracy_by_count(
    classes: Sequence[str], count_C: NDArray[np.int64], group_C: NDArray[np.int64], accuracy_C: Sequence[float | None]
) -> Piece:
    """Each class's accuracy against its training images, and the regression on their logarithm.

    Args:
        classes: names.
        count_C: training images.
        group_C: places in `GROUPS`.
        accuracy_C: percent; None for a class without test images.
    """
    kept = [k for k, value in enumerate(accuracy_C) if value is not None]
    known = [float(accuracy_C[k] or 0) for k in kept]
    line = regression([int(count_C[k]) for k in kept], known)
    tips = {}
    with style():
        figure, axes = panels()
        for g, name in enumerate(GROUPS):
            here = [k for k in kept if group_C[k] == g]
            size = 26 if len(classes) <= 100 else 11
            axes.scatter(
                [count_C[k] for k in here], [accuracy_C[k] for k in here], size, GROUP_COLOUR[name],
                label=name, alpha=0.75, linewidths=0, gid=f"class{g}",
            )  # fmt: skip
            tips[f"class{g}"] = [f"{classes[k]}: {count_C[k]} images, {percent(accuracy_C[k])} %" for k in here]
        if line:
            x = np.array([count_C[kept].min(), count_C[kept].max()], float)
            axes.plot(x, line.intercept + line.slope * np.log10(x), color=INK, linestyle="--", linewidth=1.2)
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("training images of the class")
        axes.set_ylabel("accuracy, %")
        legend_above(axes)
    caption = "Each point is a class."
    if line:
        correlation = "" if line.correlation is None else f" (r = {line.correlation:.2f})"
        caption += f" Ten times the images go with {line.slope:+.1f} points{correlation}; "
        caption += "without a bias to the head it is flat."
    rows = [[classes[k], int(count_C[k]), GROUPS[group_C[k]], accuracy_C[k]] for k in range(len(classes))]
    columns = ("class", "training images", "group", "accuracy")
    return Piece("accuracy-by-count", "Accuracy against class size", caption, figure, columns, rows, tips)


def flow_shares(
    label_N: NDArray[np.int64], predicted_N: NDArray[np.int64], group_C: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each group's test images, the percent answered rightly, and wrongly with a class of each group. (G, 1 + G)."""
    to_N = np.where(label_N == predicted_N, 0, 1 + group_C[predicted_N])
    size = len(GROUPS) + 1
    count = np.bincount(group_C[label_N] * size + to_N, minlength=len(GROUPS) * size).reshape(-1, size)
    return np.asarray(100 * count / np.maximum(count.sum(axis=1, keepdims=True), 1))


def flow(
    models: Sequence[tuple[str, NDArray[np.int64]]], label_N: NDArray[np.int64], group_C: NDArray[np.int64]
) -> Piece:
    """Where the images of each shot group end: right, or wrong and in which group.

    Args:
        models: name and predictions.
        label_N: the truth.
        group_C: places in `GROUPS`.
    """
    there = [g for g in range(len(GROUPS)) if (group_C[label_N] == g).any()]
    shares = [(name, flow_shares(label_N, predicted_N, group_C)) for name, predicted_N in models]
    heads = ("right", *GROUPS)
    rows: list[list[Any]] = []
    labels: list[tuple[float, str]] = []
    tips: dict[str, list[str]] = {}
    with style():
        figure, axes = panels(height=0.8 + 0.3 * len(there) * len(models))
        y = 0.0
        for g in there:
            for name, share in shares:
                left = 0.0
                for to, head in enumerate(heads):
                    value = float(share[g, to])
                    gid = f"flow{len(tips)}"
                    answer = f"wrong, as {head}" if to else "right"
                    shown = {"color": FLOW_COLOURS[head], "alpha": 0.9} if to else {"color": GREY, "alpha": 0.35}
                    bars = axes.barh(y, value, 0.74, left, label=None if labels else answer, **shown)
                    bars[0].set_gid(gid)
                    tips[gid] = [f"{name}: {value:.1f} % of {GROUPS[g]} {'right' if not to else 'taken for ' + head}"]
                    left += value
                rows.append([name, GROUPS[g], *(round(float(v), 4) for v in share[g])])
                labels.append((y, f"{GROUPS[g]} · {name}"))
                y += 1
            y += 0.4
        axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the group's test images")
        axes.grid(axis="y", visible=False)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles[:4], names[:4], loc="outside upper center", ncols=2, labelcolor=INK)
    ours = shares[-1][1]
    caption = "Where the test images of each shot group end."
    if 2 in there:
        caption += f" {ours[2, 1]:.1f} % of the few-shot images are taken for a many-shot class by {shares[-1][0]}"
        caption += f", {shares[-2][1][2, 1]:.1f} % by {shares[-2][0]}." if len(shares) > 1 else "."
    columns = ("model", "group", "right", *(f"wrong as {name}" for name in GROUPS))
    return Piece("confusion-flow", "From head to tail: where errors go", caption, figure, columns, rows, tips)


def reliability(
    confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_], group_N: NDArray[np.int64]
) -> tuple[Piece, dict[str, float | None]]:
    """Confidence against accuracy for each shot group, and the expected calibration errors in percent.

    Args:
        confidence_N: probability of the answer.
        right_N: whether it is right.
        group_N: places in `GROUPS`.
    """
    error: dict[str, float | None] = {}
    rows: list[list[Any]] = []
    tips = {}
    with style():
        figure, axes = panels(height=3.2)
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
        for g, name in enumerate(COLUMNS):
            here = group_N == g if name != "all" else np.ones(len(group_N), bool)
            if not here.any():
                error[name] = None
                continue
            ece, bins = calibration(confidence_N[here].astype(float), right_N[here])
            error[name] = 100 * ece
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(x, y, color=GROUP_COLOUR[name], linewidth=2 if name == "all" else 1.3)
            size = [8 + 60 * b.images / here.sum() for b in bins]
            axes.scatter(x, y, size, GROUP_COLOUR[name], label=name, linewidths=0, gid=f"bins-{name}")
            tips[f"bins-{name}"] = [
                f"{name}: {b.images} images, sure {b.confidence:.2f}, right {b.accuracy:.2f}" for b in bins
            ]
            rows += [[name, b.low, b.high, b.images, b.confidence, b.accuracy] for b in bins]
        axes.set_xlabel("confidence")
        axes.set_ylabel("share of right answers")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        legend_above(axes)
    errors = ", ".join(f"{name} {percent(error[name])}" for name in COLUMNS)
    caption = (
        f"Expected calibration error in percent: {errors}. Under the dotted line the model is surer than it is right."
    )
    columns = ("group", "above", "up to", "images", "mean confidence", "accuracy")
    return Piece("calibration", "Calibration by shot group", caption, figure, columns, rows, tips), error

"""Figures of training: curves of both stages, speed, sweeps of alpha and tau."""

from collections.abc import Mapping
from typing import Any

from lfm.report.draw import BLUE, GROUP_COLOUR, ORANGE, Piece, legend_above, panels, plain_log, style
from lfm.report.run_values import Points, Sweep
from lfm.report.tables import COLUMNS, percent

STAGES = (1, 2)


def curves(found: Mapping[str, Points]) -> Piece | None:
    """Loss, validation accuracy and images per second of both stages; nothing where no stage was trained."""
    shown = {"loss": "loss", "val/all": "validation, %", "images_per_second": "images/s"}
    parts = {what: [s for s in STAGES if found.get(f"stage{s}/{what}")] for what in shown}
    parts = {what: stages for what, stages in parts.items() if stages}
    if not parts:
        return None
    rows: list[list[Any]] = []
    tips: dict[str, list[str]] = {}
    with style():
        figure, all_axes = panels(len(parts), 1, height=0.7 + 1.5 * len(parts), sharex=True, squeeze=False)
        for axes, (what, stages) in zip(all_axes[:, 0], parts.items(), strict=True):
            first = max((epoch for epoch, _ in found.get("stage1/loss", [])), default=0)
            for stage in stages:
                points = found[f"stage{stage}/{what}"]
                x = [epoch + (first if stage == 2 else 0) for epoch, _ in points]
                y = [value for _, value in points]
                colour = (BLUE, ORANGE)[stage - 1]
                gid = f"curve{len(tips)}."
                axes.plot(x, y, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=f"stage {stage}")
                axes.scatter(x, y, 12, color=colour, gid=gid, linewidths=0)
                tips[gid] = [f"stage {stage}, epoch {e}: {shown[what]} {v:,.4g}" for e, v in points]
                rows += [[stage, what, epoch, value] for epoch, value in points]
            axes.set_ylabel(shown[what])
            if what == "images_per_second":
                axes.set_ylim(bottom=0)
        all_axes[-1, 0].set_xlabel("epoch")
        all_axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        legend_above(all_axes[0, 0])
    ends = [f"stage {s} ended at loss {found[f'stage{s}/loss'][-1][1]:.4f}" for s in parts.get("loss", [])]
    caption = ("; ".join(ends) + ".").capitalize()
    return Piece("curves", "Training curves", caption, figure, ("stage", "what", "epoch", "value"), rows, tips)


def seconds(found: Mapping[str, Points], images: int) -> list[tuple[int, int, float, float]]:
    """Stage, epochs, seconds and mean images per second of each stage, from the speed of its epochs.

    Args:
        found: curve name -> points (epoch, value).
        images: number of training images, all of which an epoch shows.
    """
    rows = []
    for stage in STAGES:
        speed = [value for _, value in found.get(f"stage{stage}/images_per_second", []) if value > 0]
        if speed:
            took = sum(images / value for value in speed)
            rows.append((stage, len(speed), took, len(speed) * images / took))
    return rows


def sweep(of: Sweep) -> Piece:
    """Many, medium, few and all against alpha or tau (Figs. 9 and 10), from runs that differ in it alone."""
    rows: list[list[Any]] = [[value, *(scores[c] for c in COLUMNS)] for value, scores in of.points]
    tips = {}
    with style():
        figure, axes = panels()
        for column in COLUMNS:
            points = [(value, scores[column]) for value, scores in of.points if scores[column] is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=GROUP_COLOUR[column], linewidth=2 if column == "all" else 1.2)
                axes.scatter(x, y, 20, GROUP_COLOUR[column], label=column, gid=f"sweep-{column}")
                tips[f"sweep-{column}"] = [f"{of.field} {v:g}, {column}: {percent(s)} %" for v, s in points]
        if of.field == "tau":
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        axes.set_xlabel(of.field)
        axes.set_ylabel("top-1 accuracy, %")
        legend_above(axes)
    highest = max(scores["all"] or 0 for _, scores in of.points)
    best = " and ".join(f"{value:g}" for value, scores in of.points if (scores["all"] or 0) == highest)
    who = f"{of.field} {best} tie as best" if " and " in best else f"the best on all images has {of.field} {best}"
    caption = f"{len(of.points)} runs that differ in {of.field} alone; {who} ({percent(highest)} %)."
    return Piece(f"sweep-{of.field}", f"Accuracy against {of.field}", caption, figure, (of.field, *COLUMNS), rows, tips)

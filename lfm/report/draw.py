"""A figure with the numbers behind it, and how it becomes SVG, PNG and CSV.

Figures are drawn in the light colours of `COLOURS`. On a page each becomes a CSS variable, so that one SVG serves light
and dark; as a file it keeps them.
"""

import csv
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lfm.evaluation.comparison import plain_cell

COLOURS = {
    "#1c2230": "ink",
    "#565f6e": "muted",
    "#d3d8df": "line",
    "#1f6fb5": "blue",
    "#2b7d4f": "green",
    "#bd560b": "orange",
    "#7b4fb0": "purple",
    "#75808d": "grey",
    "#c2334d": "red",
}
INK, MUTED, LINE, BLUE, GREEN, ORANGE, PURPLE, GREY, RED = COLOURS
GROUP_COLOUR = {"many": BLUE, "medium": GREEN, "few": ORANGE, "all": INK}
WIDTH = 4.7
"""Inches: at this width text is as large as the page's on a phone."""
STYLE: dict[str, Any] = {
    "axes.facecolor": "none", "axes.edgecolor": MUTED, "axes.grid": True, "axes.labelcolor": INK, "axes.labelsize": 9,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlecolor": INK, "axes.titlesize": 9.5,
    "axes.axisbelow": True, "axes.formatter.use_mathtext": False, "figure.dpi": 100, "font.size": 9, "grid.color": LINE,
    "grid.linewidth": 0.6, "legend.fontsize": 8.5, "legend.frameon": False, "legend.labelcolor": INK,
    "lines.linewidth": 1.6, "savefig.facecolor": "none", "svg.fonttype": "none", "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED, "xtick.labelcolor": INK, "xtick.labelsize": 8.5, "ytick.color": MUTED,
    "ytick.labelcolor": INK, "ytick.labelsize": 8.5,
}  # fmt: skip
Table = tuple[Sequence[str], list[list[Any]]]
"""Columns and rows."""
FONT = "font-family: system-ui, sans-serif"


@dataclass(frozen=True)
class Piece:
    """A figure and the rows behind it.

    Args:
        name: of its files.
        title: above it.
        caption: what it says, with its numbers; also read aloud in its place.
        figure: drawn.
        columns: names of the numbers behind it.
        rows: the numbers.
        tips: id of an artist -> what to show when the mouse is over each of its parts.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    tips: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def svg(self) -> str:
        """The figure on nothing, drawn once for the page and the file: drawing is what takes the time."""
        buffer = io.StringIO()
        with style(), rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def short(name: str, most: int) -> str:
    """A name cut to so many letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def panels(rows: int = 1, columns: int = 1, height: float = 2.9, **more: Any) -> tuple[Figure, Any]:
    """A figure of the page's width and its axes; to be drawn inside `style()`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **more)


def plain_log(axis: Any) -> None:
    """A logarithmic axis whose ticks are plain numbers: names may hold a $, so nothing is read as mathematics."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def style() -> Any:
    """The settings under which figures are made and saved."""
    return rc_context(STYLE)


def legend_above(axes: Axes, columns: int = 4) -> None:
    """The legend in a row over the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


def save_svg(piece: Piece) -> str:
    """The figure as a file of its own, in light colours on white; equal figures give equal bytes."""
    begin = '<g id="figure_1">'
    return piece.svg.replace(begin, f'<rect width="100%" height="100%" fill="#ffffff"/>\n {begin}', 1)


def save_png(piece: Piece, path: Path) -> None:
    """Write the figure as pixels, in light colours on white."""
    with style():
        piece.figure.savefig(path, dpi=200, facecolor="white")


def inline_svg(piece: Piece) -> str:
    """The figure to stand in a page: colours and font of the page, values under the mouse, no addresses."""
    content = re.sub(r"<metadata>.*?</metadata>", "", piece.svg[piece.svg.index("<svg") :], flags=re.DOTALL)
    content = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", content).replace("xlink:href", "href")
    content = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d{2})\d+", r"\1", found[0]), content)
    content = _with_tips(content, piece.tips)
    # A page may have an id but once. Clip paths and markers are named by a hash salted with the figure's name, and
    # stay; all else is numbered from 1 in every figure.
    content = re.sub(r' id="(?!m[0-9a-f]{6}|p[0-9a-f]{6}|C\d)[^"]*"', "", content)
    content = re.sub(r"font: (?:[\d.]+ )?([\d.]+px) [^;\"]*", rf"font-size: \1; {FONT}", content)
    for colour, name in COLOURS.items():
        content = content.replace(colour, f"var(--{name})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', content)[:2]
    label = html.escape(f"{piece.title}. {piece.caption}", quote=True)
    head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">'
    content = head + content[content.index(">") + 1 :]
    return re.sub(r">\s+<", "><", content).strip()


def _with_tips(content: str, tips: Mapping[str, Sequence[str]]) -> str:
    """Give the parts of some groups a <title>, which browsers show under the mouse."""
    for name, texts in tips.items():
        begin = content.find(f'<g id="{name}"')
        if begin < 0:
            continue
        end = _group_end(content, begin)
        left = iter(texts)
        group = content[begin:end]
        start = group.rfind("</defs>") + 1
        content = content[:begin] + group[:start] + _titled(group[start:], left) + content[end:]
    return content


def _titled(group: str, texts: Iterator[str]) -> str:
    def titled(found: re.Match[str]) -> str:
        text = next(texts, None)
        return found[0] if text is None else f"<{found[1]}{found[2]}><title>{html.escape(text)}</title></{found[1]}>"

    return re.sub(r"<(use|path)\b([^>]*)/>", titled, group)


def _group_end(content: str, begin: int) -> int:
    depth = 0
    for found in re.finditer(r"<g\b|</g>", content[begin:]):
        depth += 1 if found[0] == "<g" else -1
        if not depth:
            return begin + found.end()
    return len(content)


def write_piece(piece: Piece, folder: Path) -> None:
    """figures/NAME.svg, figures/NAME.png and tables/NAME.csv."""
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "figures" / f"{piece.name}.svg").write_text(save_svg(piece))
    save_png(piece, folder / "figures" / f"{piece.name}.png")
    write_csv(folder / "tables" / f"{piece.name}.csv", piece.columns, piece.rows)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table as a file; an absent value is an empty cell, and no class name is a formula."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([plain_cell(cell) for cell in row] for row in (columns, *rows))

"""HTML: the values of a page go into Jinja2 templates, which escape whatever is not markup of our own.

`templates/base.html` is the page around everything, `templates/pieces.html` what all pages are made of. What a macro
gives is `Markup`; a plain string, which may hold the name of a class, is escaped wherever it is put.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lfm.report.draw import Piece, inline_svg

PIECES = "pieces.html"


@cache
def environment() -> Environment:
    """The templates: escaping is on, and a value that a template asks for and does not get is an error."""
    made = Environment(
        loader=PackageLoader("lfm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    made.filters["number"] = number
    return made


def macro(template: str, name: str, *values: Any, **named: Any) -> Markup:
    """What a macro of a template gives for some values."""
    return Markup(getattr(environment().get_template(template).module, name)(*values, **named))  # noqa: S704  escaped there


def number(value: float | None, digits: int = 1) -> str:
    """A number as pages show it; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        content: text, or markup of a macro.
        kind: CSS class; `text` aligns words to the left.
        sort: the value that the column is sorted by, if it is not the content.
    """

    content: str
    kind: str = ""
    sort: str | None = None


def cell(content: str, value: float | None = None, kind: str = "") -> Cell:
    """A cell; with a value it sorts by it."""
    return Cell(content, kind, None if value is None else f"{value:.6g}")


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, then its cells. One without cells is a heading between rows.

    Args:
        name: text, or markup of a macro.
        cells: one for each further column.
        kind: CSS class; `ours` marks the run that the page is about.
    """

    name: str
    cells: Sequence[Cell] = ()
    kind: str = ""


def table(
    caption: str, head: Sequence[str], rows: Sequence[Row], sortable: str = "", words: Sequence[int] = ()
) -> Markup:
    """A table that scrolls inside itself where it is too wide.

    Args:
        caption: text above it.
        head: headings.
        rows: of its body.
        sortable: id of the table, if its headings sort it.
        words: indices of the columns that hold words instead of numbers.
    """
    label = "caption-" + (sortable or "-".join(re.findall(r"[a-z]+", caption.lower())[:6]))
    return macro(PIECES, "table", caption, head, rows, sortable, words, label)


def with_note(content: str, note: str, strong: bool = False) -> Markup:
    """Something with a smaller line under it."""
    return macro(PIECES, "with_note", content, note, strong)


def published(method: str, source: str = "") -> Markup:
    """The name of a method, marked as published by others."""
    return macro(PIECES, "published", method, source)


def figure(piece: Piece) -> Markup:
    """A figure of a page."""
    return macro(PIECES, "figure", piece, Markup(inline_svg(piece)))  # noqa: S704  draw.py escapes names in drawings


def grid(items: Iterable[str]) -> Markup:
    """Figures and cards next to each other where there is room; nothing if there are none."""
    found = [item for item in items if item]
    return macro(PIECES, "grid", found) if found else Markup()


def card(title: str, content: str) -> Markup:
    """A box with a title, to stand next to figures."""
    return macro(PIECES, "card", title, content)


@dataclass(frozen=True)
class Part:
    """A part of a page, which the list of parts at the top links to.

    Args:
        name: in the list of parts.
        title: above the part.
        content: markup.
    """

    name: str
    title: str
    content: Markup

    @property
    def anchor(self) -> str:
        """The id of its section."""
        return self.name.lower().replace(" ", "-")


def part(name: str, title: str, *content: str) -> list[Part]:
    """A part of a page in a list; an empty list if it has no content."""
    return [Part(name, title, Markup().join(content))] if any(content) else []


def document(template: str, title: str, parts: Sequence[Part], values: Mapping[str, Any]) -> str:
    """A whole page: it loads nothing from a network, has a light and a dark scheme, and is readable on a phone.

    Args:
        template: extends base.html.
        title: of the page.
        parts: its parts, from top to bottom.
        values: what the template shows above and below the parts.
    """
    here = Path(__file__).parent
    style, script = (Markup((here / name).read_text()) for name in ("page.css", "page.js"))  # noqa: S704  our own files
    return environment().get_template(template).render(title=title, parts=parts, style=style, script=script, **values)

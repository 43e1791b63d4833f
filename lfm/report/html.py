"""Small pieces of HTML, and the self-contained page around them."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm.report.draw import Piece, inline_svg


def text(value: Any) -> str:
    """Escaped: what a user named stays text."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 1) -> str:
    """A number as pages show it; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"


def table(caption: str, head: Sequence[str], rows: Sequence[str], sortable: str = "", words: Sequence[int] = ()) -> str:
    """A table that scrolls inside itself where it is too wide.

    Args:
        caption: markup above it.
        head: plain headings.
        rows: markup of whole rows.
        sortable: its id, if its headings sort it.
        words: places of columns that hold words.
    """
    cells = "".join(
        f"<th scope=col{' class=text' if k in words else ''}>"
        + (f"<button type=button>{text(name) or 'name'}</button>" if sortable else text(name))
        + "</th>"
        for k, name in enumerate(head)
    )
    kind = f' class="sortable" id="{sortable}"' if sortable else ""
    name = "caption-" + (sortable or "-".join(re.findall(r"[a-z]+", caption.lower())[:6]))
    return (
        f'<p class="quiet caption" id="{name}">{caption}</p>'
        f'<div class="scroll{" tall" if sortable else ""}" tabindex=0 role=region aria-labelledby="{name}">'
        f'<table{kind} aria-labelledby="{name}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(name: str, cells: Sequence[str], kind: str = "") -> str:
    """A row: its name's markup, then whole cells."""
    return f"<tr{f' class={kind}' if kind else ''}><th scope=row>{name}</th>{''.join(cells)}</tr>"


def cell(markup: str, value: float | None = None, kind: str = "") -> str:
    """A cell; with a value it sorts by it."""
    told = "" if value is None else f' data-v="{value:.6g}"'
    return f"<td{f' class={kind}' if kind else ''}{told}>{markup}</td>"


def figure(piece: Piece) -> str:
    """A figure of a page."""
    return (
        f'<figure id="figure-{piece.name}"><h3>{text(piece.title)}</h3>{inline_svg(piece)}'
        f"<figcaption>{text(piece.caption)}</figcaption></figure>"
    )


def grid(pieces: Sequence[Piece]) -> str:
    """Figures side by side where there is room."""
    return f"<div class=grid>{''.join(map(figure, pieces))}</div>" if pieces else ""


def facts(values: Mapping[str, Any]) -> str:
    """Name and value, a line each."""
    return '<dl class="facts">' + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in values.items()) + "</dl>"


def section(name: str, title: str, *content: str) -> str:
    """A part of the page, which the list of parts can jump to."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(content)}</section>'


def document(title: str, header: str, sections: Mapping[str, str], footer: str) -> str:
    """The whole page: no address outside itself, light and dark, readable on a phone.

    Args:
        title: of the page.
        header: markup under it.
        sections: name in the list of parts -> its markup, made by `section` under the same name in lower case.
        footer: markup.
    """
    here = Path(__file__).parent
    style, script = ((here / name).read_text() for name in ("page.css", "page.js"))
    parts = "".join(f'<a href="#{_anchor(name)}">{text(name)}</a>' for name in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><header><h1>{text(title)}</h1>{header}"
        f'<nav aria-label="Parts of this page">{parts}</nav></header><main>'
        + "".join(sections.values())
        + f"</main><footer>{footer}</footer><script>{script}</script></body></html>"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def part(name: str, title: str, *content: str) -> dict[str, str]:
    """One of `document`'s sections; empty where it has no content."""
    return {name: section(_anchor(name), title, *content)} if any(content) else {}

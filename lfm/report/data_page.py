"""The data report: `lfm.jobs.report_data` -> plain text, a self-contained HTML page, a picture."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

DATA_STYLE = (
    STYLE
    + """
@media (prefers-color-scheme: dark) { :root { --bar: #6ba4d9; } }
.wide { overflow-x: auto; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.numbers div { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .7rem; }
.numbers dt { font-size: .85rem; color: #888; }
.numbers dd { margin: 0; font-size: 1.3rem; }
li { margin: .5rem 0; overflow-wrap: anywhere; }
small { color: #888; }
img { vertical-align: middle; margin-right: .3rem; border-radius: 3px; }
td.bar { width: 15%; min-width: 4rem; }
td.near { text-align: left; font-size: .85rem; min-width: 14rem; }
"""
)
SHOWN_CLASSES = 2000
SHOWN_DUPLICATES = 50


def headline(found: Mapping[str, Any]) -> dict[str, str]:
    """The first numbers of a data report (`lfm.jobs.report_data`): what -> value."""
    audit, inspected = found["audit"], found["inspect"]
    numbers = {f"{split} images": f"{of['images']:,}" for split, of in audit["splits"].items()}
    count_C = audit["counts"]["train"]
    numbers |= {"classes": f"{len(audit['classes']):,}", "gamma": f"{max(count_C) / min(count_C):.1f}"}
    if inspected:
        numbers["gamma' after local sampling"] = f"{inspected['gamma_effective']:.1f}"
    return numbers | {
        "cannot be used": f"{audit['bad']['images']:,}",
        "equal images": f"{audit['exact']['images']:,}",
        "look alike": f"{audit['near']['images']:,}",
    }


def data_summary(found: Mapping[str, Any]) -> str:
    """Headline and what to mend, in plain text."""
    lines = [f"{what}: {value}" for what, value in headline(found).items()]
    lines += [f"no class embeddings: {found['no_text']}"] if found["no_text"] else []
    lines += ["", "What to mend first" if found["mend"] else "Nothing to mend was found."]
    for number, item in enumerate(found["mend"], 1):
        lines.append(f"{number}. {item['count']:,} {item['what']}. {item['how']}")
        lines += [f"     {example}" for example in item["examples"]]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are markup already, a cell that begins with <td is taken as it is."""
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{_text(name)}</th>" for name in head)
        + f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _classes(found: Mapping[str, Any]) -> str:
    """Every class, the largest first; of very many the first and the last."""
    audit, inspected = found["audit"], found["inspect"]
    count_C, names = audit["counts"]["train"], audit["classes"]
    order = sorted(range(len(names)), key=lambda k: -count_C[k])
    note = ""
    if len(order) > SHOWN_CLASSES:
        note = f"<p>{len(order) - SHOWN_CLASSES:,} classes between the first and the last are left out.</p>"
        order = order[: SHOWN_CLASSES // 2] + order[-SHOWN_CLASSES // 2 :]
    head = ["class", "group", "train", "", "val", "test", "p(y)"]
    head += ["p(Y)", "own", "M", "nearest in text"] if inspected else []
    rows = []
    for k in order:
        bar = f'<td class="bar"><div style="width:{100 * count_C[k] / max(count_C):.1f}%"></div></td>'
        counts = [str(audit["counts"][split][k]) for split in ("val", "test")]
        row = [_text(names[k]), found["data"]["shot_group"][k], str(count_C[k]), bar, *counts]
        row.append(f"{count_C[k] / sum(count_C):.4f}")
        if inspected:
            near = ", ".join(f"{_text(n['class'])} {n['cosine']:.2f}" for n in inspected["neighbours"][k])
            row += [f"{inspected['seen'][k]:.4f}", f"{inspected['own_label_mass'][k]:.2f}"]
            row += [f"{inspected['label_mass'][k]:.4f}", f'<td class="near">{near}</td>']
        rows.append(row)
    return _rows(head, rows) + note


def _duplicates(found: Mapping[str, Any], thumbnails: Mapping[str, str]) -> str:
    """The first groups, each image with its place and, where there is one, its picture."""
    items = []
    for group in found["shown"][:SHOWN_DUPLICATES]:
        told = [f"{group['size']:,} images"]
        told += [f"across {what}" for what in ("splits", "labels") if group[f"across_{what}"]]
        images = "; ".join(
            (f'<img alt="" src="{uri}">' if (uri := thumbnails.get(f"{i['split']}/{i['row']}")) else "")
            + f"{_text(i['split'])} {_text(i['class'])}/{_text(i['name'])}"
            for i in group["images"]
        )
        items.append(f"<li><strong>{', '.join(told)}</strong><br>{images}</li>")
    rest = found["groups"] - len(items)
    return (f"<ol>{''.join(items)}</ol>" if items else "") + (f"<p>And {rest:,} more groups.</p>" if rest else "")


def _looks(audit: Mapping[str, Any], thumbnails: Mapping[str, str]) -> str:
    """Sizes, odd and bad images, duplicates."""
    sizes, exact, near = audit["sizes"], audit["exact"], audit["near"]
    size = [[side, *(f"{sizes[side][k]:g}" for k in ("min", "median", "max"))] for side in ("width", "height")]
    modes = ", ".join(f"{_text(mode)} {count:,}" for mode, count in audit["modes"].items())
    odd = [
        [kind, f"{of['images']:,}", of["meaning"], ", ".join(_text(image["name"]) for image in of["first"])]
        for kind, of in audit["odd"].items()
        if of["images"]
    ]
    bad = "".join(f"<li>{_text(why)}</li>" for why in audit["bad"]["first"])
    missed = f" {near['not_compared']:,} images were not compared further." if near["not_compared"] else ""
    return (
        f"<h2>Images</h2>{_rows(['pixels', 'min', 'median', 'max'], size)}<p>{sizes['distinct']:,} sizes. {modes}.</p>"
        + (f"<h2>Cannot be used</h2><p>{audit['bad']['images']:,} images were left out.</p><ul>{bad}</ul>" * bool(bad))
        + (f"<h2>Odd, but used</h2>{_rows(['kind', 'images', 'meaning', 'first'], odd)}" if odd else "")
        + f"<h2>Equal images</h2><p>{exact['images']:,} images in {exact['groups']:,} groups of the same bytes; "
        f"{exact['across_splits']:,} groups across splits, {exact['across_labels']:,} across labels.</p>"
        + _duplicates(exact, thumbnails)
        + f"<h2>Images that look alike</h2><p>{near['images']:,} images in {near['groups']:,} groups, chained by "
        f"{near['pairs']:,} pairs whose 64-bit difference hashes differ in at most {near['distance']} bits; "
        f"{near['across_splits']:,} groups across splits, {near['across_labels']:,} across labels. {near['flat']:,} "
        f"flat or small images are left out.{missed} Simple or plain images can look alike and yet be different.</p>"
        + _duplicates(near, thumbnails)
    )


def data_page(title: str, found: Mapping[str, Any], thumbnails: Mapping[str, str] | None = None) -> str:
    """One HTML page without external requests: headline, what to mend, each class, images, duplicates.

    Args:
        title: of the page.
        found: from `lfm.jobs.report_data`.
        thumbnails: "SPLIT/ROW" -> data: URI.
    """
    data, inspected = found["data"], found["inspect"]
    numbers = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in headline(found).items())
    mend = "".join(
        f"<li><strong>{item['count']:,} {_text(item['what'])}.</strong> {_text(item['how'])}"
        + "".join(f"<br><small>{_text(example)}</small>" for example in item["examples"])
        + "</li>"
        for item in found["mend"]
    )
    method = f"<p>No class embeddings, so nothing on local sampling: {_text(found['no_text'])}</p>"
    if inspected:
        method = (
            f"<p>At tau {data['tau']:g} and alpha {inspected['alpha']:g} of stage 1. p(Y): share of pairs that show "
            "the class; own: how much of its label a class keeps on its own images; M: its share of all label mass.</p>"
        )
    facts = " · ".join(f"{k}: {_text(data[k])}" for k in ("name", "source", "seed", "shots", "artifact"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{DATA_STYLE}</style></head><body>'
        f'<h1>{_text(title)}</h1><dl class="numbers">{numbers}</dl><h2>What to mend first</h2>'
        + (f"<ol>{mend}</ol>" if mend else "<p>Nothing to mend was found.</p>")
        + f"<h2>Each class</h2>{method}{_classes(found)}{_looks(found['audit'], thumbnails or {})}"
        + f"<footer>{facts}</footer></body></html>"
    )


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

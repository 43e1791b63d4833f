"""The data report: `lfm.jobs.report_data` -> plain text, a self-contained HTML page, a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm.errors import counted
from lfm.report.html import PIECES, Cell, Part, Row, cell, document, macro, part, table

PARTS = "data_parts.html"
SHOWN_CLASSES = 2000
SHOWN_DUPLICATES = 50


def headline(found: Mapping[str, Any]) -> dict[str, str]:
    """The first numbers of a data report (`lfm.jobs.report_data`): what -> value."""
    audit, inspected = found["audit"], found["inspect"]
    numbers = {f"{split} images": f"{of['images']:,}" for split, of in audit["splits"].items()}
    count_C = audit["counts"]["train"]
    numbers |= {"classes": f"{len(audit['classes']):,}", "gamma": f"{max(count_C) / max(min(count_C), 1):.1f}"}
    if inspected:
        numbers["gamma' after local sampling"] = f"{inspected['gamma_effective']:.1f}"
    return numbers | {
        "cannot be used": f"{audit['bad']['images']:,}",
        "equal images": f"{audit['exact']['images']:,}",
        "look alike": f"{audit['near']['images']:,}",
    }


def data_summary(found: Mapping[str, Any]) -> str:
    """Headline and what to fix, in plain text."""
    lines = [f"{what}: {value}" for what, value in headline(found).items()]
    lines += [f"no class embeddings: {found['no_text']}"] if found["no_text"] else []
    lines += ["", "What to fix first" if found["problems"] else "No problems were found."]
    for number, item in enumerate(found["problems"], 1):
        lines.append(f"{number}. {item['count']:,} {agreeing(item)['what']}. {item['how']}")
        lines += [f"     {example}" for example in item["examples"]]
    return "\n".join(lines)


ONE = (
    ("images that are training images", "image that is a training image"), ("images that come", "image that comes"),
    ("images", "image"), ("groups", "group"), ("pairs", "pair"), ("classes", "class"),
    ("class names", "class name"),
)  # fmt: skip
"""Words for a problem of one thing, in place of those for several."""


def agreeing(item: Mapping[str, Any]) -> dict[str, Any]:
    """A problem whose words fit its count."""
    what = str(item["what"])
    if item["count"] == 1:  # its subject is what comes first; of the longer words that begin there
        several, one = min(ONE, key=lambda pair: (what.find(pair[0]) % 10_000, -len(pair[0])))
        what = what.replace(several, one, 1)
    return {**item, "what": what}


def data_page(title: str, found: Mapping[str, Any], thumbnails: Mapping[str, str] | None = None) -> str:
    """One HTML page without external requests: headline, what to fix, each class, images, duplicates.

    Args:
        title: of the page.
        found: from `lfm.jobs.data_report.report_data`.
        thumbnails: "SPLIT/ROW" -> data: URI.
    """
    parts = [
        *part("Problems", "What to fix first", macro(PIECES, "problems", [*map(agreeing, found["problems"])])),
        *part("Source", "How the source was read", macro(PARTS, "lines", found["source"])),
        *part("Classes", "Each class", _classes(found)),
        *_images(found["audit"]),
        *_duplicates(found["audit"], thumbnails or {}),
    ]
    return document("data.html", title, parts, {"headline": headline(found), "data": found["data"]})


def _classes(found: Mapping[str, Any]) -> str:
    """Every class, the largest first; of very many the first and the last."""
    count_C, names = found["audit"]["counts"]["train"], found["audit"]["classes"]
    data, inspected = found["data"], found["inspect"]
    order = sorted(range(len(names)), key=lambda k: -count_C[k])
    left_out = len(order) - SHOWN_CLASSES
    if left_out > 0:
        order = order[: SHOWN_CLASSES // 2] + order[-SHOWN_CLASSES // 2 :]
    head = ["class", "group", "train", "", "val", "test", "p(y)"]
    caption = f"No class embeddings, so nothing on local sampling: {found['no_text']}"
    if inspected:
        head += ["p(Y)", "own", "M", "nearest in text"]
        caption = (
            f"At tau {data['tau']:g} and alpha {inspected['alpha']:g} of stage 1. p(Y): fraction of pairs that show "
            "the class; own: how much of its label a class keeps on its own images; M: its fraction of all label mass."
        )
    if left_out > 0:
        between = "between the first and the last"
        caption += f" {counted(left_out, f'class {between} is', f'classes {between} are')} left out."
    rows = [Row(names[k], _class_cells(found, k)) for k in order]
    return table(caption, head, rows, words=(1, 10))


def _class_cells(found: Mapping[str, Any], k: int) -> list[Cell]:
    """Of class k: shot group, images of each split, and what the method will do to it."""
    counts, inspected = found["audit"]["counts"], found["inspect"]
    count_C = counts["train"]
    numbers = [str(counts["val"][k]), str(counts["test"][k]), f"{count_C[k] / sum(count_C):.4f}"]
    near = []
    if inspected:
        numbers += [f"{inspected['seen'][k]:.4f}", f"{inspected['own_label_mass'][k]:.2f}"]
        numbers += [f"{inspected['label_mass'][k]:.4f}"]
        neighbours = ", ".join(f"{near['class']} {near['cosine']:.2f}" for near in inspected["neighbours"][k])
        near = [cell(neighbours, kind="text near")]
    bar = cell(macro(PIECES, "bar", 100 * count_C[k] / max(count_C)), kind="bars")
    return [cell(found["data"]["shot_group"][k], kind="text"), cell(str(count_C[k])), bar, *map(cell, numbers), *near]


def _images(audit: Mapping[str, Any]) -> list[Part]:
    """Sizes, images that cannot be used, and those that are used although they are odd."""
    sizes, bad = audit["sizes"], audit["bad"]
    modes = ", ".join(f"{mode} {count:,}" for mode, count in audit["modes"].items())
    rows = [Row(side, [cell(f"{sizes[side][k]:g}") for k in ("min", "median", "max")]) for side in ("width", "height")]
    caption = f"{sizes['distinct']:,} sizes. {modes}."
    parts = part("Images", "Images", table(caption, ["pixels", "min", "median", "max"], rows))
    parts += part("Depth", "Images of more than 8 bits", _depth(audit["depth"]))
    if bad["images"]:
        parts += part("Unusable", "Cannot be used", macro(PARTS, "unusable", bad["images"], bad["first"]))
    odd = [
        Row(kind, [cell(f"{of['images']:,}"), *(cell(text, kind="text") for text in (of["meaning"], _names(of)))])
        for kind, of in audit["odd"].items()
        if of["images"]
    ]
    head = ["kind", "images", "meaning", "first"]
    return parts + part("Odd", "Odd, but used", table("Kinds of odd images.", head, odd, words=(2, 3)) if odd else "")


def _depth(depth: Mapping[str, Any]) -> str:
    """The levels that become black and white, the same for all images and in serving; nothing without deep images."""
    if not depth["rule"]:
        return ""
    rows = []
    for kind, of in depth["rule"].items():
        numbers = (f"{of['images']:,}", f"{of['low']:g}", f"{of['high']:g}")
        rows.append(Row(kind, [*map(cell, numbers), cell(of["why"], kind="text")]))
    results = ", ".join(f"{of['images']:,} {result}" for result, of in depth["results"].items())
    caption = (
        "Levels that become black and white, for every image and in serving (u16: 16 bits, i32: 32 bits, f32: floats). "
        f"Results: {results}."
    )
    return table(caption, ["levels", "images", "black", "white", "why"], rows, words=(4,))


def _names(of: Mapping[str, Any]) -> str:
    return ", ".join(image["name"] for image in of["first"])


def _duplicates(audit: Mapping[str, Any], thumbnails: Mapping[str, str]) -> list[Part]:
    """Equal images and images that look alike: how many, and the first groups with their pictures."""

    def first(found: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                **group,
                "images": [{**i, "uri": thumbnails.get(f"{i['split']}/{i['row']}")} for i in group["images"]],
            }
            for group in found["shown"][:SHOWN_DUPLICATES]
        ]

    exact, near = audit["exact"], audit["near"]
    return [
        *part("Equal", "Equal images", macro(PARTS, "equal_images", exact, first(exact))),
        *part("Similar", "Images that look alike", macro(PARTS, "similar_images", near, first(near))),
    ]


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

"""The data report: what a data set holds, what the method will do to it, and what to correct before training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm.config.schema import DataConfig, RunConfig
from lfm.errors import InputError
from lfm.jobs.prepare import backbone_for, embeddings_for, table_for
from lfm.jobs.preview import ALIKE, ALIKE_FIX, inspect
from lfm.jobs.step import content
from lfm.progress import heard, say

EXAMPLES = 5


def report_data(config: RunConfig) -> tuple[dict[str, Any], str]:
    """Build the data set's Arrow files if need be and look at all of them; bad images are listed, they stop nothing.

    A class without test images stops nothing either, though it would stop a run.

    Returns:
        The JSON-like report and the same as an HTML page. The report: `data` (which data, shot groups), `source`
        (lines: how it was read, and what is left out), `inspect` (`lfm.jobs.inspect` for stage 1; None without class
        embeddings), `no_text` (why there are none, or nothing), `audit` (`lfm.data.audit`), `problems` (`problems_of`).

    Raises:
        InputError: unknown data set, or its files are missing or wrong.
    """
    import torch

    from lfm.data.audit import audit, thumbnails
    from lfm.evaluation.metrics import shot_group
    from lfm.report.data_page import data_page

    with heard() as source:
        table = table_for(_of_all_classes(config.data), config.seed)
    say("data report: duplicates, odd images, names")
    found = audit(table)
    inspected, no_text = None, ""
    same: list[dict[str, Any]] = []
    try:
        _check_classes(found)
        inspected = inspect(config, 1, table, text_for(config, table))
    except InputError as error:
        no_text = str(error)
        same = _same_names(error)
        say(f"data report: no class embeddings, so nothing on local sampling: {no_text}")
    report = {
        "data": {
            "preset": config.preset,
            "name": config.data.name,
            "source": config.data.source,
            "seed": config.seed,
            "artifact": content(table),
            "tau": config.mixup.tau,
            "threshold": config.train.own_label_threshold,
            "shots": config.shots.rule,
            "shot_group": shot_group(torch.tensor(found["counts"]["train"]), config.shots),
        },
        "source": source,
        "inspect": inspected,
        "no_text": no_text,
        "audit": found,
        "problems": same + problems_of(found, inspected, config.train.own_label_threshold),
    }
    return report, data_page(f"Data report: {config.preset}", report, thumbnails(table, found))


def _of_all_classes(data: DataConfig) -> DataConfig:
    """What a run would refuse for its classes is to be seen in the report."""
    return data.model_copy(update={"without_test": "keep"}) if data.without_test == "refuse" else data


def _check_classes(found: Mapping[str, Any]) -> None:
    """Raises InputError where a class has no training image that can be used."""
    empty = [name for name, count in zip(found["classes"], found["counts"]["train"], strict=True) if not count]
    if empty:
        raise InputError(f"class {empty[0]!r} has no training image that can be used")


def text_for(config: RunConfig, table: Path) -> Path:
    """The class embeddings in the store; only the model's own text tower needs its weights.

    Raises:
        InputError: they cannot be had: no network, say.
    """
    backbone = backbone_for(config.model, config.seed)[0] if config.text.encoder == "backbone" else Path()
    return embeddings_for(config.text, table, backbone)[0]


Problem = tuple[str, int, str, Sequence[str]]
"""What is wrong, the count of such things, how to correct it, examples."""


def _problems_of_images(found: Mapping[str, Any]) -> list[Problem]:
    exact, leaked = found["exact"], found["exact"]["in_train"]
    return [
        (
            "images that cannot be used",
            found["bad"]["images"],
            "Correct or remove them, or leave them out with data.on_bad_image=skip.",
            found["bad"]["first"],
        ),
        *(
            (
                f"classes without {title} images",
                len(names := _without(found, split)),
                f"Add images, or leave the classes out{how}.",
                names,
            )
            for split, title, how in (
                ("train", "training", ""),
                ("test", "test", " (data.without_test=leave-out), or train them without a score (=keep)"),
            )
        ),
        *(
            (
                f"{split} images that are training images too",
                leaked[split],
                "Remove them from one of the two: scores on them are too good.",
                _files(exact, "across_splits", split),
            )
            for split in ("test", "val")
        ),
        (
            "groups of equal images under several labels",
            exact["across_labels"],
            "Keep each image under its right label.",
            _files(exact, "across_labels"),
        ),
    ]


def _without(found: Mapping[str, Any], split: str) -> list[str]:
    return [name for name, count in zip(found["classes"], found["counts"][split], strict=True) if not count]


DEEP = {
    "black": "deep images that come out nearly black",
    "white": "deep images that come out nearly white",
    "black and white": "deep images that come out black and white, without grey",
    "cut off": "deep images of which a twentieth or more is cut off at black or white",
    "far off": "deep images with levels far beyond black or white, as 1e30 or -9999 are",
}


def _problems_of_depth(depth: Mapping[str, Any], no_number: Mapping[str, Any]) -> list[Problem]:
    how = "Set data.depth to the range of levels that they use, as in data.depth=[0,4095], or to percentile."
    results = depth["results"]
    return [
        *((DEEP[r], of["images"], how, [image["name"] for image in of["first"]]) for r, of in results.items()),
        (
            "deep images with levels that are no numbers (NaN, infinity)",
            no_number["images"],
            "Write a level in their place, or leave the images out: NaN becomes black.",
            [image["name"] for image in no_number["first"]],
        ),
    ]


def problems_of(
    found: Mapping[str, Any], inspected: Mapping[str, Any] | None, threshold: float
) -> list[dict[str, Any]]:
    """What to correct in the data, the worst first.

    Args:
        found: Result of `lfm.data.audit`.
        inspected: Result of `inspect`, if there are class embeddings.
        threshold: Own-label mass under which a class is about to collapse.

    Returns:
        For each: `what` is wrong, the `count` of such things, `how` to correct it, a few `examples`.
    """
    near, names = found["near"], found["names"]
    weak = _collapsing(inspected, threshold) if inspected else []
    alike: Mapping[str, Any] = inspected["alike"] if inspected else {"pairs": 0, "first": []}
    all_of: list[Problem] = [
        *_problems_of_images(found),
        *_problems_of_depth(found["depth"], found["odd"]["no-number"]),
        *(
            (f"class names: {problem['meaning']}", problem["classes"], NAME_FIXES[kind], _names(problem["first"]))
            for kind, problem in ((kind, names[kind]) for kind in NAME_FIXES)
        ),
        (
            "class names that can be cleaned",
            len(found["cleaned"]),
            "Look at the list that is written next to this page, correct it, and give it as data.class_names=FILE.",
            [f"{name!r} -> {better!r}" for name, better in found["cleaned"].items()],
        ),
        (
            f"pairs of class names that are nearly the same to the text tower (cosine above {ALIKE})",
            alike["pairs"],
            f"{ALIKE_FIX[0].upper()}{ALIKE_FIX[1:]}.",
            alike["first"],
        ),
        (
            f"classes about to collapse: own-label mass under {threshold:g}",
            len(weak),
            "Lower stage1.alpha (auto finds the largest safe one), raise mixup.tau, or add images.",
            weak,
        ),
        (
            "groups of images that look alike across splits or labels",
            near["across"],
            "Look at them: copies of a training image make test scores too good.",
            _files(near, "across_splits") or _files(near, "across_labels"),
        ),
    ]
    return [
        {"what": what, "count": count, "how": how, "examples": list(examples[:EXAMPLES])}
        for what, count, how, examples in all_of
        if count
    ]


def _same_names(error: InputError) -> list[dict[str, Any]]:
    """The problem that stopped the class embeddings, if the names are its cause."""
    from lfm.backbones.text_encoders import SAME_FIX, SameEmbeddingError

    if not isinstance(error, SameEmbeddingError):
        return []
    what = "pairs of class names that the text tower cannot tell apart"
    how = f"{SAME_FIX[0].upper()}{SAME_FIX[1:]}."
    return [{"what": what, "count": len(error.pairs), "how": how, "examples": list(error.pairs[:EXAMPLES])}]


def _collapsing(inspected: Mapping[str, Any], threshold: float) -> list[str]:
    own = zip(inspected["classes"], inspected["own_label_mass"], strict=True)
    return [f"{name} ({mass:.2f})" for name, mass in own if mass < threshold]


NAME_FIXES = {
    "unreadable": "Give words, as in data.class_names=FILE.",
    "alike": "Rename one, or merge the classes.",
    "spaces": "Remove the spaces.",
    "underscores": "Write spaces instead.",
    "long": "Shorten them: text towers read a few dozen words at most.",
}


def _names(first: Sequence[Any]) -> list[str]:
    return [" / ".join(name) if isinstance(name, list) else repr(name) for name in first]


def _files(duplicates: Mapping[str, Any], flag: str, split: str = "") -> list[str]:
    """The first groups with the flag (and an image of the split), a line each."""
    lines = []
    for group in duplicates["shown"]:
        images = group["images"]
        if group[flag] and (not split or split in [image["split"] for image in images]):
            lines.append(" = ".join(f"{i['split']} {i['class']}/{i['name']}" for i in _apart(images)))
    return lines


def _apart(images: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One image of each split and class, at most four."""
    return list({(image["split"], image["class"]): image for image in reversed(images)}.values())[::-1][:4]

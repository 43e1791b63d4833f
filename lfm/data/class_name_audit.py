"""Class names that a text tower cannot read, or can hardly tell apart."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 50
LONG_NAME = 60
NAME_RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "unreadable": (
        "a number or a WordNet id, which says nothing to a text tower",
        lambda name: re.fullmatch(r"\d+|n\d{8}", name.strip()) is not None,
    ),
    "spaces": ("spaces before or after", lambda name: name != name.strip()),
    "underscores": ("underscores, which are no spaces to a text tower", lambda name: "_" in name),
    "long": (f"more than {LONG_NAME} characters", lambda name: len(name) > LONG_NAME),
}
ALIKE = "alike but for case, punctuation or plural"


def name_problems(classes: Sequence[str]) -> dict[str, Any]:
    """Class names that a text tower cannot read, or hardly tell apart.

    Returns:
        Kind -> `meaning`, `classes` concerned and the `first` of them: names; for `alike` lists of names.
    """
    by_sense: dict[str, list[str]] = {}
    for name in classes:
        by_sense.setdefault(sense(name), []).append(name)
    alike = [names for names in by_sense.values() if len(names) > 1]
    found: dict[str, Any] = {"alike": {"meaning": ALIKE, "classes": sum(map(len, alike)), "first": alike[:SHOWN]}}
    for kind, (meaning, broken) in NAME_RULES.items():
        names = [name for name in classes if broken(name)]
        found[kind] = {"meaning": meaning, "classes": len(names), "first": names[:SHOWN]}
    return found


def sense(name: str) -> str:
    """What is left of a name without case, punctuation and the endings of plurals."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold().replace("'", ""))
    return "".join(map(_singular, words)) or name


def _singular(word: str) -> str:
    if len(word) > 4 and re.search(r"ies?$", word):
        return re.sub(r"ies?$", "y", word)  # berries, and movie as movies
    if re.search(r"(s|x|z|ch|sh)es?$", word):
        return re.sub(r"es?$", "", word)  # boxes, and horse as horses
    return word[:-1] if len(word) > 3 and re.search(r"[^siu]s$", word) else word

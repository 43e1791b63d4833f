"""Class names that a text tower cannot read, or can hardly tell apart, and what they may be without their codes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 50
LONG_NAME = 60
PLACEHOLDERS = "class|cls|category|cat|label|type|kind|group|species|object|item|folder|id"
CODE = re.compile(rf"(?:(?:{PLACEHOLDERS})[\W_]*)?\d+|[a-z]{{1,2}}[\W_]?\d+[a-z]?|n\d{{8}}", re.IGNORECASE)
"""A whole name that holds no word: 7, class 7, label_03, c12, B-4a, n02085620."""
BEFORE = re.compile(r"(?:n\d{8}|\d+)[\W_]+(?=[^\W\d_])")
"""A WordNet id or number before the name: n02085620-Chihuahua, 001.Black_footed_Albatross."""
SYNSET = re.compile(r"\.[nvars]\.\d+$")
"""WordNet's mark of a sense: dog.n.01."""
JOINED = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Between the words of AnnualCrop and USACity."""
NAME_RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "unreadable": (
        "a number, a code or a WordNet id, which says nothing to a text tower",
        lambda name: CODE.fullmatch(name.strip()) is not None,
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


def cleaned(classes: Sequence[str]) -> dict[str, str]:
    """Better names for those that hold codes, underscores or joined words; a person must look at them.

    A number before the name goes where it begins with a zero (001.Cat) or three classes of four have one: of a few
    alone it may be the name (7 up). Words are parted where a third of the names are joined: one alone is a McDonald. A
    name stays where nothing is left of it but a code, and where two classes would come to the same name.

    Returns:
        Name -> better name, for those alone that change.
    """
    numbered = 4 * sum(BEFORE.match(name.strip()) is not None for name in classes) >= 3 * len(classes)
    joined = 3 * sum(JOINED.search(name) is not None for name in classes) >= len(classes)
    better = {name: _cleaned(name, numbered, joined) for name in classes}
    of_sense = Counter(sense(better[name]) for name in classes)
    return {name: plain for name, plain in better.items() if plain != name and of_sense[sense(plain)] == 1}


def _cleaned(name: str, numbered: bool, joined: bool) -> str:
    plain = SYNSET.sub("", name.strip())
    if numbered or plain.startswith(("n", "0")):
        plain = BEFORE.sub("", plain, count=1)
    plain = plain.replace("_", " ")
    if joined and " " not in plain:
        words = JOINED.sub(" ", plain).split(" ")
        plain = " ".join(w.lower() if w.istitle() else w for w in words) if len(words) > 1 else plain
    if " " not in plain and plain.count("-") > 1:
        plain = plain.replace("-", " ")
    plain = " ".join(plain.split())
    return name if not plain or CODE.fullmatch(plain) else plain


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

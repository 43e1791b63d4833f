"""The file `data.class_names`: how people write one, and how its lines are matched with the labels of the data."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lfm.data.class_name_audit import sense
from lfm.data.sources.image_listing import first_few
from lfm.data.sources.whole_numbers import natural, whole_number
from lfm.errors import InputError
from lfm.progress import say

RULE = "give a line a class in label order, or JSON {label: name}"
HEADER = frozenset(("id", "label", "labels", "class", "index", "idx", "number", "name", "names", "class name"))
NUMBER_FIRST = re.compile(r"([0-9]{1,9})\s*[\s:,;=]\s*(\S.*)")
NUMBER_LAST = re.compile(r"(.*[^\s:,;=])\s*[\s:,;=]\s*([0-9]{1,9})")
WORDNET = re.compile(r"(n[0-9]{8})[\s:,;=]\s*(\S.*)")
CODE = re.compile(r"^(?:[0-9]+|n[0-9]{8})[\W_]+(?=\w)")
"""What stands before the name in the folders of CUB (001.Black_footed_Albatross) and Stanford Dogs."""

Names = list[str] | dict[str, str]


def parse_names(file: str, raw: bytes) -> Names:
    """The names in a file: a line a class, or label -> name.

    Read as label -> name: JSON {label: name} and {name: number}, the same under `id2label` or `label2id` (a model's
    config.json), lines "0 bird", "0: bird", "0,bird", "bird 0" where the numbers are 0 to C-1 or 1 to C, each once, and
    lines that begin with a WordNet id.

    Raises:
        InputError: not UTF-8, not JSON, or JSON of another form.
    """
    try:
        text = raw.decode("utf-8-sig")
        json_like = file.lower().endswith(".json") or text.lstrip().startswith("{")
        table: Any = json.loads(text, object_pairs_hook=_each_once) if json_like else None
    except ValueError as error:
        raise InputError(f"data.class_names: {file} cannot be read: not UTF-8 or not JSON ({error}); {RULE}") from error
    if not json_like:
        found = _of_lines([line.strip() for line in text.rstrip().splitlines()])
        if isinstance(found, dict):
            say(f"{file}: its lines are read as label and name: {first_few([f'{k} = {v}' for k, v in found.items()])}")
        return found
    if isinstance(table, dict):
        table = next((table[key] for key in ("id2label", "label2id") if isinstance(table.get(key), dict)), table)
        numbers = {name: _id(value) for name, value in table.items()}
        if not all(map(str.isdecimal, numbers)) and counts([number or "" for number in numbers.values()]):
            return {str(number): name for name, number in numbers.items()}
        if all(isinstance(name, str) for name in table.values()):
            return dict(table)
    raise InputError(
        f"data.class_names: {file} is not of the form {{label: name}}: not a JSON object of strings; {RULE}"
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands in it twice")
    return table


def _id(value: Any) -> str | None:
    """A class number of label2id as text."""
    is_number = isinstance(value, int | str) and not isinstance(value, bool)
    return str(value) if is_number and str(value).isdecimal() else None


def counts(numbers: Collection[str]) -> bool:
    """Whether these are 0 to C-1, or 1 to C, each once."""
    if not numbers or not all(map(str.isdecimal, numbers)):
        return False
    found = sorted(map(int, numbers))
    return found[0] in (0, 1) and found == list(range(found[0], found[0] + len(found)))


def _of_lines(lines: list[str]) -> Names:
    body = lines
    if lines and all(word.strip().lower() in HEADER for word in re.split("[,;:\t]", lines[0]) if word.strip()):
        body = lines[1:]  # "id,name" above a table; a class of its own where no table follows
    for pattern, number, name in ((NUMBER_FIRST, 1, 2), (NUMBER_LAST, 2, 1)):
        found = [pattern.fullmatch(line) for line in body]
        table = {match[number]: match[name].strip("\"'") for match in found if match}
        # "class 0", "class 1": what differs is the number, so it is a part of the name
        if len(table) == len(body) and counts(list(table)) and len(set(table.values())) == len(table):
            return {str(int(key)): value for key, value in table.items()}
    found = [WORDNET.fullmatch(line) for line in lines]
    ids = {match[1]: match[2] for match in found if match}
    return ids if len(ids) == len(lines) else lines


def in_label_order(lines: Sequence[str], labels: Sequence[str], file: str) -> list[str]:
    """The names of a file with a line a class, in the order of the labels.

    A file that holds the labels themselves, in any order and spelling (case, underscores, plural, a number before the
    name), is matched by name. Otherwise line k names label k, and what speaks against that is refused.

    Args:
        lines: a name a class.
        labels: of the data, in their order; as many.
        file: what an error calls the file.

    Raises:
        InputError: a line fits the label of another place better than that of its own, or the order of the labels
            is in doubt.
    """
    for spelling in (str, sense, lambda label: sense(CODE.sub("", label))):
        line_of = {spelling(line): line for line in lines}
        if len(line_of) == len(lines) and line_of.keys() == {spelling(label) for label in labels}:
            found = [line_of[spelling(label)] for label in labels]
            if found != list(lines):
                say(f"{file} names the labels in another order: matched by name")
            return found
    if all(whole_number(label) is not None for label in labels):
        return list(lines)
    fix = f"the labels are {first_few(list(labels))}; write JSON {{label: name}}"
    _refuse_shifted(lines, labels, file, fix)
    if list(labels) != sorted(labels, key=natural):
        raise InputError(
            f"data.class_names: {file} has a line a class, but which label is first depends on how they are sorted "
            f"(as text: {first_few(list(labels))}; as people count: {first_few(sorted(labels, key=natural))}); "
            f"write JSON {{label: name}}"
        )
    pairs = [f"{label} = {line}" for label, line in zip(labels, lines, strict=True)]
    say(f"{file} names the labels by place: {first_few(pairs)}")
    return list(lines)


def _refuse_shifted(lines: Sequence[str], labels: Sequence[str], file: str, fix: str) -> None:
    """Refuse names by place where a line holds the words of another label and not those of its own."""
    words = [frozenset(_words(label)) for label in labels]
    by_word: dict[str, list[int]] = {}
    for k, of_label in enumerate(words):
        for word in of_label:
            by_word.setdefault(word, []).append(k)
    for k, line in enumerate(lines):
        have = set(_words(line))
        others = sorted({j for word in have for j in by_word.get(word, ()) if words[j] <= have and j != k})
        if others and not words[k] & have:
            raise InputError(
                f"data.class_names: line {k + 1} of {file}, {line!r}, would name the label {labels[k]!r}, but fits "
                f"{labels[others[0]]!r}; {fix}"
            )


def _words(text: str) -> list[str]:
    return [sense(word) for word in re.findall(r"[^\W_]+", CODE.sub("", text))]


def by_name(table: Mapping[str, str], labels: Collection[str]) -> dict[str, str]:
    """The table keyed by the labels themselves, where its keys are their names: with spaces for underscores, say.

    `lfm data report` proposes names in this form. A table of other keys comes back as it is.
    """
    shown = {label.replace("_", " "): label for label in labels}
    if len(shown) < len(labels) or set(labels) <= table.keys() or table.keys() != shown.keys():
        return dict(table)
    return {shown[name]: better for name, better in table.items()}


def by_number(table: Mapping[str, str], classes: int, file: str) -> list[str]:
    """The names of labels 0 to C-1.

    Raises:
        InputError: a label is missing or none of them.
    """
    wrong = table.keys() ^ {str(k) for k in range(classes)}
    if wrong:
        raise InputError(
            f"data.class_names: {file} should have the labels 0 to {classes - 1}, each once, but label "
            f"{min(wrong)!r} is {'none of them' if min(wrong) in table else 'missing'}; {RULE}"
        )
    return [table[str(k)] for k in range(classes)]

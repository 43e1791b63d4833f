"""Check of KFP's cron expressions, which have six fields, seconds first; KFP reads five fields as other times."""

import re

from lfm.errors import InputError

NAMES = {
    "month": ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    "weekday": ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
}
FIELDS = {
    "second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6),
}  # fmt: skip
LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
ITEM = re.compile(r"(\*|\?|\w+(?:-\w+)?)(?:/(\d+))?")


def check_cron(text: str) -> str:
    """Check a cron expression: the same with single spaces.

    Args:
        text: Six fields: second, minute, hour, day of the month, month, day of the week.

    Raises:
        InputError: The number of fields is wrong, a field is invalid, runs start more often than every minute, or the
            day never comes.
    """
    parts = text.split()
    if len(parts) == 5:
        raise InputError(f'--cron "{text}" has five fields; KFP wants six: add the seconds in front: "0 {text}"')
    if len(parts) != len(FIELDS):
        raise InputError(f'--cron "{text}" has {len(parts)} fields, not {", ".join(FIELDS)}; as in "0 0 3 * * *"')
    values = {name: _values(name, part) for name, part in zip(FIELDS, parts, strict=True)}
    if len(values["second"]) > 1:
        raise InputError(
            f'--cron "{text}" starts more than one run a minute; give one second: "0 {text.split(" ", 1)[1]}"'
        )
    days = [(month, day) for month in values["month"] for day in values["day"] if day <= LONGEST.get(month, 31)]
    if not days and parts[5] in "*?":
        raise InputError(f'--cron "{text}" names a day that no such month has; correct day or month')
    return " ".join(parts)


def _values(name: str, text: str) -> set[int]:
    low, high = FIELDS[name]
    found: set[int] = set()
    for item in text.split(","):
        match = ITEM.fullmatch(item)
        if not match or (match[1] == "?" and name not in ("day", "weekday")) or match[2] == "0":
            raise _bad(name, text)
        step = int(match[2] or 1)
        if match[1] in "*?":
            first, last = low, high
        else:
            ends = [_number(name, word, text) for word in match[1].split("-")]
            first, last = ends[0], ends[-1] if len(ends) == 2 or not match[2] else high
        if not low <= first <= last <= high:
            raise _bad(name, text)
        found |= set(range(first, last + 1, step))
    return found


def _number(name: str, word: str, text: str) -> int:
    names = NAMES.get(name, ())
    if word.upper() in names:
        return names.index(word.upper()) + FIELDS[name][0]
    if not word.isdigit():
        raise _bad(name, text)
    return int(word)


def _bad(name: str, text: str) -> InputError:
    low, high = FIELDS[name]
    named = f" or {NAMES[name][0]} to {NAMES[name][-1]}" if name in NAMES else ""
    return InputError(f"--cron: {name} {text!r} is not {low} to {high}{named}, a list, a range, * or */N")

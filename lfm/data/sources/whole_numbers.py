"""Labels that are whole numbers, however they are written, and the order that people count in."""

import re
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
LARGEST = 10**18


def whole_number(text: str) -> int | None:
    """7 for 7, 07, +7, 7.0, 7. and 7.00e+00; None for what is no whole number."""
    if NUMBER.fullmatch(text) is None:
        return None
    value = Decimal(text)
    return int(value) if abs(value) < LARGEST and value == value.to_integral_value() else None


def fraction(text: str) -> bool:
    """Whether the text is a number, but no whole one."""
    try:
        return NUMBER.fullmatch(text) is not None and whole_number(text) is None and Decimal(text).is_finite()
    except InvalidOperation:  # pragma: no cover  the pattern leaves none
        return False


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key to sort by as people count: class 2 before class 10, and without regard to case."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text.casefold())
    return tuple((0, int(part), "") if part[0].isdecimal() and part.isascii() else (1, 0, part) for part in parts)

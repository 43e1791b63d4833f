"""Cron expressions, checked as KFP's own parser reads them: six fields, the second first."""

import pytest

from lfm.errors import InputError
from lfm.pipelines.cron import check_cron


@pytest.mark.parametrize(
    "text",
    ["0 0 3 * * *", "30 15 */6 * * MON-FRI", "0 0 0 1,15 JAN-JUN ?", "59 59 23 31 12 6", "0 0 9 ? * 1-5", "0 0 0 29 2 *",  # noqa: E501
     "0 5/20 * * * *", "0 0 0 31 2 SUN"],
)  # fmt: skip
def test_good_ones_pass(text: str) -> None:
    assert check_cron(text.replace(" ", "  ")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 3 * * *", r'has five fields; KFP wants six: add the seconds in front: "0 0 3 \* \* \*"'),
        ("@daily", r'has 1 fields, not second, minute, hour, day, month, weekday; as in "0 0 3'),
        ("", r"has 0 fields"),
        ("0 0 3 * * * 2026", r"has 7 fields"),
        ("* 0 3 * * *", r'starts more than one run a minute; give one second: "0 0 3 \* \* \*"'),
        ("0,30 0 3 * * *", "starts more than one run a minute"),
        ("60 0 3 * * *", r"second '60' is not 0 to 59, a list"),
        ("0 0 24 * * *", r"hour '24' is not 0 to 23"),
        ("0 0 3 0 * *", r"day '0' is not 1 to 31"),
        ("0 0 3 * 13 *", r"month '13' is not 1 to 12 or JAN to DEC"),
        ("0 0 3 * * 7", r"weekday '7' is not 0 to 6 or SUN to SAT"),
        ("0 0 3 * * MON-", r"weekday 'MON-' is not"),
        ("0 0 3 * * FRI-MON", r"weekday 'FRI-MON' is not"),
        ("0 */0 3 * * *", r"minute '\*/0' is not"),
        ("0 ? 3 * * *", r"minute '\?' is not"),
        ("0 0 x * * *", r"hour 'x' is not"),
        ("0 0 3 31 2,4 *", "names a day that no such month has"),
    ],
)
def test_bad_ones_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_cron(text)

"""The load test in small: that both sides answer alike and its table is right, not how fast they are."""

import re
from pathlib import Path

import pytest

from benchmarks import serving


@pytest.mark.slow
def test_the_table_is_of_two_sides_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WAYS", (("fp32", 4, 2),))
    out = tmp_path / "speed.md"
    (row,) = serving.main(["--quick", "--tower", "ViT-S-32-alt", "--out", str(out)])
    assert (row.precision, row.batch, row.clients) == ("fp32", 4, 2)
    assert row.ratio == pytest.approx(row.served / row.plain) and 0 < row.p50 <= row.p95 <= row.p99
    # Two clients that wait for their answers: what is served in a second follows from how long an answer takes.
    assert row.served == pytest.approx(2 * 4 / row.p50, rel=0.5)
    text = out.read_text()
    assert re.search(r"^\| fp32 \| 4 \| 2 \| ", text, re.MULTILINE) and "a ratio of 0.8 at 32 images" in text


def test_sides_that_do_not_agree_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(serving, "serving", lambda *_: nullcontext(1))
    monkeypatch.setattr(serving, "load", lambda *_: (1.0, [1.0], ["class 7"] * 4))
    with pytest.raises(AssertionError, match="do not agree"):
        list(serving.measure(tmp_path, lambda files: [6] * len(files), [("auto", 4, 1)], 1, 0.0))

"""--no-cache: a run makes every result again, and what others made stays as it was."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lfm.config.presets import load
from lfm.errors import InputError
from lfm.pipelines.local_run import run_local
from lfm.storage.artifact import verify
from lfm.storage.store import build_once
from tests.small_run import PRESET, SMALL


class Builder:
    """Builds the same text each time, and counts."""

    def __init__(self, text: str = "the same") -> None:
        self.text, self.times = text, 0

    def __call__(self, aside: Path) -> None:
        self.times += 1
        (aside / "text").write_text(self.text)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Any:
    def enter(run: str) -> None:
        monkeypatch.setenv("LFM_NO_CACHE", "1")
        monkeypatch.setenv("LFM_PIPELINE_RUN", run)

    return enter


def test_a_result_is_made_again_once_in_a_run_and_lies_on_the_disk_once(
    home: Path, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Builder()
    usual, _ = build_once("text", {"x": 1}, build)
    again("run-1")
    own, reused = build_once("text", {"x": 1}, build)
    assert not reused and build.times == 2 and own != usual
    again("run-1/a configuration of the sweep")
    assert build_once("text", {"x": 1}, build) == (own, True), "a step that is tried again, and the next configuration"
    again("run-2")
    assert not build_once("text", {"x": 1}, build)[1] and build.times == 3
    assert (usual / "text").stat().st_nlink == 3, "no run needs room of its own"
    monkeypatch.delenv("LFM_NO_CACHE")
    assert build_once("text", {"x": 1}, build) == (usual, True)


def test_other_bytes_replace_nothing(home: Path, again: Any, capsys: pytest.CaptureFixture[str]) -> None:
    usual, _ = build_once("text", {"x": 1}, Builder("one"))
    before = verify(usual)["content"]
    again("run-1")
    own, _ = build_once("text", {"x": 1}, Builder("two"))
    assert verify(usual)["content"] == before != verify(own)["content"]
    assert f"not {before[:12]}; both are kept" in capsys.readouterr().out


def test_a_damaged_result_is_replaced_by_what_was_made_again(home: Path, again: Any) -> None:
    usual, _ = build_once("text", {"x": 1}, Builder())
    (usual / "text").write_text("torn")
    with pytest.raises(InputError):
        verify(usual)
    again("run-1")
    build_once("text", {"x": 1}, Builder())
    assert verify(usual) and (usual / "text").read_text() == "the same"


def test_what_was_never_made_is_there_for_other_runs(home: Path, again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    again("run-1")
    build_once("text", {"x": 1}, build)
    monkeypatch.delenv("LFM_NO_CACHE")
    assert build_once("text", {"x": 1}, build)[1] and build.times == 1


@pytest.mark.slow
def test_a_run_makes_everything_again_with_the_same_scores(
    home: Path, small_fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(PRESET, {**SMALL, "data.source": str(small_fashion)})
    first = run_local(config)
    made = re.findall(r"^  (.+): done \(\w+\)", capsys.readouterr().out, re.MULTILINE)
    assert {"data", "backbone", "text embeddings", "stage 1", "stage 2"} <= set(made)
    second = run_local(config, no_cache=True)
    shown = capsys.readouterr().out
    assert re.findall(r"^  (.+): done \(\w+\)", shown, re.MULTILINE) == made
    assert "reused" not in shown and "other bytes" not in shown
    scores = [json.loads((one.metrics / "metrics.json").read_text())["test"] for one in (first, second)]
    assert scores[0] == scores[1]
    assert second.model_uri == first.model_uri, "the same weights are the same version"
    run_local(config)
    assert "done" not in capsys.readouterr().out, "other runs take what they took before"

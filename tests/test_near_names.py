"""Class names that the text tower cannot tell apart, or hardly: refused, or named wherever they matter."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lfm.backbones.text_encoders import SameEmbeddingError, embed, near_pairs
from lfm.cli.main import app
from lfm.config.presets import load
from lfm.config.schema import RunConfig, TextConfig
from lfm.errors import InputError
from lfm.jobs import data_report, prepare, preview
from lfm.report.data_page import data_summary
from tests.pictures import encoded, photo

MINILM = TextConfig(encoder="minilm")


@pytest.mark.parametrize(
    "names",
    [
        ["猫", "狗"],
        ["แมว", "หมา"],
        ["ឆ្កែ", "ឆ្មា"],
        ["ድመት", "ውሻ"],
        ["Bär", "Bar"],
        ["résumé", "resume"],
        ["😀", "😺"],
        [f"{'very ' * 600}large dog", f"{'very ' * 600}small cat"],  # the tower reads the beginning
    ],
)
def test_names_with_one_embedding_are_refused_with_both_names_and_the_fix(names: list[str]) -> None:
    with pytest.raises(SameEmbeddingError) as caught:
        embed([*names, "horse"], MINILM)
    text = str(caught.value)
    assert all(repr(name) in text for name in names)
    assert "data.class_names=FILE" in text and "multilingual tower" in text and "more pairs" not in text
    assert caught.value.pairs == [" / ".join(names)]


def test_all_such_pairs_are_counted_and_sentences_may_part_them(tmp_path: Path) -> None:
    with pytest.raises(SameEmbeddingError, match="and so have 2 more pairs"):
        embed(["猫", "狗", "马", "dog"], MINILM)
    told = tmp_path / "told.json"
    told.write_text('{"Bär": "a large furry animal", "Bar": "a place that serves drinks"}', encoding="utf-8")
    apart = embed(["Bär", "Bar"], TextConfig(encoder="minilm", descriptions=str(told)))
    assert near_pairs(apart, 0.95) == []


@pytest.mark.parametrize(
    ("names", "cosine"),
    [
        (["left hand", "right hand"], 0.97),
        (["normal chest x-ray", "abnormal chest x-ray"], 0.95),
        (["person with mask", "person without mask"], 0.94),
    ],
)
def test_opposites_are_found(names: list[str], cosine: float) -> None:
    (found,) = near_pairs(embed([names[0], "tree", names[1]], MINILM), 0.9)
    assert found[:2] == (0, 2)
    assert found[2] == pytest.approx(cosine, abs=0.006)


def test_pairs_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    every = [(i, k, float(unit[i] @ unit[k])) for i in range(50) for k in range(i + 1, 50)]
    expected = sorted((pair for pair in every if pair[2] > 0.5), key=lambda pair: -pair[2])
    for block in (50, 170, 2**24):
        monkeypatch.setattr("lfm.backbones.text_encoders.BLOCK", block)
        found = near_pairs(unit, 0.5)
        assert [pair[:2] for pair in found] == [pair[:2] for pair in expected] and len(found) > 20


# In the commands


def config_of(root: Path, names: Sequence[str]) -> RunConfig:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(encoded(photo(10 * k + i, 12, 12)))
    return load("custom-scratch", {"data.source": str(root)})


def test_the_report_says_which_names_are_the_same(tmp_path: Path, home: Path) -> None:
    config = config_of(tmp_path / "root", ["Bar", "Bär", "owl"])
    report, page = data_report.report_data(config)
    first = report["problems"][0]
    assert first["what"] == "pairs of class names that the text tower cannot tell apart"
    assert (first["count"], first["examples"]) == (1, ["Bar / Bär"])
    assert "Bar / Bär" in page and "Bar / Bär" in data_summary(report)
    table = prepare.table_for(config.data, config.seed)
    with pytest.raises(InputError, match="'Bar' and 'Bär' have one and the same embedding"):
        data_report.text_for(config, table)  # as the run's step does


def test_opposites_are_named_in_inspect_report_and_run(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "root", ["left hand", "right hand", "owl"])
    line = "left hand / right hand 0.97"
    report, page = data_report.report_data(config)
    assert [p["examples"] for p in report["problems"] if "nearly the same" in p["what"]] == [[line]]
    assert line in page and line in data_summary(report)
    table = prepare.table_for(config.data, config.seed)
    text = data_report.text_for(config, table)
    for name in ("lfm", "none"):
        capsys.readouterr()
        run = config.model_copy(update={"mixup": config.mixup.model_copy(update={"name": name})})
        preview.preview(run, 1, str(table), str(text))
        said = f"is nearly the same to the text tower, with a cosine above 0.9 ({line})"
        assert f"warning: 1 pair of class names {said}" in (capsys.readouterr().out)
    command = ["data", "inspect", "custom-scratch", f"--set=data.source={tmp_path / 'root'}"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and line in done.output


def test_plain_names_are_not_named(tmp_path: Path, home: Path) -> None:
    report, _ = data_report.report_data(config_of(tmp_path / "root", ["cat", "lorry", "owl"]))
    assert not [p for p in report["problems"] if "text tower" in p["what"]]

"""Class names with codes, joined words and underscores: a better list is proposed, as a file to pass on."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.data.artifact import read_info
from lfm.data.class_name_audit import cleaned, name_problems
from lfm.jobs import prepare
from tests.pictures import encoded, photo


@pytest.mark.parametrize(
    ("names", "better"),
    [
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["Black footed Albatross", "Laysan Albatross"]),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua", "Japanese spaniel"]),
        (["n02085620-Chihuahua", "cat"], ["Chihuahua", "cat"]),  # a WordNet id is one wherever it stands
        (["AnnualCrop", "SeaLake", "River"], ["annual crop", "sea lake", "River"]),
        (["USACity", "HTMLPage"], ["USA city", "HTML page"]),
        (["dog.n.01", "hot_dog.n.02"], ["dog", "hot dog"]),
        (["black-footed-albatross", "x-ray"], ["black footed albatross", "x-ray"]),
        (["12 ring binder", "13_saw"], ["ring binder", "saw"]),
        (["  cat ", "dog"], ["cat", "dog"]),
        # one plain name among numbered ones is one more name
        (
            ["001.Black_footed_Albatross", "002.Laysan_Albatross", "bird"],
            ["Black footed Albatross", "Laysan Albatross", "bird"],
        ),
        (["bird", "001.Laysan_Albatross", "cat", "dog"], ["bird", "Laysan Albatross", "cat", "dog"]),
        (["7 cat", "8 dog", "9 cow", "bird"], ["cat", "dog", "cow", "bird"]),
        (["001.Cat", "cat", "002.Dog"], ["001.Cat", "cat", "Dog"]),  # two would come to one name
    ],
)
def test_names_are_freed_of_what_says_nothing(names: list[str], better: list[str]) -> None:
    found = cleaned(names)
    assert [found.get(name, name) for name in names] == better


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "snow leopard", "T-shirt/top"],
        ["7 up", "cola"],  # few are numbered: the number may be the name
        ["7 up", "3 musketeers", "cola"],
        ["001.Cat", "002.Cat"],  # they would come to one name
        ["class 7", "class 8"],  # nothing would be left
        ["McDonald", "burger", "pizza", "sushi"],  # one alone is a name
        ["Boeing 747", "A380"],
        ["猫", "狗"],
    ],
)
def test_names_that_no_rule_makes_better_stay(names: list[str]) -> None:
    assert cleaned(names) == {}


@pytest.mark.parametrize(
    "code", ["7", "class 7", "label_03", "Class-12", "c12", "B-4a", "n02085620", "category 1", "k7"]
)
def test_codes_are_named_as_such(code: str) -> None:
    found = name_problems(["cat", code, "7 up", "Boeing 747", "catfish 2 go", "Type specimen"])
    assert found["unreadable"]["first"] == [code]


def folders(root: Path, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(encoded(photo(10 * k + i, 12, 12)))


def lfm(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "better"),
    [
        (["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Crow"],
         ["Black footed Albatross", "Laysan Albatross", "Crow"]),
        (["AnnualCrop", "Forest", "SeaLake"], ["annual crop", "Forest", "sea lake"]),
        (["class_1", "class_10", "n02085620-Chihuahua", "n02085782_Pug"],
         ["class 1", "class 10", "Chihuahua", "Pug"]),
    ],
)  # fmt: skip
def test_the_reports_list_is_what_the_run_takes(
    names: list[str], better: list[str], tmp_path: Path, home: Path
) -> None:
    folders(tmp_path / "root", names)
    source = f"--set=data.source={tmp_path / 'root'}"
    said = lfm("data", "report", "custom-scratch", source, "--out", tmp_path / "page.html")
    file = tmp_path / "page-names.json"
    assert f"Names: {file} (look at it, then --set data.class_names={file})" in said
    assert "class names that can be cleaned. Look at the list" in said
    report = json.loads((tmp_path / "page.json").read_text())
    shown = [name.replace("_", " ") for name in names]
    assert json.loads(file.read_text()) == dict(zip(shown, better, strict=True))
    config = load("custom-scratch", {"data.source": str(tmp_path / "root"), "data.class_names": str(file)})
    table = prepare.table_for(config.data, config.seed)
    before = prepare.table_for(load("custom-scratch", {"data.source": str(tmp_path / "root")}).data, 0)
    assert read_info(before)["classes"] == shown == report["audit"]["classes"]
    assert read_info(table)["classes"] == better
    assert read_info(table)["counts"] == read_info(before)["counts"]
    again = lfm(
        "data", "report", "custom-scratch", source, f"--set=data.class_names={file}", "--out", tmp_path / "b.html"
    )
    assert "class names that can be cleaned" not in again and not (tmp_path / "b-names.json").exists()
    inspected = lfm("data", "inspect", "custom-scratch", source)
    assert (
        "class names can be cleaned (" in inspected and "`lfm data report custom-scratch` writes the list" in inspected
    )


@pytest.mark.slow
def test_a_list_of_an_earlier_report_goes_where_nothing_is_to_clean(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "page-names.json"

    def report(root: str, *more: str) -> str:
        source = f"--set=data.source={tmp_path / root}"
        return lfm("data", "report", "custom-scratch", source, *more, "--out", tmp_path / "page.html")

    folders(tmp_path / "coded", ["001.Crow", "002.Owl"])
    folders(tmp_path / "plain", ["crow", "owl", "wren"])
    report("coded")
    assert json.loads(file.read_text()) == {"001.Crow": "Crow", "002.Owl": "Owl"}
    report("coded", f"--set=data.class_names={file}")
    assert file.exists(), "it is in use"
    said = report("plain")
    assert f"the list of an earlier report is removed ({file})" in said and not file.exists()
    assert "earlier report" not in report("plain")


@pytest.mark.slow
def test_a_person_may_change_the_list_and_nothing_is_proposed_for_plain_names(tmp_path: Path, home: Path) -> None:
    folders(tmp_path / "root", ["class_1", "class_2", "n02085620-Chihuahua"])
    source = f"--set=data.source={tmp_path / 'root'}"
    lfm("data", "report", "custom-scratch", source, "--out", tmp_path / "page.html")
    file = tmp_path / "page-names.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {"class 1": "wolf", "class 2": "fox"}))
    config = load("custom-scratch", {"data.source": str(tmp_path / "root"), "data.class_names": str(file)})
    assert read_info(prepare.table_for(config.data, config.seed))["classes"] == ["wolf", "fox", "Chihuahua"]
    folders(tmp_path / "plain", ["cat", "dog"])
    said = lfm(
        "data", "report", "custom-scratch", f"--set=data.source={tmp_path / 'plain'}", "--out", tmp_path / "c.html"
    )
    assert "cleaned" not in said and not (tmp_path / "c-names.json").exists()

"""Champion and challenger on a real MLflow registry."""

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import InputError
from lfm.tracking import registry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]


@pytest.fixture
def three(home: Path) -> MlflowClient:
    """A model with three versions."""
    from lfm.tracking.client import connect

    client = connect()
    client.create_registered_model("shoes")
    for k in range(3):
        client.create_model_version("shoes", f"file:///nowhere/{k}")
    return client


def aliases(client: MlflowClient) -> dict[str, str]:
    return {name: str(number) for name, number in client.get_registered_model("shoes").aliases.items()}


def test_promotion_moves_the_alias_and_leaves_its_reason(three: MlflowClient) -> None:
    assert registry.promote("shoes", "1", "the first") is None
    registry.challenge("shoes", "2", "not better")
    assert aliases(three) == {"champion": "1", "challenger": "2"}
    before = registry.promote("shoes", "2", "better after all")
    assert before and before.number == "1"
    assert aliases(three) == {"champion": "2"}, "no longer challenger"
    found = {version.number: version for version in registry.versions("shoes")}
    assert found["1"].tags["lfm.decision"] == "the first" and found["1"].tags["lfm.champion_before"] == ""
    assert found["2"].tags["lfm.decision"] == "better after all" and found["2"].tags["lfm.champion_before"] == "1"
    assert found["2"].tags["lfm.decided"].endswith("UTC") and found["2"].aliases == ("champion",)
    registry.promote("shoes", "2", "again")
    assert registry.version_of("shoes", "2").tags["lfm.champion_before"] == "1", "promoting the champion is nothing"


def test_promoting_the_champion_says_that_it_is_champion_already(three: MlflowClient) -> None:
    assert CliRunner().invoke(app, ["promote", "shoes", "2"]).output == "shoes 2 is champion\n"
    again = CliRunner().invoke(app, ["promote", "shoes", "2", "--why", "once more"])
    assert again.exit_code == 0 and again.output == "shoes 2 is champion already; nothing was changed\n"
    assert registry.version_of("shoes", "2").tags["lfm.decision"] == "by hand"
    assert CliRunner().invoke(app, ["promote", "shoes", "1"]).output == "shoes 1 is champion, after 2\n"


def test_rollback_goes_back_step_by_step(three: MlflowClient) -> None:
    for number in ("1", "2", "3"):
        registry.promote("shoes", number, "better")
    was, now = registry.rollback("shoes")
    assert (was.number, now.number) == ("3", "2") and aliases(three) == {"champion": "2"}
    assert registry.version_of("shoes", "3").tags["lfm.decision"] == "rolled back to version 2"
    assert registry.rollback("shoes")[1].number == "1"
    with pytest.raises(InputError, match="version 1 of shoes is its first champion; promote another"):
        registry.rollback("shoes")


def test_what_is_not_there_is_said(three: MlflowClient) -> None:
    with pytest.raises(InputError, match="shoes has no champion to roll back"):
        registry.rollback("shoes")
    with pytest.raises(InputError, match="shoes has no version 7; it has 3, 2, 1"):
        registry.promote("shoes", "7", "x")
    with pytest.raises(InputError, match="unknown registered model 'shoe'; did you mean shoes"):
        registry.promote("shoe", "1", "x")
    assert registry.with_alias("hats", "champion") is None


def test_the_list_of_models_has_scores_date_and_data(home: Path) -> None:
    from lfm.tracking.client import connect

    client = connect()
    run = client.create_run("0", tags={"lfm.data": "photos, imbalance 4", "lfm.test_images": "0123456789"}).info.run_id
    for name, value in (("many", 90.0), ("medium", 60.5), ("all", 80.0)):
        client.log_metric(run, f"test/{name}", value)
    client.create_registered_model("birds")
    client.create_model_version(
        "birds", "file:///nowhere", run, {"lfm.method": "lfm", "lfm.dataset": "fedcba9876543210"}
    )
    first, scores, data = CliRunner().invoke(app, ["models", "birds"]).output.splitlines()
    assert re.fullmatch(r"models:/birds/1 +lfm +20\d\d-\d\d-\d\d \d\d:\d\d UTC", first)
    assert scores.split("  ")[1:] == [
        "many 90.0", "medium 60.5", "few -", "all 80.0", "on photos, imbalance 4, test 01234567", f"(run {run[:12]})"
    ]  # fmt: skip
    assert data == "  trained on data fedcba987654"


def test_the_commands(three: MlflowClient) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert run("promote", "shoes", "1") == "shoes 1 is champion\n"
    assert run("promote", "shoes", "3", "--why", "nicer") == "shoes 3 is champion, after 1\n"
    shown = run("models").splitlines()
    assert shown[0].split()[:2] == ["models:/shoes/3", "champion"] and shown[1].endswith("UTC: nicer")
    assert re.fullmatch(r"models:/shoes/3 +champion +\d{4}-\d\d-\d\d \d\d:\d\d UTC", shown[0])
    assert run("rollback", "shoes") == "shoes 1 is champion again, instead of 3\n"
    hats = CliRunner().invoke(app, ["models", "hats"])
    assert isinstance(hats.exception, InputError) and hats.exception.exit_code == 2
    assert str(hats.exception) == "unknown registered model 'hats'; known: shoes"

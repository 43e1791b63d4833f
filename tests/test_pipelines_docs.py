"""Every command of docs/pipelines.md, run: against a recording KFP, or as far as it goes without training."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.pipelines.cluster_settings import read_settings
from tests.kfp_server import serve_kfp

TEXT = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.strip().splitlines()]
TRAINING = ("lfm sweep", "lfm retrain")


def settings_file(folder: Path) -> Path:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = folder / "cluster.yaml"
    path.write_text(block)
    return path


def test_the_settings_of_the_document_are_settings(tmp_path: Path) -> None:
    settings = read_settings(settings_file(tmp_path))
    assert settings.home and settings.steps["train-stage1"].hours == 48
    assert yaml.safe_load(settings_file(tmp_path).read_text()).keys() <= settings.model_fields_set


@pytest.mark.slow
def test_the_commands_for_a_cluster_work_in_their_order(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings_file(tmp_path)
    with serve_kfp() as kfp:
        for command in COMMANDS:
            here = command.startswith((*TRAINING, "lfm models", "lfm promote", "lfm rollback"))
            if (here and "--host" not in command) or "--all" in command:
                continue
            if command.startswith("lfm sweep"):
                kfp.states = ["RUNNING", "SUCCEEDED", "SUCCEEDED"]
            if "--wait" in command:
                kfp.states = ["RUNNING", "SUCCEEDED"]
            done = CliRunner().invoke(app, shlex.split(command.replace("http://localhost:8080", kfp.host))[1:])
            assert done.exit_code == 0 and done.output, (command, done.output, done.exception)
        assert kfp.recurring == [] and len(kfp.runs) == 6
    assert (tmp_path / "mms.yaml").is_file() and (tmp_path / "sweep.yaml").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(TRAINING) and "--host" not in c])
def test_the_commands_that_train_are_understood(command: str, home: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--set", f"data.source={tmp_path / 'none'}"])
    assert "data.source: " in str(done.exception) and "does not exist" in str(done.exception)

"""Commands to a recording KFP."""

from typing import Any

from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.config.run_parameters import parameter_values

NIGHTLY = "0 0 3 * * *"
PRESET = "fashion-mnist-lt"


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def form_of(preset: str, **changed: Any) -> dict[str, Any]:
    return {**parameter_values(load(preset)), "overrides": {}, **changed}

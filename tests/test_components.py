"""The components: thin, documented, and listed."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from lfm.components import begin, control, steps
from lfm.components.__main__ import TARGET, listing
from lfm.components.resources import STEPS
from lfm.config.presets import load
from lfm.config.run_parameters import RUN_PARAMETERS, pipeline_arguments
from lfm.config.schema import RunConfig

COMPONENTS: dict[str, Any] = {
    c.name: c for module in (begin, steps, control) for c in vars(module).values() if hasattr(c, "component_spec")
}


def test_the_listing_in_the_docs_is_up_to_date() -> None:
    assert TARGET.read_text() == listing(), "run: make components"


@pytest.mark.parametrize("name", STEPS)
def test_each_component_is_documented_and_thin(name: str) -> None:
    component = COMPONENTS[name]
    spec = component.component_spec
    assert spec.description and spec.description.splitlines()[0].endswith((".", ","))
    for channels in (spec.inputs or {}, spec.outputs or {}):
        for key, channel in channels.items():
            assert key == "status" or channel.description, key  # the exit handler's is KFP's own
    (function,) = ast.parse(inspect.getsource(component.python_func)).body
    assert isinstance(function, ast.FunctionDef)
    kinds = {type(node) for node in ast.walk(function)}
    assert not kinds & {ast.If, ast.While, ast.Try, ast.Compare, ast.Lambda}, "no logic in a component"
    imports = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    assert imports and all(str(node.module).startswith("lfm.jobs.") for node in imports), "a component calls a job"


@pytest.mark.parametrize("name", begin.FIRST)
def test_a_first_step_has_the_run_parameters_and_ships_its_source(name: str) -> None:
    first = getattr(begin, name)
    inputs = first.component_spec.inputs
    assert list(inputs) == ["preset", *RUN_PARAMETERS, "overrides", *begin.FIRST[name].described]
    types = {str: "String", int: "Integer", float: "Float"}
    for key, parameter in RUN_PARAMETERS.items():
        assert inputs[key].type == types[parameter.type]
        assert " ".join(inputs[key].description.split()) == parameter.description
    command = first.component_spec.implementation.container.command
    assert begin.source(name) in command[-1], "the step gets the function's text"


@pytest.mark.slow
def test_the_first_step_gives_each_value_to_its_field(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function as shipped, with a value of its own for each parameter."""
    wanted = load("places-lt", {
        "data.source": str(home), "data.profile": "exponential", "data.imbalance": 7.0, "model.tower": "conv4",
        "model.weights": "random", "mixup.name": "remix", "mixup.tau": 0.3, "loss.name": "mms", "stage1.epochs": 2,
        "stage1.lr": 0.5, "stage1.alpha": 0.25, "stage2.epochs": 4, "stage2.lr": 0.125, "stage2.alpha": 0.75,
        "stage1.batch_size": 9, "stage2.batch_size": 11, "train.processes": 1, "seed": 12, "stage1.clip": 3.0,
        "text.encoder": "minilm",
    })  # fmt: skip
    home.mkdir()
    monkeypatch.setenv("LFM_PIPELINE_RUN", "a-run")
    variants = [{"name": "only", "label": "only", "overrides": {}}]
    (planned,) = begin.plan_sweep.python_func("places-lt", **pipeline_arguments(wanted), variants=variants, part="")
    assert RunConfig.model_validate(planned["config"]) == wanted

"""The components: thin, documented, and listed."""

import ast
import inspect
from typing import Any

import pytest

from lfm.components import control, steps
from lfm.components.__main__ import TARGET, listing
from lfm.components.resources import NEEDS
from lfm.config.run_parameters import FORM

COMPONENTS: dict[str, Any] = {
    c.name: c for module in (steps, control) for c in vars(module).values() if hasattr(c, "component_spec")
}


def test_the_listing_in_the_docs_is_up_to_date() -> None:
    assert TARGET.read_text() == listing(), "run: make components"


@pytest.mark.parametrize("name", NEEDS)
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


def test_the_form_of_configure_is_the_run_form() -> None:
    inputs = COMPONENTS["configure"].component_spec.inputs
    assert list(inputs) == ["preset", *FORM, "overrides"]
    types = {str: "String", int: "Integer", float: "Float"}
    for name, entry in FORM.items():
        assert inputs[name].type == types[entry.kind]
        assert " ".join(inputs[name].description.split()) == entry.about

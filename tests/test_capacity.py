"""What steps request on a cluster, and what `lfm submit` says of it: configurations against the rule, a node list as
Kubernetes gives it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.memory import size_of
from lfm.backbones import towers
from lfm.components.resources import STEPS, Request, request
from lfm.components.resources import size_of as known_size
from lfm.config.overrides import apply_overrides
from lfm.config.presets import PRESETS, load
from lfm.config.schema import ModelConfig
from lfm.pipelines.capacity import Ask, asks, quantity, report
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, write


def memory(step: str, gpus: bool = False, preset: str = "custom", **changes: Any) -> float:
    config = apply_overrides(load(preset), {name.replace("__", "."): value for name, value in changes.items()})
    return quantity(request(step, [config], gpus).memory) / 2**30


def test_the_small_presets_fit_a_node_of_two_cores_and_eight_gibibytes() -> None:
    for preset in ("fashion-mnist-lt", "custom-small", "custom-scratch"):
        for step in STEPS:
            cpu, most = request(step, [load(preset)], gpus=False)
            assert quantity(most) <= 4 * 2**30, (preset, step)
            assert quantity(cpu) <= 1


def test_a_request_grows_with_the_tower_the_batch_and_the_processes() -> None:
    train = "train-stage1"
    assert memory(train, model__tower="ViT-B-32") < memory(train, model__tower="ViT-L-14") < memory(
        train, model__tower="ViT-bigG-14", model__weights="random"
    )  # fmt: skip
    small, large = (memory(train, stage1__batch_size=size) for size in (16, 512))
    assert small < large, "activations are in the pod's memory"
    assert memory(train, stage1__batch_size=512, stage1__micro_batch=16) < large
    assert memory(train, True, stage1__batch_size=512) == memory(train, True, stage1__batch_size=16), "on the GPU"
    assert memory(train, True, train__processes=8) > memory(train, True)
    assert memory("prepare", model__tower="ViT-L-14") > memory("prepare"), "the whole model is read and written"
    assert request(train, [load("custom", {"train.nodes": 4})], gpus=True) == Request("500m", "2Gi"), "only watches"
    both = [load("custom"), load("custom", {"model.tower": "ViT-L-14"})]
    assert request(train, both, True) == request(train, both[1:], True), "a sweep asks for its largest configuration"


def test_an_own_tower_is_taken_for_a_large_one(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_bytes(towers.built_in()["ViT-B-32"].read_bytes())
    assert memory("train-stage1", model__tower=str(own), model__weights="random") > memory("train-stage1")


@pytest.mark.parametrize("tower", ["ViT-B-32", "RN50", "convnext_base", "roberta-ViT-B-32"])
@pytest.mark.slow
def test_the_table_has_the_sizes_of_this_open_clip(tower: str) -> None:
    assert known_size(ModelConfig(tower=tower, weights="random")) == size_of(tower)


def node(name: str, cpu: str, memory_: str, gpus: int = 0, **spec: Any) -> dict[str, Any]:
    has = {"cpu": cpu, "memory": memory_, "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    labels = {"gpu": "h200"} if gpus else {}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": has}}


Nodes = list[dict[str, Any]]


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster that kubectl knows; the nodes put into the list are its nodes."""
    held: Nodes = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith("/api/v1/nodes") and held
            body = json.dumps({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": held}).encode()
            self.send_response(200 if known else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known = {
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(known))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield held
    server.shutdown()
    server.server_close()


def compiled(folder: Path, settings: ClusterSettings, **changes: Any) -> Path:
    path = folder / "pipeline.yaml"
    config = load("imagenet-lt", {name.replace("__", "."): value for name, value in changes.items()})
    write(KINDS["train"](config, settings), path)
    return path


@pytest.mark.slow
def test_a_step_that_no_node_can_hold_is_said(nodes: Nodes, tmp_path: Path) -> None:
    settings = ClusterSettings(accelerator="nvidia.com/gpu", node_selector={"gpu": "h200"}, tolerations=({"key": "t"},))
    path = compiled(tmp_path, settings, train__processes=2)
    asked = {ask.name: ask for ask in asks(path, 2)}
    assert asked["train-stage1"].accelerators == 2 and asked["prepare"].accelerators == 0
    assert asked["train-stage1"].cpu == 8 and str(asked["finish"]) == "0.5 CPUs, 2 GiB"
    largest, *others = report(path, 2, settings)
    assert largest == f"largest step: train-stage1 asks for {asked['train-stage1']}" and not others, "may not look"
    taint = {"key": "t", "effect": "NoSchedule"}
    nodes += [node("cpu", "16", "64Gi"), node("gpu", "16", "65536000Ki", 2, taints=[taint])]
    assert len(list(report(path, 2, settings))) == 1, "all fit"
    nodes[1] = node("gpu", "16", "64Gi", 1, taints=[taint])
    _, *warnings = report(path, 2, settings)
    assert [line.split()[2] for line in warnings] == ["train-stage1", "train-stage2", "evaluate"]
    assert (
        "no node of lab that it may run on has 8 CPUs" in warnings[0]
        and "(the largest has 16 CPUs, 64 GiB, 1 GPU)" in warnings[0]
    )
    nodes[1] = node("gpu", "16", "64Gi", 2, taints=[{"key": "other", "effect": "NoSchedule"}])
    assert "(none)" in list(report(path, 2, settings))[1], "a taint that the step does not tolerate"
    nodes[:] = [node("cpu", "2", "8Gi"), node("gone", "64", "512Gi", 8, unschedulable=True)]
    assert "warning: step prepare would stay Pending" in "\n".join(report(path, 2, settings))


@pytest.mark.parametrize("text", [None, "", "a: [", "apiVersion: v1\nkind: Config\ncurrent-context: gone\n"])
@pytest.mark.slow
def test_without_a_cluster_to_ask_the_largest_step_is_said_alone(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "kubeconfig").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    (line,) = report(compiled(tmp_path, ClusterSettings()), 1, ClusterSettings())
    assert line.startswith("largest step: train-stage1 asks for ")


def test_quantities_are_read_as_kubernetes_writes_them() -> None:
    assert [quantity(text) for text in ("500m", "2", "2Ki", "1G", 0)] == [0.5, 2, 2048, 1e9, 0]
    assert Ask("a", 1, 1).within(Ask("b", 1, 1)) and not Ask("a", 1, 1, 1).within(Ask("b", 8, 8))


def test_every_preset_and_step_has_a_request() -> None:
    for preset in PRESETS:
        for step in STEPS:
            cpu, most = request(step, [load(preset)], gpus=False)
            assert 0.5 <= quantity(cpu) <= 8 and 2 <= quantity(most) / 2**30 <= 64, (preset, step)

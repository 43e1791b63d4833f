"""What a cluster is asked for by the compiled pipelines: pods, time, GPUs, security."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from lfm.config.presets import load
from lfm.config.run_parameters import pipeline_arguments
from lfm.config.sweeps import Part, variants_of
from lfm.errors import InputError
from lfm.jobs.pipeline_run import configure, configure_variant
from lfm.jobs.sweep import plan_sweep
from lfm.pipelines.backend_rules import fits
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, write
from lfm.pipelines.compiled import Spec
from lfm.pipelines.sweep import MOST, parts, sweep_pipeline
from lfm.pipelines.training import training_pipeline

pytestmark = pytest.mark.slow

GPUS = ClusterSettings(image="lfm:test", accelerator="nvidia.com/gpu", shared_memory="1Gi")


def compiled(folder: Path, kind: str, settings: ClusterSettings = GPUS, **changes: Any) -> tuple[Any, Any]:
    """The pipeline specification, and the settings of Kubernetes by executor."""
    config = load("fashion-mnist-lt", {name.replace("__", "."): value for name, value in changes.items()})
    write(KINDS[kind](config, settings), folder / "pipeline.yaml")
    spec, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def pods(spec: Any, taken: bool, component: str = "") -> int:
    """Pods of a run as Argo starts them: a driver for each group, a driver and the step itself for each step.

    Args:
        spec: Pipeline specification.
        taken: Whether conditions hold; else their driver is all that runs.
        component: Group to count; empty: the whole.
    """
    group = spec["components"][component] if component else spec["root"]
    count = 1
    for task in group["dag"]["tasks"].values():
        name = task["componentRef"]["name"]
        if "dag" not in spec["components"][name]:
            count += 2
        elif "condition" in task.get("triggerPolicy", {}) and not taken:
            count += 1
        else:
            count += pods(spec, taken, name)
    return count


def test_a_run_takes_few_pods(tmp_path: Path) -> None:
    assert pods(compiled(tmp_path, "train")[0], taken=True) == 14
    retraining = compiled(tmp_path, "retrain")[0]
    assert pods(retraining, taken=False) == 7, "a night without new data"
    assert pods(retraining, taken=True) == 17


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_for_all_attempts_holds_each_of_them(kind: str, tmp_path: Path) -> None:
    spec, executors = compiled(tmp_path, kind, ClusterSettings(image="lfm:test", backoff_seconds=60))
    tasks = {
        name: task
        for group in (spec["root"], *spec["components"].values())
        for name, task in group.get("dag", {}).get("tasks", {}).items()
        if "retryPolicy" in task
    }
    assert {"train-stage1", "train-stage2", "evaluate"} <= set(tasks)
    for name, task in tasks.items():
        retry, limit = task["retryPolicy"], float(executors[f"exec-{name}"]["activeDeadlineSeconds"])
        retries = int(retry["maxRetryCount"])
        waits = sum(60 * 2**k for k in range(retries))
        assert float(retry["backoffMaxDuration"].rstrip("s")) == (retries + 1) * limit + waits, name


@pytest.mark.parametrize(("preset", "cpu", "memory"), [("custom-scratch", "1", "8Gi"), ("places-lt", "4", "10Gi")])
def test_a_small_model_asks_for_what_a_small_node_has(preset: str, cpu: str, memory: str, tmp_path: Path) -> None:
    write(training_pipeline(load(preset), GPUS), tmp_path / "pipeline.yaml")
    spec, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    asked = {name: one["container"]["resources"] for name, one in spec["deploymentSpec"]["executors"].items()}
    assert asked["exec-train-stage1"]["resourceCpuRequest"] == cpu
    assert asked["exec-train-stage1"]["resourceMemoryLimit"] == memory
    assert asked["exec-finish"]["resourceMemoryLimit"] == "2Gi"


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_says_that_it_is_not_root(kind: str, tmp_path: Path) -> None:
    _, executors = compiled(tmp_path, kind)
    assert all(pod["securityContext"] == {"runAsNonRoot": True} for pod in executors.values())


def test_gpus_are_text_from_the_run_form_to_the_pod(tmp_path: Path) -> None:
    spec, _ = compiled(tmp_path, "train", train__processes=8)
    assert spec["root"]["inputDefinitions"]["parameters"]["gpus"]["parameterType"] == "STRING"
    assert spec["root"]["inputDefinitions"]["parameters"]["gpus"]["defaultValue"] == "8"
    for name in ("train-stage1", "train-stage2", "evaluate"):
        container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        count = container["resources"]["accelerator"]["resourceCount"]
        assert count == "{{$.inputs.parameters['pipelinechannel--gpus']}}"
        inside = spec["components"]["comp-exit-handler-1"]
        assert inside["inputDefinitions"]["parameters"]["pipelinechannel--gpus"]["parameterType"] == "STRING"
        assert {"name": "LFM_ACCELERATOR", "value": "nvidia.com/gpu"} in container["env"], "so that it is checked"
    configured = spec["components"]["comp-prepare"]["inputDefinitions"]["parameters"]["gpus"]
    assert configured["parameterType"] == "STRING"


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_gpus_reaches_the_steps_inside_conditions_and_loops(kind: str, tmp_path: Path) -> None:
    spec, _ = compiled(tmp_path, kind)
    for group in spec["components"].values():
        for task in group.get("dag", {}).get("tasks", {}).values():
            for source in task.get("inputs", {}).get("parameters", {}).values():
                if "componentInputParameter" in source:
                    assert source["componentInputParameter"] in group["inputDefinitions"]["parameters"]


def test_a_step_that_only_starts_machines_asks_for_little_and_for_no_gpu(tmp_path: Path) -> None:
    spec, executors = compiled(tmp_path, "train", train__nodes=2)
    for name in ("train-stage1", "train-stage2"):
        container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        assert "accelerator" not in container["resources"]
        assert container["resources"]["resourceMemoryLimit"] == "2Gi"
        assert {"name": "LFM_IMAGE", "value": "lfm:test"} in container["env"]
        limit = executors[f"exec-{name}"]["activeDeadlineSeconds"]
        assert limit and {"name": "LFM_STEP_SECONDS", "value": str(limit)} in container["env"]
        assert "emptyDirMounts" not in executors[f"exec-{name}"]
    evaluate = spec["deploymentSpec"]["executors"]["exec-evaluate"]["container"]
    assert evaluate["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"


def test_the_configurations_of_a_sweep_are_dictionaries_for_the_backend(tmp_path: Path) -> None:
    spec, _ = compiled(tmp_path, "sweep")
    (loop,) = (one for name, one in spec["components"].items() if name.startswith("comp-for-loop"))
    kinds = {name: one["parameterType"] for name, one in loop["inputDefinitions"]["parameters"].items()}
    assert {name: kind for name, kind in kinds.items() if "item" in name} == {
        "pipelinechannel--plan-sweep-Output-loop-item": "STRUCT"
    }
    taken = spec["components"]["comp-prepare-variant"]["inputDefinitions"]["parameters"]["variant"]
    assert taken["parameterType"] == "STRUCT"


def test_a_sweep_of_sixty_fits_into_the_runs_that_it_becomes(tmp_path: Path) -> None:
    config, variants = load("custom"), variants_of("stage1.lr=" + ",".join(f"{k}e-4" for k in range(1, 61)))
    with pytest.raises(InputError, match=r"a sweep of 60 configurations is too large .*lfm sweep custom --runner kfp"):
        sweep_pipeline(config, variants, GPUS)
    made = parts(variants)
    assert [len(one) for _, one in made] == [20, 20, 20] and [one for _, some in made for one in some] == variants
    assert len({part.sweep for part, _ in made if part}) == 1, "one sweep"
    many = [one for _, one in parts([*variants * 8, *variants[:20]])]
    assert sum(map(len, many)) == 500 and len(many) == 20 and max(map(len, many)) <= MOST
    assert parts(variants[:MOST]) == [(None, variants[:MOST])]
    for part, one in made:
        write(sweep_pipeline(config, one, GPUS, part=part), tmp_path / "sweep.yaml")
        spec = Spec.read(tmp_path / "sweep.yaml")
        assert (
            fits(spec) == [] and Part.parse(spec.root["inputDefinitions"]["parameters"]["part"]["defaultValue"]) == part
        )


def test_a_sweep_that_argo_would_not_keep_is_refused_when_it_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: 23 KB packed for each configuration, beside 130 KB: some 40 fit into 1 MiB."""
    monkeypatch.setattr("lfm.pipelines.sweep.MOST", 500)
    variants = variants_of("stage1.lr=" + ",".join(f"{k}e-4" for k in range(1, 61)))
    write(sweep_pipeline(load("custom"), variants[:35], GPUS), tmp_path / "sweep.yaml")
    with pytest.raises(InputError, match=r"custom-sweep would not run on KFP: the workflow has some 1,.*give fewer"):
        write(sweep_pipeline(load("custom"), variants[:45], GPUS), tmp_path / "more.yaml")
    assert not (tmp_path / "more.yaml").exists()


@pytest.mark.parametrize("form", [dict, json.dumps], ids=["dictionary", "text"])
def test_a_configuration_begins_whether_it_comes_as_a_dictionary_or_as_text(
    form: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", "a-sweep")
    photos = home.parent / "photos"
    (photos / "cat").mkdir(parents=True)
    (photos / "cat" / "a.jpg").write_bytes(b"not read before training")
    values = pipeline_arguments(load("custom-scratch", {"data.source": str(photos), "seed": 3}))
    config, key = configure("custom-scratch", values, values.pop("overrides"))
    (planned,) = plan_sweep(config, [{"name": "alpha 1", "label": "alpha 1", "overrides": {"stage1.alpha": 1.0}}])
    monkeypatch.setenv("LFM_PIPELINE_RUN", key)
    found, variant = configure_variant(form(planned))
    assert (found["stage1"]["alpha"], found["seed"], variant) == (1.0, 3, "a-sweep/alpha 1")
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("custom-scratch").experiment_id])
    assert {run.info.run_name for run in runs} >= {"sweep of 1", "alpha 1"}

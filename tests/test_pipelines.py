"""Every pipeline as YAML for a cluster: against KFP's own protobufs, and what a person sees in the run form."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from lfm.components.resources import STEPS
from lfm.config.presets import PRESETS, load
from lfm.config.run_parameters import OVERRIDES, RUN_PARAMETERS, parameter_values, pipeline_arguments, to_overrides
from lfm.method.losses import LOSSES
from lfm.method.mixup import MIXUPS
from lfm.pipelines.cluster_settings import ClusterSettings, read_settings
from lfm.pipelines.compile import KINDS, all_pipelines, pipeline_name, write
from lfm.pipelines.training import training_pipeline

CLUSTER = """
image: registry.example/lfm:abc
accelerator: nvidia.com/gpu
node_selector: {gpu: h200}
tolerations: [{key: nvidia.com/gpu}, {key: team, operator: Equal, value: vision, effect: NoExecute}]
shared_memory: 16Gi
secrets: [{name: lfm-s3, keys: {access: AWS_ACCESS_KEY_ID, secret: AWS_SECRET_ACCESS_KEY}, optional: false}]
config_maps: [{name: lfm-endpoints, keys: {mlflow: MLFLOW_TRACKING_URI}}]
home: {name: lfm-data, path: /lfm}
labels: {team: vision}
image_pull_secrets: [registry]
steps: {train-stage1: {cpu: "16", memory: 64Gi, hours: 2.5, retries: 7}}
"""


class Compiled:
    """The two documents of a compiled pipeline, parsed by KFP's own protobufs: an unknown field is an error."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        spec, platform = yaml.load_all(self.text, yaml.CSafeLoader)
        self.spec = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        self.platform = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.pods = {
            name.removeprefix("exec-"): json_format.ParseDict(
                pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig()
            )
            for name, pod in pods.items()
        }
        executors = spec["deploymentSpec"]["executors"]
        self.containers = {name.removeprefix("exec-"): value["container"] for name, value in executors.items()}

    def tasks(self) -> dict[str, Any]:
        """Every task that runs a container, at any depth."""
        found = {}
        dags = [self.spec.root.dag, *(c.dag for c in self.spec.components.values() if c.HasField("dag"))]
        for dag in dags:
            for name, task in dag.tasks.items():
                if not self.spec.components[task.component_ref.name].HasField("dag"):
                    assert name not in found
                    found[name] = task
        return found


@pytest.fixture(scope="module")
def cluster_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    path.write_text(CLUSTER)
    return path


def compiled(folder: Path, kind: str, preset: str, settings: ClusterSettings, **overrides: Any) -> Compiled:
    path = folder / "pipeline.yaml"
    config = load(preset, {k.replace("__", "."): v for k, v in overrides.items()})
    write(KINDS[kind](config, settings), path)
    return Compiled(path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "preset"), all_pipelines())
def test_every_pipeline_compiles_into_what_kfp_and_kubernetes_read(kind: str, preset: str, tmp_path: Path) -> None:
    found = compiled(tmp_path, kind, preset, ClusterSettings(image="lfm:test"))
    assert found.spec.pipeline_info.name == pipeline_name(kind, preset)
    if preset == "custom":
        assert kfp_components.load_component_from_text(found.text).component_spec.name == pipeline_name(kind, preset)
    tasks = found.tasks()
    more = {
        "train": {"prepare", "register"},
        "retrain": {"prepare-retraining", "register", "decide"},
        "sweep": {"plan-sweep", "prepare-variant", "compare"},
    }
    assert set(tasks) == {"finish", "train-stage1", "train-stage2", "evaluate"} | more[kind]
    for name, task in tasks.items():
        assert not task.caching_options.enable_cache, "what lies at an address may have changed"
        assert found.containers[name]["image"] == "lfm:test"
        assert (task.retry_policy.max_retry_count > 0) == (name != "finish")
        pod = found.pods[name]
        assert pod.active_deadline_seconds == STEPS[name].hours * 3600
        (run,) = pod.field_path_as_env
        assert (run.name, run.field_path) == ("LFM_PIPELINE_RUN", "metadata.labels['pipeline/runid']")
    exit_task = found.spec.root.dag.tasks["finish"]
    assert exit_task.inputs.parameters["status"].task_final_status.producer_task == "exit-handler-1"
    for path in (Path.home(), Path.cwd(), Path(sys.prefix), tmp_path):
        assert str(path) not in found.text


@pytest.mark.slow
def test_a_retraining_trains_only_on_new_data_and_a_sweep_has_a_limit(tmp_path: Path) -> None:
    retrain = compiled(tmp_path, "retrain", "custom", ClusterSettings())
    inside = retrain.spec.components["comp-exit-handler-1"].dag.tasks
    condition = inside["condition-2"].trigger_policy.condition
    assert condition == "inputs.parameter_values['pipelinechannel--prepare-retraining-Output'] == 'changed'"
    assert "train-stage1" in retrain.spec.components["comp-condition-2"].dag.tasks
    sweep = compiled(tmp_path, "sweep", "cifar100-lt", ClusterSettings(parallelism=3))
    loop = sweep.spec.components["comp-exit-handler-1"].dag.tasks["for-loop-2"]
    assert loop.iterator_policy.parallelism_limit == 3
    default = json_format.MessageToDict(sweep.spec.root.input_definitions.parameters["variants"].default_value)
    assert [variant["label"] for variant in default][:2] == ["CE", "BalCE"] and default[-1]["label"] == "LFM + MMS"


@pytest.mark.slow
def test_the_settings_of_a_cluster_reach_the_pods(cluster_file: Path, tmp_path: Path) -> None:
    found = compiled(tmp_path, "train", "imagenet-lt", read_settings(cluster_file))
    for name, pod in found.pods.items():
        (secret,), (known,), (claim,) = pod.secret_as_env, pod.config_map_as_env, pod.pvc_mount
        assert secret.secret_name == "lfm-s3" and not secret.optional
        assert {k.secret_key: k.env_var for k in secret.key_to_env} == {
            "access": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"
        }  # fmt: skip
        assert known.config_map_name == "lfm-endpoints" and known.optional
        assert (claim.constant, claim.mount_path) == ("lfm-data", "/lfm")
        environment = {v["name"]: v["value"] for v in found.containers[name]["env"]}
        assert environment["LFM_HOME"] == "/lfm"
        assert environment.get("LFM_ACCELERATOR") == ("nvidia.com/gpu" if STEPS[name].gpu else None)
        assert pod.pod_metadata.labels["team"] == "vision" and pod.image_pull_secret[0].secret_name == "registry"
        assert bool(pod.tolerations) == bool(pod.node_selector.labels) == bool(pod.empty_dir_mounts) == STEPS[name].gpu
        assert found.containers[name]["image"] == "registry.example/lfm:abc"
    stage1 = found.pods["train-stage1"]
    assert stage1.empty_dir_mounts[0].size_limit == "16Gi" and stage1.empty_dir_mounts[0].mount_path == "/dev/shm"
    assert stage1.active_deadline_seconds == 9000
    assert found.tasks()["train-stage1"].retry_policy.max_retry_count == 7
    assert found.tasks()["train-stage2"].retry_policy.max_retry_count == STEPS["train-stage2"].retries
    policy = found.tasks()["evaluate"].retry_policy
    assert (policy.backoff_duration.seconds, policy.backoff_factor) == (60, 2.0)
    resources = found.containers["train-stage1"]["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "{{$.inputs.parameters['pipelinechannel--gpus']}}"
    assert resources["resourceCpuRequest"] == "16" and resources["resourceMemoryLimit"] == "64Gi"
    assert "accelerator" not in found.containers["prepare"]["resources"]


@pytest.mark.slow
def test_every_pipeline_compiles_with_the_settings_of_the_manifests(tmp_path: Path) -> None:
    found = compiled(tmp_path, "train", "fashion-mnist-lt", read_settings(Path("infra/cluster.yaml")))
    (claim,) = found.pods["train-stage1"].pvc_mount
    assert (claim.constant, claim.mount_path) == ("lfm-data", "/data")


def test_a_local_run_carries_nothing_of_a_cluster() -> None:
    spec = training_pipeline(load("fashion-mnist-lt", {"seed": 3}))
    assert not spec.platform_spec.platforms
    text = json_format.MessageToJson(spec.pipeline_spec)
    assert "retryPolicy" not in text and "resources" not in text


@pytest.mark.parametrize("preset", PRESETS)
def test_the_run_form_has_the_values_of_the_preset_and_describes_each(preset: str) -> None:
    spec = training_pipeline(load(preset)).pipeline_spec
    parameters = spec.root.input_definitions.parameters
    assert set(parameters) == {*RUN_PARAMETERS, "overrides"}
    values = parameter_values(load(preset))
    for name, parameter in parameters.items():
        assert parameter.description == (OVERRIDES if name == "overrides" else RUN_PARAMETERS[name].description)
        assert parameter.is_optional
        default = json_format.MessageToDict(parameter.default_value)
        assert default == ({} if name == "overrides" else values[name])
        closed = {"loss_name": [*LOSSES], "mixup_name": [*MIXUPS]}.get(name, [])
        assert [one.string_value for one in parameter.literals] == closed, "a list to choose from where it is closed"
    # What KFP passes if nobody touches the form is the preset itself; numbers arrive as floats.
    passed = {name: json_format.MessageToDict(parameters[name].default_value) for name in RUN_PARAMETERS}
    assert load(preset, to_overrides(passed)) == load(preset)
    assert (PRESETS[preset].__doc__ or "").startswith(spec.pipeline_info.description)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_says_what_it_is(kind: str) -> None:
    spec = KINDS[kind](load("custom-scratch"), ClusterSettings()).pipeline_spec
    for name, parameter in spec.root.input_definitions.parameters.items():
        assert parameter.description[0].isupper() and parameter.description.endswith("."), name


@pytest.mark.parametrize("name", RUN_PARAMETERS)
def test_a_run_parameter_is_named_after_its_field_so_that_the_form_sorts_by_section(name: str) -> None:
    parameter = RUN_PARAMETERS[name]
    if name not in ("batch_size", "gpus"):
        assert parameter.fields == (name.replace("_", ".", 1),)
    assert parameter.description[0].isupper() and parameter.description.endswith(".")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"stage1.alpha": "auto", "stage2.alpha": 1.25, "seed": 4},
        {"stage1.batch_size": 8},
        {"stage2.batch_size": 8},
        {"stage1.batch_size": 8, "stage2.batch_size": 8, "stage1.clip": 1.0},
        {"fidelity": "code"},
        {"fidelity": "code", "loss.name": "mms", "mixup.beta": 0.4},
        {"fidelity": "code", "mixup.beta": 0.5, "shots.few": 20},  # the text's own values, kept by hand
        {"fidelity": "code", "mixup.name": "remix"},
        {"mixup.beta": 0.2},
        {"data.source": "2024", "train.processes": 0, "stage1.epochs": 0},
        {"stage1.lr": 1e-15, "stage1.min_lr": 1e-16},  # the lower bound is in the overrides, the rate in the form
        {"text.prompt": ["a {}", "one {}"]},
    ],
)
def test_the_arguments_of_a_pipeline_give_the_configuration(preset: str, overrides: dict[str, Any]) -> None:
    config = load(preset, overrides)
    values = pipeline_arguments(config)
    rest = values.pop("overrides")
    assert load(preset, {**to_overrides(values), **json.loads(json.dumps(rest))}) == config
    assert set(rest) <= {*overrides, "stage2.batch_size", "stage2.min_lr"}, "no field that nobody changed"
    assert not {"seed", "loss.name", "stage1.epochs"} & set(rest), "a run parameter has it"


@pytest.mark.slow
def test_set_and_image_change_what_is_compiled(tmp_path: Path, cluster_file: Path) -> None:
    settings = read_settings(cluster_file, "other:1")
    found = compiled(tmp_path, "train", "cifar10-lt", settings, stage1__epochs=3, stage1__clip=0.5)
    parameters = found.spec.root.input_definitions.parameters
    assert parameters["stage1_epochs"].default_value.number_value == 3
    assert json_format.MessageToDict(parameters["overrides"].default_value) == {"stage1.clip": 0.5}
    assert {container["image"] for container in found.containers.values()} == {"other:1"}

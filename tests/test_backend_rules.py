"""Rules of a KFP backend over every compiled pipeline, and that each rule finds what is planted for it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from lfm.config.presets import load
from lfm.pipelines import backend_rules as rules
from lfm.pipelines.cluster_settings import ClusterSettings, read_settings
from lfm.pipelines.compile import KINDS, all_pipelines, write
from lfm.pipelines.compiled import Spec
from tests.backend.rules import ends_with_a_launcher
from tests.conftest import REPOSITORY

SETTINGS = {
    "default": ClusterSettings(image="lfm:test"),
    "infra": read_settings(REPOSITORY / "infra" / "cluster.yaml", "lfm:test"),
    "gpus": ClusterSettings(image="lfm:test", accelerator="nvidia.com/gpu"),
}
PLUGIN = frozenset({"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"})
"""What KFP's MLflow plugin sets with injectUserEnvVars (common/plugins/mlflow/)."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Spec]:
    """(kind, preset, settings) -> the compiled pipeline."""
    found, file = {}, tmp_path_factory.mktemp("yaml") / "pipeline.yaml"
    for kind, preset in all_pipelines():
        for name, settings in SETTINGS.items():
            write(KINDS[kind](load(preset), settings), file)
            found[kind, preset, name] = Spec.read(file)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules.RULES)
def test_every_compiled_pipeline_keeps(
    rule: Callable[[Spec], list[str]], compiled: dict[tuple[str, str, str], Spec]
) -> None:
    broken = {key: found for key, spec in compiled.items() if (found := rule(spec))}
    assert not broken


@pytest.mark.slow
def test_only_a_retraining_may_end_without_a_launcher(compiled: dict[tuple[str, str, str], Spec]) -> None:
    """Then `finish` is given RUNNING. A `dsl.Else` with a step of its own would cost three pods every unchanged night;
    the step that finds the data unchanged closes the run in MLflow instead (tests/backend/cases.py looks there)."""
    assert {kind for (kind, *_), spec in compiled.items() if ends_with_a_launcher(spec)} == {"retrain"}


@pytest.mark.slow
def test_the_mlflow_plugin_and_our_variables_do_not_go_together(compiled: dict[tuple[str, str, str], Spec]) -> None:
    assert rules.one_source_for_each_variable(compiled["train", "custom-scratch", "infra"], PLUGIN)
    assert not rules.one_source_for_each_variable(compiled["train", "custom-scratch", "default"], PLUGIN)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A small pipeline that keeps every rule, written without our code."""
    from kfp import compiler, dsl, kubernetes

    @dsl.component(base_image="image", install_kfp_package=False)
    def ask() -> str:
        return "8"

    @dsl.component(base_image="image", install_kfp_package=False)
    def take(entry: dict, name: str, number: int) -> str:  # type: ignore[type-arg]
        return name

    @dsl.pipeline(name="sound")
    def pipeline(entries: list[dict[str, str]] = [{"a": "b"}], gpus: str = "1", number: int = 3) -> None:  # noqa: B006
        asked = ask()
        taken = take(entry={}, name=asked.output, number=number)
        taken.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
        taken.set_retry(2, "60s", 2.0, "1000s").set_env_variable("ONE", "1")
        with dsl.ParallelFor(entries) as entry:
            each = take(entry=entry, name="each", number=number)
        for task in (asked, taken, each):
            kubernetes.set_security_context(task, run_as_non_root=True)
            kubernetes.set_timeout(task, seconds=300)
            kubernetes.use_field_path_as_env(task, "RUN", "metadata.labels['pipeline/runid']")
            task.set_caching_options(False)

    file = tmp_path_factory.mktemp("sound") / "sound.yaml"
    compiler.Compiler().compile(pipeline, str(file))
    return Spec.read(file)


def test_a_sound_pipeline_keeps_every_rule(sound: Spec) -> None:
    assert {rule.__name__: rule(sound) for rule in rules.RULES} == {rule.__name__: [] for rule in rules.RULES}


def executor(spec: Spec, name: str) -> Any:
    return spec.pipeline["deploymentSpec"]["executors"][name]["container"]


def pod(spec: Spec, name: str) -> Any:
    return spec.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][name]


def keep_a_channel_out_of_its_group(spec: Spec) -> None:
    del spec.pipeline["components"]["comp-for-loop-1"]["inputDefinitions"]["parameters"]["pipelinechannel--number"]


def give_text_for_a_struct(spec: Spec) -> None:
    loop = spec.pipeline["components"]["comp-for-loop-1"]["inputDefinitions"]["parameters"]
    loop["pipelinechannel--entries-loop-item"]["parameterType"] = "STRING"


def give_a_number_for_gpus(spec: Spec) -> None:
    spec.root["inputDefinitions"]["parameters"]["gpus"]["parameterType"] = "NUMBER_INTEGER"


def put_a_parameter_into_a_variable(spec: Spec) -> None:
    executor(spec, "exec-take")["env"][0]["value"] = "{{$.inputs.parameters['number']}}"


def wait_too_briefly(spec: Spec) -> None:
    spec.root["dag"]["tasks"]["take"]["retryPolicy"]["backoffMaxDuration"] = "899s"


def say_a_variable_twice(spec: Spec) -> None:
    pod(spec, "exec-take")["fieldPathAsEnv"].append({"name": "ONE", "fieldPath": "metadata.name"})


def run_as_root(spec: Spec) -> None:
    del pod(spec, "exec-ask")["securityContext"]


def end_with_a_branch(spec: Spec) -> None:
    task = spec.pipeline["components"]["comp-for-loop-1"]["dag"]["tasks"]["take-2"]
    task["triggerPolicy"] = {"condition": "inputs.parameter_values['name'] == 'each'"}


def end_with_the_cache(spec: Spec) -> None:
    spec.pipeline["components"]["comp-for-loop-1"]["dag"]["tasks"]["take-2"]["cachingOptions"] = {"enableCache": True}


def loop_too_often(spec: Spec) -> None:
    spec.root["inputDefinitions"]["parameters"]["entries"]["defaultValue"] = [{"a": "b"}] * 200


def tell_too_much(spec: Spec) -> None:
    executor(spec, "exec-ask")["command"][-1] += "#" * 128 * 1024


@pytest.mark.parametrize(
    ("rule", "plant", "where"),
    [
        (rules.channels_are_there, keep_a_channel_out_of_its_group, "number reads pipelinechannel--number, which"),
        (rules.types_agree, give_text_for_a_struct, "entry is STRUCT, its channel STRING"),
        (rules.pod_settings_are_text, give_a_number_for_gpus, "takes pipelinechannel--gpus"),
        (rules.pod_settings_are_text, put_a_parameter_into_a_variable, "env ONE holds a placeholder"),
        (rules.deadlines_cover_retries, wait_too_briefly, "take: 899s for 3 attempts of 300 s"),
        (rules.one_source_for_each_variable, say_a_variable_twice, "ONE is set more than once"),
        (rules.runs_as_non_root, run_as_root, "ask"),
        (ends_with_a_launcher, end_with_a_branch, "take-2 may not be taken"),
        (ends_with_a_launcher, end_with_the_cache, "take-2 may come from the cache"),
        (rules.fits, loop_too_often, "the workflow has some 1,2"),
        (rules.fits, tell_too_much, "ask is told some 13"),
    ],
)
def test_a_rule_finds_what_is_planted(
    sound: Spec, rule: Callable[[Spec], list[str]], plant: Callable[[Spec], None], where: str
) -> None:
    planted = copy.deepcopy(sound)
    plant(planted)
    assert where in str(rule(planted))

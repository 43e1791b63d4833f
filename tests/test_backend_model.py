"""The model of a KFP backend: each rule on a small pipeline (over 300 lines: one list, of one set of steps)."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl, kubernetes

from lfm.pipelines.compiled import Spec, as_json, as_value, kinds_of
from tests.backend import argo
from tests.backend.driver import DriverError, as_text, holds, select
from tests.backend.launcher import Accident
from tests.backend.pod import HangsError, pod_of
from tests.backend.run import Cluster, Run

pytestmark = pytest.mark.slow


def step(function: Callable[..., Any]) -> Any:
    return dsl.component(function, base_image="image", install_kfp_package=False)


@step
def say(text: str) -> str:
    print("said", text, flush=True)
    return text


@step
def take(entry: dict, note: str) -> str:  # type: ignore[type-arg]
    return str(entry["name"])


@step
def entries() -> list:  # type: ignore[type-arg]
    return [{"name": "a"}, {"name": "b"}]


@step
def join(parts: list) -> None:  # type: ignore[type-arg]
    print("joined", ", ".join(parts), flush=True)


@step
def wait() -> str:
    import os
    import time

    print("attempt", os.environ.get("KFP_RETRY_INDEX"), flush=True)
    time.sleep(0.3 if os.environ.get("KFP_RETRY_INDEX", "0") != "0" else 60)
    return "waited"


@step
def fail(code: int) -> None:
    import sys

    sys.exit(code)


@step
def write(file: dsl.Output[dsl.Dataset]) -> None:
    from pathlib import Path

    Path(file.path).write_text("bytes")


@step
def read(file: dsl.Input[dsl.Dataset]) -> str:
    from pathlib import Path

    path = Path(file.path)
    return path.read_text() if path.exists() else "nothing there"


@step
def last(status: dsl.PipelineTaskFinalStatus) -> None:
    print("state", status.state, flush=True)


def compiled(folder: Path, body: Callable[[], None]) -> Spec:
    @dsl.pipeline(name="small")
    def pipeline() -> None:
        handler = last()
        handler.set_caching_options(False)
        with dsl.ExitHandler(handler, name="steps"):
            body()

    file = folder / f"{body.__name__}.yaml"
    compiler.Compiler().compile(pipeline, str(file))
    return Spec.read(file)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def ran(run: Run) -> list[str]:
    """The tasks that had a program, in order."""
    return [pod.split("/")[-1] for pod in run.pods if not pod.startswith("driver")]


def at_once(log: str) -> bool:
    return "attempt" in log


def test_what_is_given_to_the_exit_handler(cluster: Cluster) -> None:
    def good() -> None:
        say(text="one")

    def bad() -> None:
        fail(code=2)

    def untaken() -> None:
        with dsl.If(say(text="one").output == "two"):
            say(text="three")

    def with_else() -> None:
        said = say(text="one").output
        with dsl.If(said == "two"):
            say(text="three")
        with dsl.Else():
            say(text="four")

    ended = {}
    for body in (good, bad, untaken, with_else):
        run = cluster.start(compiled(cluster.folder, body))
        assert f"state {run.told[0]}" in run.log("last")
        ended[body.__name__] = (run.state, *run.told)
    assert ended == {
        "good": ("SUCCEEDED", "COMPLETE"),
        "bad": ("FAILED", "FAILED"),
        "untaken": ("SUCCEEDED", "RUNNING"),
        "with_else": ("SUCCEEDED", "COMPLETE"),
    }


def test_an_exit_handler_that_fails_changes_nothing(cluster: Cluster) -> None:
    @dsl.pipeline(name="small")
    def pipeline() -> None:
        with dsl.ExitHandler(fail(code=1)):
            say(text="one")

    compiler.Compiler().compile(pipeline, str(cluster.folder / "small.yaml"))
    run = cluster.start(Spec.read(cluster.folder / "small.yaml"))
    assert (run.state, ran(run)) == ("SUCCEEDED", ["say", "fail"])
    assert cluster.metadata.executions[-1].state == "FAILED"


def test_the_item_of_a_list_that_a_task_made_is_text(cluster: Cluster) -> None:
    def sweep() -> None:
        with dsl.ParallelFor(entries().output) as entry:
            take(entry=entry, note="n")

    run = cluster.start(compiled(cluster.folder, sweep))
    assert run.state == "FAILED" and run.told == ["RUNNING"], "a driver that fails counts nothing"
    assert run.errors[0] == "take: input parameter 'entry' type mismatch: expect STRUCT, got string"


def test_the_item_of_a_typed_parameter_is_a_struct_and_what_is_collected_is_in_order(cluster: Cluster) -> None:
    @dsl.pipeline(name="typed")
    def pipeline(entries: list[dict[str, str]]) -> None:
        with dsl.ParallelFor(entries, parallelism=2) as entry:
            taken = take(entry=entry, note="n")
        join(parts=dsl.Collected(taken.output))

    compiler.Compiler().compile(pipeline, str(cluster.folder / "typed.yaml"))
    run = cluster.start(Spec.read(cluster.folder / "typed.yaml"), {"entries": [{"name": "b"}, {"name": "a"}]})
    assert run.state == "SUCCEEDED" and "joined b, a" in run.log("join")


def test_values_and_conditions_as_in_go() -> None:
    assert as_json(as_value({"a": [1, 2.5, True, "1"], "b": 3.0})) == {"a": [1, 2.5, True, "1"], "b": 3}
    assert json.dumps(as_json(as_value([64, 1e-9, 10**15]))) == "[64, 1e-09, 1000000000000000]"
    assert (as_text(3.0), as_text(0.5), as_text(True), as_text({"a": 1.0}), as_text(None)) == (
        "3",
        "0.5",
        "true",
        '{"a":1}',
        "",
    )
    assert kinds_of(True) == ("BOOLEAN",) and "STRUCT" in kinds_of({}) and kinds_of([]) == ("LIST",)
    assert select('{"a": {"b": 2}}', 'parseJson(string_value)["a"]["b"]') == 2
    with pytest.raises(DriverError, match="no such key"):
        select({"a": 1}, 'parseJson(string_value)["b"]')
    given = {"pipelinechannel--x": "changed", "n": 3.0}
    assert holds("inputs.parameter_values['pipelinechannel--x'] == 'changed'", given)
    assert not holds("!(inputs.parameter_values['pipelinechannel--x'] == 'changed') && true", given)
    assert holds("int(inputs.parameter_values['n']) > 2 || false", given)


def test_settings_of_a_pod_take_text_alone() -> None:
    channel = "{{$.inputs.parameters['pipelinechannel--n']}}"
    gpus = {"accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": channel}}
    container = {"image": "image", "resources": gpus}
    assert pod_of(container, {}, {"pipelinechannel--n": 2.0}, "r", {}, {}).limits == {}, "left out without a word"
    assert pod_of(container, {}, {"pipelinechannel--n": "2"}, "r", {}, {}).limits == {"nvidia.com/gpu": "2"}
    cpu = {"image": "image", "resources": {"resourceCpuRequest": channel}}
    with pytest.raises(DriverError, match="quantities must match"):
        pod_of(cpu, {}, {"pipelinechannel--n": 2.0}, "r", {}, {})


def test_a_pod_that_cannot_start_hangs(cluster: Cluster) -> None:
    constant = {"runtimeValue": {"constant": "endpoints"}}
    reference = {"configMapAsEnv": [{"configMapNameParameter": constant, "optional": False,
                                     "keyToEnv": [{"configMapKey": "A", "envVar": "A"}]}]}  # fmt: skip
    held = {("endpoints", "A"): "1"}
    assert pod_of({"image": "i"}, reference, {}, "r", held, {}).environment == {"A": "1"}
    with pytest.raises(HangsError, match="may not be specified when `value` is not empty"):
        pod_of({"image": "i"}, reference, {}, "r", held, {"A": "of the plugin"})
    with pytest.raises(HangsError, match="endpoints has no key A"):
        pod_of({"image": "i"}, reference, {}, "r", {}, {})


def test_the_cache_hits_though_the_objects_are_gone(cluster: Cluster) -> None:
    def two() -> None:
        read(file=write().output).set_caching_options(False)

    spec = compiled(cluster.folder, two)
    first, second = cluster.start(spec), cluster.start(spec)
    assert (ran(first), ran(second)) == (["write", "read", "last"], ["read", "last"])
    assert [one.outputs["Output"] for one in cluster.metadata.executions if one.task == "read"] == ["bytes"] * 2
    shutil.rmtree(cluster.bucket)
    third = cluster.start(spec)
    assert ran(third) == ["read", "last"] and third.state == "SUCCEEDED"
    assert cluster.metadata.executions[-2].outputs["Output"] == "nothing there"


def test_a_group_that_ends_with_the_cache_is_not_counted(cluster: Cluster) -> None:
    def cached() -> None:
        say(text="one")

    spec = compiled(cluster.folder, cached)
    assert [cluster.start(spec).told, cluster.start(spec).told] == [["COMPLETE"], ["RUNNING"]]


@pytest.mark.parametrize(
    ("kind", "policy", "state", "told", "attempts"),
    [
        ("killed", "OnError", "FAILED", "FAILED", 1),
        ("killed", "Always", "SUCCEEDED", "COMPLETE", 2),
        ("deleted", "OnError", "SUCCEEDED", "COMPLETE", 2),
        ("lost", "OnError", "SUCCEEDED", "COMPLETE", 2),
        ("deadline", "OnError", "FAILED", "RUNNING", 1),
        ("terminated", "Always", "FAILED", "RUNNING", 1),
    ],
)
def test_what_is_tried_again(cluster: Cluster, kind: str, policy: str, state: str, told: str, attempts: int) -> None:
    def slow() -> None:
        wait().set_retry(2, "60s", 2.0, "3600s")

    cluster.policy = policy
    run = cluster.start(compiled(cluster.folder, slow), accidents=[Accident("wait", kind, at_once)])
    assert (run.state, *run.told) == (state, told)
    assert [line for line in run.log("wait").splitlines() if "attempt" in line] == [
        f"attempt {k}" for k in range(attempts)
    ]
    assert run.clock == 60 * (attempts - 1)


def test_retry_runs_what_failed_and_not_the_exit_handler(cluster: Cluster) -> None:
    def slow() -> None:
        said = say(text="one")
        said.set_caching_options(False)
        wait().set_retry(0, "1s").after(said)

    run = cluster.start(compiled(cluster.folder, slow), accidents=[Accident("wait", "killed", at_once, signal.SIGSEGV)])
    assert (run.state, run.told, ran(run)) == ("FAILED", ["FAILED"], ["say", "wait", "last"])
    run.retry([Accident("wait", "terminated", at_once)])
    assert (run.state, run.told, ran(run)) == ("FAILED", ["FAILED"], ["say", "wait", "last", "wait"])
    states = {one.task: one.state for one in cluster.metadata.executions}
    assert states["wait"] == "RUNNING" and states["exit-handler-1"] == "FAILED"


def test_when_there_is_no_further_attempt() -> None:
    strategy = argo.Strategy(limit=5, wait=60, factor=2, longest=3600)
    lost = [argo.Attempt(0, 100, argo.ERROR)]
    assert argo.wait_before_next(lost, strategy) == 60
    assert argo.wait_before_next([*lost, argo.Attempt(160, 200, argo.ERROR)], strategy) == 120
    assert argo.wait_before_next([argo.Attempt(0, 3599, argo.ERROR)], strategy) is None, "the wait would exceed it"
    assert argo.wait_before_next([argo.Attempt(0, 100, argo.FAILED)], strategy) is None, "OnError"
    assert argo.wait_before_next([argo.Attempt(0, 1, argo.ERROR)] * 6, argo.Strategy(limit=5)) is None
    assert argo.killed_at(lost, strategy, 96 * 3600) == 3600, (
        "an hour after the first began, whatever the step may take"
    )
    assert argo.killed_at(lost, argo.Strategy(), 7200) == 100 + 7200


def test_a_plain_task_that_is_refused_for_good_is_tried_81_times(tmp_path: Path) -> None:
    @dsl.pipeline(name="plain")
    def plain() -> None:
        say(text="one")

    compiler.Compiler().compile(plain, str(tmp_path / "plain.yaml"))
    assert argo.refused_for_good(Spec.read(tmp_path / "plain.yaml"), "say").pods == 81

    def grouped() -> None:
        say(text="one").set_retry(5, "60s", 2.0, "3600s")

    found = argo.refused_for_good(compiled(tmp_path, grouped), "exit-handler-1/say")
    assert found == (6 * 81, 81 * 60 * (1 + 2 + 4 + 8 + 16))


def test_a_program_has_its_pod_and_the_run_as_in_a_pod(cluster: Cluster) -> None:
    @step
    def look(told: dsl.Output[dsl.Artifact]) -> None:
        import json
        import os
        from pathlib import Path

        made = Path("made")
        made.mkdir()
        found = {"mode": made.stat().st_mode & 0o777, "run": os.environ["RUN"], "path": told.path, "uri": told.uri}
        Path(told.path).write_text(json.dumps(found))

    def one() -> None:
        task = look()
        kubernetes.use_field_path_as_env(task, "RUN", "metadata.labels['pipeline/runid']")

    run = cluster.start(compiled(cluster.folder, one))
    assert run.state == "SUCCEEDED", run.logs
    (file,) = cluster.bucket.rglob("told")
    found = json.loads(file.read_text())
    assert (found["mode"], found["run"]) == (0o777, run.id) and found["uri"].startswith(
        "minio://mlpipeline/v2/artifacts/"
    )
    assert found["path"].endswith(found["uri"].removeprefix("minio:/"))

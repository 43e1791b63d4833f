"""One run of a compiled pipeline on the model, and Retry."""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfm.pipelines.compiled import Json, Spec, as_value, parameters
from tests.backend.argo import ERROR, FAILED, SUCCEEDED, Attempt, strategy_of, wait_before_next
from tests.backend.driver import Driver, DriverError, Inputs, fingerprint, holds, items_of
from tests.backend.launcher import Accident, Ended, Launcher
from tests.backend.metadata import Execution, Metadata
from tests.backend.pod import Pod, pod_of

SKIPPED, DRIVEN = "Skipped", "driven"
PASSED = ("COVERAGE_", "LD_LIBRARY_PATH", "LFM_COMMIT", "OMP_NUM_THREADS", "PATH", "PYTHON", "SSL_", "TMPDIR")
"""Variables, by their beginnings, that stand for what the image has."""


@dataclass
class Cluster:
    """A namespace: bucket, ML Metadata, secrets, config maps, claims.

    Args:
        folder: for the bucket and the pods.
        held: (name of a secret or config map, key) -> value.
        policy: retryPolicy that the controller merges into every template.
        plugin: variables that KFP's MLflow plugin sets where injectUserEnvVars is on.
    """

    folder: Path
    held: Mapping[tuple[str, str], str] = field(default_factory=dict)
    policy: str = "OnError"
    plugin: Mapping[str, str] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def bucket(self) -> Path:
        """Folder that stands for the bucket."""
        return self.folder / "bucket"

    def start(
        self, spec: Spec, arguments: Mapping[str, Any] | None = None, accidents: Sequence[Accident] = ()
    ) -> "Run":
        """Start a run and let it end.

        Args:
            spec: the compiled file.
            arguments: parameters of the run.
            accidents: what befalls its steps.
        """
        run = Run(self, spec, uuid.uuid4().hex[:12])
        run.begin(arguments or {}, accidents)
        return run


@dataclass
class Node:
    """A task in Argo: what Retry goes by."""

    phase: str
    execution: Execution | None = None
    inputs: Inputs | None = None


class Run:
    """A run: `state` is what the KFP UI shows, `told` what the exit handler was given, `pods` each pod's log.

    Args:
        cluster: where it runs.
        spec: the compiled file.
        key: id of the run.
    """

    def __init__(self, cluster: Cluster, spec: Spec, key: str) -> None:
        self.cluster, self.spec, self.id = cluster, spec, key
        self.driver = Driver(spec, cluster.metadata, key)
        base = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        self.launcher = Launcher(cluster.folder / "pods" / key, cluster.bucket, cluster.metadata, base)
        self.nodes: dict[str, Node] = {}
        self.logs: dict[str, str] = {}
        """Path of a step, and attempt -> all that its program printed."""
        self.pods: list[str] = []
        """Every pod in order, drivers and launchers."""
        self.errors: list[str] = []
        self.told: list[str] = []
        self.state = ""
        self.clock = 0.0
        """Seconds of waits that were not waited for."""

    def begin(self, arguments: Mapping[str, Any], accidents: Sequence[Accident]) -> None:
        """The root's driver, then the tasks (driver/root_dag.go, the API server's check of the parameters)."""
        values = {
            name: as_value(arguments[name] if name in arguments else one.get("defaultValue"))
            for name, one in parameters(self.spec.root).items()
        }
        unknown = set(arguments) - set(values)
        assert not unknown, f"unknown parameters {unknown}"
        for name, one in parameters(self.spec.root).items():
            Driver.check("the run", name, one, values)
            allowed = as_value(one.get("literals", []))
            assert not allowed or values[name] in allowed, f"{name}: {values[name]!r} is none of {allowed}"
        self.pods.append("driver of the root")
        self.root = self.cluster.metadata.begin(
            task="", parent=None, inputs=values, artifacts={}, dag=self.spec.root["dag"]
        )
        self._go(accidents, exit_handlers=True)

    def retry(self, accidents: Sequence[Accident] = ()) -> None:
        """Run again what failed or was ended, not the exit handler (common/util/workflow.go:201-273; seen)."""
        assert self.state == "FAILED", "Workflow must be Failed/Error to retry"
        self.nodes = {
            path: node for path, node in self.nodes.items() if node.execution
        }  # a driver that succeeded stays
        for node in self.nodes.values():
            node.phase = node.phase if node.phase in (SUCCEEDED, SKIPPED) else DRIVEN
        self._go(accidents, exit_handlers=False)

    def _go(self, accidents: Sequence[Accident], exit_handlers: bool) -> None:
        self.accidents, self.terminated = list(accidents), False
        tasks = self.spec.root["dag"]["tasks"]
        last = {name: task for name, task in tasks.items() if "strategy" in task.get("triggerPolicy", {})}
        good = self._group(self.root, {name: task for name, task in tasks.items() if name not in last}, "")
        self.state = "SUCCEEDED" if good else "FAILED"
        if exit_handlers:  # also after Terminate (seen); what becomes of it does not count (seen)
            self.terminated = False
            for name, task in last.items():
                self._task(self.root, name, task, name)
                self.told.append(self.root_status(name))

    def root_status(self, handler: str) -> str:
        """The state that an exit handler was given."""
        node = self.nodes[handler]
        status = next((v for v in (node.inputs.values if node.inputs else {}).values() if isinstance(v, dict)), {})
        return str(status.get("state", ""))

    def _group(self, group: Execution, tasks: Mapping[str, Json], above: str) -> bool:
        """The tasks of a group in waves: all drivers of a wave, then its programs; after a failure no new wave."""
        done: set[str] = set()
        while waiting := [name for name in tasks if name not in done]:
            wave = [name for name in waiting if done >= set(tasks[name].get("dependentTasks", ())) & set(tasks)]
            assert wave, f"no task of {waiting} can ever start"
            for name in wave:
                self._drive(group, name, tasks[name], above + name)
            phases = [self._task(group, name, tasks[name], above + name) for name in wave if not self.terminated]
            if self.terminated or any(phase not in (SUCCEEDED, SKIPPED) for phase in phases):
                return False
            done |= set(wave)
        return True

    def _drive(self, group: Execution, name: str, task: Json, path: str, iteration: int | None = None) -> Node:
        """The driver of a task: its node, an execution in ML Metadata if its inputs are right."""
        if path in self.nodes:
            return self.nodes[path]
        self.pods.append(f"driver of {path}")
        component = self.spec.component(task)
        try:
            inputs = self.driver.resolve(group, name, task, iteration)
            condition = task.get("triggerPolicy", {}).get("condition", "")
            triggered = iteration is not None or not condition or holds(condition, inputs.values)
            loop = iteration is None and "parameterIterator" in task
            many = self._count(task, inputs) if loop and triggered else None
        except DriverError as error:
            self.errors.append(str(error))
            self.nodes[path] = Node(FAILED)
            return self.nodes[path]
        execution = self.cluster.metadata.begin(
            task=name, parent=group, inputs=inputs.values, artifacts=inputs.artifacts, dag=component.get("dag"),
            loop=loop, iteration=iteration,
            expected=many if loop else len(component["dag"]["tasks"]) if "dag" in component else None,
        )  # fmt: skip
        if not triggered:
            execution.state = "CANCELED"  # "not triggered" in ML Metadata's words (metadata/client.go:648-655)
        self.nodes[path] = Node(DRIVEN if triggered else SKIPPED, execution, inputs)
        return self.nodes[path]

    @staticmethod
    def _count(task: Json, inputs: Inputs) -> int:
        items, iterator = task["parameterIterator"]["items"], task["parameterIterator"]
        if "raw" in items:  # a list in the file itself (driver/dag.go:165-176)
            inputs.values[iterator["itemInput"]] = items["raw"]
            return len(items_of(items["raw"]))
        return len(items_of(inputs.values[items["inputParameter"]]))

    def _task(self, group: Execution, name: str, task: Json, path: str, iteration: int | None = None) -> str:
        node = self._drive(group, name, task, path, iteration)
        if node.phase in (FAILED, SKIPPED, SUCCEEDED) or self.terminated:
            return node.phase
        assert node.execution
        component = self.spec.component(task)
        if node.execution.loop:
            rounds = range(node.execution.expected or 0)
            good = all(self._task(node.execution, name, task, f"{path}[{i}]", i) == SUCCEEDED for i in rounds)
        elif "dag" in component:
            good = self._group(node.execution, component["dag"]["tasks"], f"{path}/")
        else:
            node.phase = self._container(node, task, path)
            return node.phase
        if good:
            node.phase = SUCCEEDED
        return SUCCEEDED if good else FAILED

    def _container(self, node: Node, task: Json, path: str) -> str:
        """A step: from the cache, or its pods until one succeeds or none is tried again."""
        component, execution, inputs = self.spec.component(task), node.execution, node.inputs
        assert execution and inputs
        if task.get("cachingOptions", {}).get("enableCache"):
            execution.fingerprint = fingerprint(self.spec, task, inputs)
            if hit := self.cluster.metadata.cache.get((self.spec.name, execution.fingerprint)):
                execution.outputs, execution.made, execution.state = hit.outputs, hit.made, "CACHED"
                return SUCCEEDED  # whether its objects are still there is not looked at (driver/cache.go:56)
        container = self.spec.container(component)
        try:
            pod = pod_of(
                container,
                self.spec.kubernetes(component),
                inputs.values,
                self.id,
                self.cluster.held,
                self.cluster.plugin,
            )
        except DriverError as error:
            self.errors.append(str(error))
            return FAILED  # its execution stays RUNNING
        strategy, attempts = strategy_of(task, self.cluster.policy), list[Attempt]()
        while True:
            began = time.monotonic() + self.clock
            if "retryPolicy" in task:
                pod.environment["KFP_RETRY_INDEX"] = str(len(attempts))
            phase = self._pod(node, component, container, pod, path, len(attempts))
            attempts.append(Attempt(began, time.monotonic() + self.clock, phase))
            wait = None if self.terminated else wait_before_next(attempts, strategy)
            if wait is None:
                return phase
            self.clock += wait

    def _pod(self, node: Node, component: Json, container: Json, pod: Pod, path: str, attempt: int) -> str:
        execution, inputs = node.execution, node.inputs
        assert execution and inputs
        execution.state = "RUNNING"  # also where an earlier pod had FAILED (component/launcher_v2.go:343)
        number = sum(one == path for one in self.pods)
        self.pods.append(path)
        accident = next((a for a in self.accidents if a.step == execution.task and a.attempt == attempt), None)
        ended = self.launcher.run(f"{self.id}/{path}.{number}", component, container, pod, inputs, accident)
        self.logs[f"{path}.{number}"] = ended.log
        if ended.befell:
            self.accidents.remove(ended.befell)
            self.terminated = ended.befell.kind == "terminated"
            if ended.befell.kind != "killed":  # the launcher died with it and told nobody
                return ERROR if ended.befell.kind in ("deleted", "lost") else FAILED
        return self._told(execution, ended)

    def _told(self, execution: Execution, ended: Ended) -> str:
        """The launcher's last words: state, outputs, an entry in the cache, the count of the group."""
        execution.state = "COMPLETE" if ended.code == 0 else "FAILED"
        execution.outputs, execution.made = ended.values, ended.made
        if ended.code == 0 and execution.fingerprint:
            self.cluster.metadata.cache[self.spec.name, execution.fingerprint] = execution
        self.cluster.metadata.count(execution.parent)
        return SUCCEEDED if ended.code == 0 else FAILED

    def log(self, step: str) -> str:
        """All that the pods of a step printed."""
        return "\n".join(log for path, log in self.logs.items() if path.rpartition(".")[0].split("/")[-1] == step)

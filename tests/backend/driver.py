"""What the driver does before a task: resolve its inputs, check their types, decide its condition, key its cache."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from lfm.pipelines.compiled import Json, Spec, artifacts, as_json, as_value, kinds_of, parameters
from tests.backend.metadata import Artifact, Execution, Metadata

SELECTOR = re.compile(r'parseJson\(string_value\)((?:\["[^"]+"\])+)')


class DriverError(Exception):
    """The driver's pod fails: the task has no execution, nothing is counted, its group stays RUNNING."""


@dataclass
class Inputs:
    """Resolved inputs of a task."""

    values: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[Artifact]] = field(default_factory=dict)


@dataclass(frozen=True)
class Driver:
    """The driver of one run's tasks.

    Args:
        spec: the compiled file.
        metadata: where executions are found.
        run: id of the run.
    """

    spec: Spec
    metadata: Metadata
    run: str

    def resolve(self, group: Execution, name: str, task: Json, iteration: int | None = None) -> Inputs:
        """Inputs of a task, checked (driver/resolve.go:102-351).

        Raises:
            DriverError: an input is missing or has another type than the component says.
        """
        component = self.spec.component(task)
        if iteration is None:
            found = self._from_task(group, task, component)
        else:
            found = self._of_iteration(group, task, iteration)
        for key, wanted in task.get("inputs", {}).get("parameters", {}).items():
            if wanted.get("parameterExpressionSelector") and iteration is None:
                found.values[key] = select(found.values[key], wanted["parameterExpressionSelector"])
        skipped = self._not_there_yet(task, iteration)
        for key, wanted in parameters(component).items():
            if key not in skipped:
                self.check(name, key, wanted, found.values)
        return found

    def _from_task(self, group: Execution, task: Json, component: Json) -> Inputs:
        found, inputs = Inputs(), task.get("inputs", {})
        if "dag" in component:  # an optional input that is not given has its default here (resolve.go:306)
            for key, wanted in parameters(component).items():
                if key not in inputs.get("parameters", {}) and wanted.get("isOptional"):
                    found.values[key] = as_value(wanted.get("defaultValue"))
        for key, source in inputs.get("parameters", {}).items():
            value = self._parameter(group, task, source)
            if value is None and parameters(component).get(key, {}).get("isOptional"):
                continue
            literals = parameters(component).get(key, {}).get("literals", [])
            if literals and value not in as_value(literals):
                raise DriverError(f"{key}: {value!r} is none of {literals}")
            found.values[key] = value
        for key, source in inputs.get("artifacts", {}).items():
            found.artifacts[key] = self._artifacts(group, source)
        return found

    @staticmethod
    def _of_iteration(loop: Execution, task: Json, iteration: int) -> Inputs:
        """An iteration has its loop's inputs, and one item in place of all (driver/resolve.go:261-303)."""
        iterator = task["parameterIterator"]
        items = iterator["items"].get("inputParameter") or iterator["itemInput"]
        values = dict(loop.inputs)
        values[iterator["itemInput"]] = items_of(values.pop(items))[iteration]
        return Inputs(values, dict(loop.artifacts))

    @staticmethod
    def _not_there_yet(task: Json, iteration: int | None) -> tuple[str, ...]:
        """A loop has no item, an iteration no list (driver/resolve.go:174-185)."""
        iterator = task.get("parameterIterator")
        if not iterator:
            return ()
        return (iterator["itemInput"],) if iteration is None else (iterator["items"].get("inputParameter", ""),)

    @staticmethod
    def check(task: str, key: str, wanted: Json, values: dict[str, Any]) -> None:
        """A STRING takes anything as JSON text, no other type takes a string (driver/resolve.go:186-251)."""
        if key not in values:
            if wanted.get("isOptional") or "defaultValue" in wanted:
                return
            raise DriverError(f"{task}: neither value nor default value provided for non-optional parameter {key!r}")
        value, kind = values[key], wanted["parameterType"]
        if kind == "STRING":
            values[key] = as_text(value)
        elif value is None:
            if not wanted.get("isOptional"):
                raise DriverError(f"{task}: got null for input parameter {key!r}")
        elif kind not in kinds_of(value):
            raise DriverError(
                f"{task}: input parameter {key!r} type mismatch: expect {kind}, got {kinds_of(value)[0].lower()}"
            )

    def _parameter(self, group: Execution, task: Json, source: Json) -> Any:
        """The value of one input, before its type is looked at (driver/resolve.go:358-478)."""
        if "componentInputParameter" in source:
            key = source["componentInputParameter"]
            if key not in group.inputs:
                raise DriverError(f"parent DAG does not have input parameter {key}")
            return group.inputs[key]
        if "taskOutputParameter" in source:
            wanted = source["taskOutputParameter"]
            return self._output(group, wanted["producerTask"], wanted["outputParameterKey"], "parameters")
        if "taskFinalStatus" in source:
            return self.final_status(group, task)
        constant = source["runtimeValue"]["constant"]
        own = {"{{$.pipeline_job_uuid}}": self.run, "{{$.pipeline_job_name}}": self.run}
        return own[constant] if isinstance(constant, str) and constant in own else as_value(constant)

    def final_status(self, group: Execution, task: Json) -> Json:
        """The state of the first task that this one depends on, in ML Metadata's words (driver/resolve.go:434-475)."""
        producer = task["dependentTasks"][0]
        found = self.metadata.within(group).get((producer, None))
        if found is None:
            raise DriverError(f"producer task, {producer}, not in tasks")
        return {
            "state": found.state, "pipelineTaskName": producer, "pipelineJobResourceName": self.run, "error": {}
        }  # fmt: skip

    def _artifacts(self, group: Execution, source: Json) -> list[Artifact]:
        if "componentInputArtifact" in source:
            return group.artifacts[source["componentInputArtifact"]]
        wanted = source["taskOutputArtifact"]
        made = self._output(group, wanted["producerTask"], wanted["outputArtifactKey"], "artifacts")
        return made if isinstance(made, list) else [made]

    def _output(self, group: Execution, producer: str, key: str, kind: str) -> Any:
        """An output of a task, through groups down to a container (driver/resolve.go:561-687, 911-1020)."""
        found = self.metadata.within(group).get((producer, None))
        if found is None:
            raise DriverError(f"cannot find producer task {producer!r}")
        return self._of(found, key, kind)

    def _of(self, producer: Execution, key: str, kind: str) -> Any:
        if producer.loop:  # dsl.Collected: in the order of the items, lists in lists laid flat
            rounds = sorted(self.metadata.within(producer).items(), key=lambda item: item[0][1] or 0)
            collected = [self._of(one, key, kind) for _, one in rounds]
            return [one for part in collected for one in (part if isinstance(part, list) else [part])]
        if producer.dag is None:
            made: dict[str, Any] = producer.made if kind == "artifacts" else producer.outputs
            if key not in made:
                raise DriverError(f"cannot find output {key!r} in producer task {producer.task!r}")
            return made[key]
        return self._through(producer, producer.dag["outputs"][kind][key], kind)

    def _through(self, group: Execution, selector: Json, kind: str) -> Any:
        if kind == "artifacts":
            candidates = [(one["producerSubtask"], one["outputArtifactKey"]) for one in selector["artifactSelectors"]]
        elif "valueFromParameter" in selector:
            one = selector["valueFromParameter"]
            candidates = [(one["producerSubtask"], one["outputParameterKey"])]
        else:
            several = selector["valueFromOneof"]["parameterSelectors"]
            candidates = [(one["producerSubtask"], one["outputParameterKey"]) for one in several]
        there = self.metadata.within(group)
        for task, key in candidates:  # of dsl.OneOf, the branch that was taken
            if (task, None) in there and there[task, None].state != "CANCELED":
                return self._of(there[task, None], key, kind)
        raise DriverError(f"no task of {group.task} has made {candidates[0][1]}")


def as_text(value: Any) -> str:
    """What a STRING parameter makes of another value: JSON (metadata/converter.go:14)."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(as_json(value), separators=(",", ":"))


def items_of(value: Any) -> list[Any]:
    """The items of a loop: of a list, or of a text that is one in JSON (driver/util.go:101)."""
    if isinstance(value, str):
        value = as_value(json.loads(value))
    if not isinstance(value, list):
        raise DriverError(f"value of type {type(value).__name__} cannot be iterated")
    return value


def select(value: Any, selector: str) -> Any:
    """A field of an item, as in `item.name` (expression/expression.go:75)."""
    match = SELECTOR.fullmatch(selector)
    assert match, f"the model does not know the expression {selector}"
    found = as_value(json.loads(as_text(value)))
    for key in re.findall(r'\["([^"]+)"\]', match[1]):
        if key not in found:
            raise DriverError(f"evaluation of parameter expression selector {selector!r} failed: no such key")
        found = found[key]
    return found


def holds(condition: str, values: dict[str, Any]) -> bool:
    """Whether a task is triggered (expression/expression.go:119); the conditions are CEL, ours are Python's as well."""
    text = re.sub(r"inputs\.parameter_values\['([^']+)'\]", r"values['\1']", condition)
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
    names = {"values": values, "true": True, "false": False, "int": int, "double": float, "string": as_text}
    return bool(eval(text, {"__builtins__": {}}, names))


def fingerprint(spec: Spec, task: Json, inputs: Inputs) -> str:
    """The cache's key: inputs, artifact ids, outputs, command, image, claims (cacheutils/cache.go:151-229).

    Nothing else: no environment, no content of the image, no bytes of an artifact. It is asked for in the table of the
    same pipeline alone (driver/cache.go:126).
    """
    component = spec.component(task)
    container, claims = spec.container(component), spec.kubernetes(component).get("pvcMount", [])
    key = {
        "inputArtifactNames": {name: [one.id for one in many] for name, many in inputs.artifacts.items()},
        "inputParameterValues": inputs.values,
        "outputArtifactsSpec": {name: one["artifactType"] for name, one in outputs(component).items()},
        "outputParametersSpec": {
            name: one["parameterType"] for name, one in parameters(component, "outputDefinitions").items()
        },
        "cmdArgs": container["command"] + container["args"],
        "image": container["image"],
        "pvcNames": sorted({json.dumps(one["pvcNameParameter"], sort_keys=True) for one in claims}),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def outputs(component: Json) -> dict[str, Json]:
    """The artifacts that a component makes."""
    return artifacts(component, "outputDefinitions")

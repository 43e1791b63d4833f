"""A compiled pipeline: the pipeline specification and the platform specification of kfp-kubernetes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Json = dict[str, Any]
CHANNEL = re.compile(r"\$\.inputs\.parameters\['(.+?)'\]")
"""A parameter inside a setting of a pod (driver/util.go:41)."""

STRUCTS = ("STRUCT", "TASK_FINAL_STATUS", "TASK_CONFIG")
"""The types of a parameter that are dictionaries."""


class Place(NamedTuple):
    """A task in the file."""

    path: str
    """Names of the groups and of the task, joined by /."""
    dag: str
    """Component of the group that the task stands in; empty: the root."""
    task: Json


@dataclass(frozen=True)
class Spec:
    """Both documents of a compiled file."""

    pipeline: Json
    platform: Json

    @classmethod
    def read(cls, path: Path) -> "Spec":
        """The compiled file."""
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """The text of a compiled file; the second document is absent if no task has a setting of Kubernetes."""
        documents = list(yaml.load_all(text, yaml.CSafeLoader))
        return cls(documents[0], documents[1] if len(documents) > 1 else {})

    @property
    def name(self) -> str:
        """Name of the pipeline, which is part of every key of the cache."""
        return str(self.pipeline["pipelineInfo"]["name"])

    @property
    def root(self) -> Json:
        """The component of the whole pipeline."""
        root: Json = self.pipeline["root"]
        return root

    def component(self, task: Json) -> Json:
        """The component of a task."""
        found: Json = self.pipeline["components"][task["componentRef"]["name"]]
        return found

    def container(self, component: Json) -> Json:
        """Image, command, environment and resources of a component that is a container."""
        found: Json = self.pipeline["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        return found

    def kubernetes(self, component: Json) -> Json:
        """Settings of kfp-kubernetes for a component."""
        executors = self.platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        found: Json = executors.get("executors", {}).get(component["executorLabel"], {})
        return found

    def groups(self) -> Iterator[tuple[str, Json]]:
        """Every group of tasks: name of its component (empty: the root) and the component."""
        yield "", self.root
        yield from ((name, one) for name, one in self.pipeline["components"].items() if "dag" in one)

    def places(self, group: str = "", above: str = "") -> Iterator[Place]:
        """Every task, those of a group after the group."""
        component = self.pipeline["components"][group] if group else self.root
        for name, task in component["dag"]["tasks"].items():
            yield Place(above + name, group, task)
            if "dag" in self.component(task):
                yield from self.places(task["componentRef"]["name"], f"{above}{name}/")


def parameters(component: Json, way: str = "inputDefinitions") -> dict[str, Json]:
    """The parameters of a component by name; `way` may be outputDefinitions."""
    found: dict[str, Json] = component.get(way, {}).get("parameters", {})
    return found


def artifacts(component: Json, way: str = "inputDefinitions") -> dict[str, Json]:
    """The artifacts of a component by name; `way` may be outputDefinitions."""
    found: dict[str, Json] = component.get(way, {}).get("artifacts", {})
    return found


def as_value(value: Any) -> Any:
    """As a google.protobuf.Value: every number is a double."""
    if isinstance(value, dict):
        return {key: as_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_value(one) for one in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def as_json(value: Any) -> Any:
    """As Go's protojson writes it: a whole double without a point."""
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


def kinds_of(value: Any) -> tuple[str, ...]:
    """The types of a parameter that take a value."""
    if isinstance(value, bool):
        return ("BOOLEAN",)
    if isinstance(value, float):
        return ("NUMBER_DOUBLE", "NUMBER_INTEGER")
    if isinstance(value, str):
        return ("STRING",)
    return ("LIST",) if isinstance(value, list) else STRUCTS

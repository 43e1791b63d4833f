"""ML Metadata: executions with their states, artifacts, and when the state of a group is counted."""

from dataclasses import dataclass, field
from typing import Any

from lfm.pipelines.compiled import Json

DONE = ("COMPLETE", "CACHED", "CANCELED")


@dataclass
class Artifact:
    """An artifact and where its bytes are; `id` is what the cache knows it by."""

    id: int
    name: str
    uri: str
    type: Json
    metadata: Json

    def runtime(self) -> Json:
        """As the program of a step gets it."""
        return {"name": str(self.id), "uri": self.uri, "type": self.type, "metadata": self.metadata}


@dataclass
class Execution:
    """One run of a task or of a group."""

    id: int
    task: str
    parent: "Execution | None"
    inputs: dict[str, Any]
    artifacts: dict[str, list[Artifact]]
    expected: int | None = None
    """Of a group: how many tasks it has; of a loop: how many iterations. None: a container, or the root."""
    dag: Json | None = None
    """Of a group: its part of the file."""
    loop: bool = False
    iteration: int | None = None
    state: str = "RUNNING"
    fingerprint: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Artifact] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Names of the groups above and of the task, joined by /."""
        above = f"{self.parent.path}/" if self.parent and self.parent.task else ""
        return above + self.task + ("" if self.iteration is None else f"[{self.iteration}]")


@dataclass
class Metadata:
    """What outlives a run: executions, artifacts, and the cache's table."""

    executions: list[Execution] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    cache: dict[tuple[str, str], Execution] = field(default_factory=dict)
    """Pipeline and fingerprint -> the execution whose outputs are taken; the newest wins (cacheutils/cache.go:112)."""

    def begin(self, **fields: Any) -> Execution:
        """Begin an execution: RUNNING, before anything ran (metadata/client.go:647)."""
        self.executions.append(Execution(len(self.executions) + 1, **fields))
        return self.executions[-1]

    def artifact(self, name: str, uri: str, kind: Json, metadata: Json) -> Artifact:
        """Record an artifact."""
        self.artifacts.append(Artifact(len(self.artifacts) + 1, name, uri, kind, metadata))
        return self.artifacts[-1]

    def within(self, group: Execution) -> dict[tuple[str, int | None], Execution]:
        """Executions of a group by task and iteration; two of one name are an error (metadata/client.go:1053)."""
        found: dict[tuple[str, int | None], Execution] = {}
        for one in self.executions:
            if one.parent is group:
                key = (one.task, one.iteration)
                assert key not in found, f"two tasks have the same task name {key}"
                found[key] = one
        return found

    def count(self, group: Execution | None) -> None:
        """Count the state of a group and, if it ended, of those above it (metadata/client.go:800-878).

        A launcher calls this as it ends, and nothing else does (component/launcher_v2.go:219-230): not a driver, so
        not for an untaken branch or a step from the cache, and not a launcher that was killed. All done is COMPLETE,
        whatever failed before; else any that failed is FAILED; else nothing is written. The root has no count.
        """
        if group is None or group.expected is None:
            return
        states = [one.state for one in self.within(group).values()]
        if sum(state in DONE for state in states) == group.expected:
            group.state = "COMPLETE"
        elif "FAILED" in states:
            group.state = "FAILED"
        else:
            return
        self.count(group.parent)

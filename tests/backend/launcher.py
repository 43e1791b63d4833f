"""A step's program as a process, its artifacts in a bucket, what the launcher makes of its end."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lfm.pipelines.backend_rules import LONGEST_ARGUMENT
from lfm.pipelines.compiled import Json, as_json, as_value, parameters
from lfm.pipelines.fork_server import PREPARATION
from tests.backend.driver import Inputs
from tests.backend.metadata import Artifact, Metadata
from tests.backend.pod import Pod

SCHEME = "minio://"
ROOT = f"{SCHEME}mlpipeline/v2/artifacts"
FIRST_IMPORTED = ("torchvision", "transformers.models.bert.modeling_bert", "lfm.data.sources.custom")
"""What the first run in an LFM_HOME imports besides: nearly every run of a test is one."""
SECONDS_AFTER_TERM = 1.0
"""The launcher dies of SIGTERM, and the container ends a second later, whatever the grace period (seen)."""


@dataclass(frozen=True)
class Accident:
    """What befalls a step from outside.

    Args:
        step: name of its task.
        kind: `killed`, the program alone (no memory, a crash): the launcher says FAILED, the pod is Failed.
            `deleted`, the pod: the launcher says nothing, Error. `deadline`: likewise, but Failed. `terminated`: the
            whole run is.
        when: whether it is time, by what the program printed so far.
        number: the signal of `killed`.
        attempt: of the step's attempts, the one that is met.
    """

    step: str
    kind: str
    when: Callable[[str], bool]
    number: int = signal.SIGKILL
    attempt: int = 0


@dataclass
class Ended:
    """How a step's pod ended."""

    code: int
    """Exit code of the program; the launcher's own is 1 whatever this is (cmd/launcher-v2/main.go:59)."""
    log: str
    befell: Accident | None = None
    values: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Artifact] = field(default_factory=dict)


@dataclass
class Launcher:
    """Starts the programs of one run.

    Args:
        folder: for the pods.
        bucket: folder that stands for the bucket.
        metadata: where artifacts are recorded.
        base: environment of the image.
    """

    folder: Path
    bucket: Path
    metadata: Metadata
    base: Mapping[str, str]

    def run(
        self, place: str, component: Json, container: Json, pod: Pod, inputs: Inputs, accident: Accident | None
    ) -> Ended:
        """Download the inputs, run the program, upload the outputs (component/launcher_v2.go:399-470, 655-700).

        Args:
            place: names this pod and its outputs.
            component: component of the step.
            container: its command.
            pod: environment.
            inputs: resolved inputs.
            accident: what befalls it, if anything.
        """
        room = self.folder / place.replace("/", ".")
        room.mkdir(parents=True)
        for many in inputs.artifacts.values():
            for one in many:
                self._download(one.uri, room)
        asked = _executor_input(component, inputs, f"{ROOT}/{place}", room)
        text = json.dumps(asked)
        if len(text.encode()) >= LONGEST_ARGUMENT:
            return Ended(1, f"argument list too long: the executor input has {len(text):,} bytes")
        arguments = [text if one == "{{$}}" else one for one in container["args"]]
        ended = _program(container["command"][-1], arguments, {**self.base, **pod.environment}, room, accident)
        if ended.code == 0:
            self._collect(ended, component, asked, room)
        return ended

    def _download(self, uri: str, room: Path) -> None:
        """Copy the objects under a prefix; none is no error (objectstore/object_store.go:176-205)."""
        source = self.bucket / uri.removeprefix(SCHEME)
        if source.is_dir():
            shutil.copytree(source, _local(uri, room), dirs_exist_ok=True)
        elif source.is_file():
            _local(uri, room).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, _local(uri, room))

    def _collect(self, ended: Ended, component: Json, asked: Json, room: Path) -> None:
        """Take the outputs; a missing file of an artifact is no error (launcher_v2.go:489-520, 780-850)."""
        file = Path(asked["outputs"]["outputFile"])
        said = json.loads(file.read_text()) if file.exists() else {}
        ended.values = as_value(said.get("parameterValues", {}))
        for name, one in asked["outputs"].get("parameters", {}).items():
            if name not in ended.values:
                kind = parameters(component, "outputDefinitions")[name]["parameterType"]
                text = Path(one["outputFile"]).read_text()
                ended.values[name] = text if kind == "STRING" else as_value(json.loads(text))
        for name, many in asked["outputs"].get("artifacts", {}).items():
            (given,) = many["artifacts"]
            (told,) = said.get("artifacts", {}).get(name, many)["artifacts"]
            uri = told["uri"] or given["uri"]
            local, target = _local(uri, room), self.bucket / uri.removeprefix(SCHEME)
            if local.is_dir():
                shutil.copytree(local, target)
            elif local.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(local, target)
            ended.made[name] = self.metadata.artifact(name, uri, given["type"], told.get("metadata", {}))


def _local(uri: str, room: Path) -> Path:
    return room / "minio" / uri.removeprefix(SCHEME)


def _executor_input(component: Json, inputs: Inputs, root: str, room: Path) -> Json:
    """What the program is told (driver/driver.go:741-811)."""
    made: Json = component.get("outputDefinitions", {})
    given = {key: {"artifacts": [one.runtime() for one in many]} for key, many in inputs.artifacts.items()}
    asked = {
        name: {"artifacts": [{"name": name, "uri": f"{root}/{name}", "type": one["artifactType"], "metadata": {}}]}
        for name, one in made.get("artifacts", {}).items()
    }
    values = {name: {"outputFile": str(room / "outputs" / name)} for name in made.get("parameters", {})}
    outputs = {"artifacts": asked, "parameters": values, "outputFile": str(_local(root, room) / "output_metadata.json")}
    return {"inputs": {"parameterValues": as_json(inputs.values), "artifacts": given}, "outputs": outputs}


def _program(
    source: str, arguments: list[str], environment: dict[str, str], room: Path, accident: Accident | None
) -> Ended:
    """Run KFP's command in a fork of a process that has the imports, and let the accident befall it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PREPARATION, *FIRST_IMPORTED])
    log, (reader, writer) = room / "log.txt", context.Pipe(duplex=False)
    process = context.Process(target=_inside, args=(source, arguments, environment, str(room), writer))
    process.start()
    writer.close()
    reader.recv()  # it leads a group of its own from here on
    assert process.pid
    befell = None
    while process.is_alive():
        process.join(0.02)
        if accident and not befell and accident.when(log.read_text(errors="replace")):
            befell = accident
            _befall(process, accident)
    _kill(process.pid)  # what it left running ends with the container
    code = process.exitcode or 0
    return Ended(code if befell is None else code or 1, log.read_text(errors="replace"), befell)


def _befall(process: Any, accident: Accident) -> None:
    """SIGTERM to the whole group (emissary), SIGKILL a second later; or the kernel's signal to the program."""
    if accident.kind == "lost":
        _kill(process.pid)
    elif accident.kind != "killed":
        os.killpg(process.pid, signal.SIGTERM)
        process.join(SECONDS_AFTER_TERM)
        _kill(process.pid)
    else:
        os.kill(process.pid, accident.number)
    process.join()


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _inside(source: str, arguments: list[str], environment: dict[str, str], room: str, ready: Connection) -> None:
    """In the forked process: what `sh -ec 'write the source; python3 -m kfp.dsl.executor_main ...'` would do."""
    os.setsid()
    os.umask(0)  # as Argo's emissary leaves it (cmd/argoexec/commands/emissary.go, umask_linux.go)
    with (Path(room) / "log.txt").open("wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    ready.send(True)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment, HOME=room, _KFP_RUNTIME="true")
    os.chdir(room)
    tempfile.tempdir = None
    from kfp.dsl import executor_main
    from kfp.dsl.types import artifact_types

    # Where the launcher puts artifacts is / in a pod; here each pod has a folder of its own.
    artifact_types._MINIO_LOCAL_MOUNT_PREFIX = f"{room}/minio/"
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "ephemeral_component.py"
        program.write_text(source)
        sys.argv = ["executor_main", "--component_module_path", str(program), *arguments]
        executor_main.executor_main()

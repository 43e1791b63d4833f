"""What the pod of a step is given: image, environment, resources, mounts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lfm.pipelines.compiled import CHANNEL, Json
from tests.backend.driver import DriverError


class HangsError(Exception):
    """The pod is invalid, or a secret it must have is not there: it never starts and the run waits for ever (seen)."""


@dataclass
class Pod:
    """The pod of one step."""

    image: str
    environment: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)
    """Folder in the pod -> the claim."""
    seconds: int | None = None
    """After so long Argo ends it: SIGTERM, Failed."""
    security: Json = field(default_factory=dict)


def pod_of(
    container: Json,
    kubernetes: Json,
    inputs: Mapping[str, Any],
    run: str,
    held: Mapping[tuple[str, str], str],
    plugin: Mapping[str, str],
) -> Pod:
    """The pod of a step.

    Args:
        container: image, command, environment and resources in the file.
        kubernetes: the settings of kfp-kubernetes.
        inputs: the step's parameters.
        run: id of the run; a label of the pod.
        held: (name of a secret or config map, key) -> value.
        plugin: variables that KFP's MLflow plugin sets where injectUserEnvVars is on.

    Raises:
        DriverError: a resource is no quantity.
        HangsError: the pod cannot start.
    """
    pod = Pod(text_of(container["image"], inputs))
    if not pod.image:
        raise HangsError("the image has no name")
    _set_resources(pod, container.get("resources", {}), inputs)
    pod.mounts = {one["mountPath"]: one["pvcNameParameter"]["runtimeValue"]["constant"]
                  for one in kubernetes.get("pvcMount", [])}  # fmt: skip
    pod.seconds = int(kubernetes["activeDeadlineSeconds"]) if "activeDeadlineSeconds" in kubernetes else None
    pod.security = kubernetes.get("securityContext", {})
    pod.environment = {one["name"]: one["value"] for one in container.get("env", [])} | dict(plugin)
    for name, value in sorted(references(kubernetes, run, held).items()):
        if name in pod.environment:  # both are merged into one entry, which the API server refuses (seen)
            raise HangsError(f"env {name}: may not be specified when `value` is not empty")
        if value is not None:
            pod.environment[name] = value
    return pod


def text_of(setting: str, inputs: Mapping[str, Any]) -> str:
    """A setting that may be a parameter: GetStringValue, so a number is "" without a word (driver/resolve.go:818)."""
    match = CHANNEL.search(setting)
    if not match:
        return setting
    if match[1] not in inputs:
        raise DriverError(f"executorInput did not contain {match[1]}")
    value = inputs[match[1]]
    return value if isinstance(value, str) else ""


def _set_resources(pod: Pod, resources: Json, inputs: Mapping[str, Any]) -> None:
    """Memory and CPU must be quantities; GPUs without a number are left out (driver/driver.go:331-456)."""
    for kind in ("Memory", "Cpu"):
        for what, where in (("Limit", pod.limits), ("Request", pod.requests)):
            if setting := resources.get(f"resource{kind}{what}"):
                where[kind.lower()] = _quantity(text_of(setting, inputs))
            elif number := resources.get(f"{kind.lower()}{what}"):
                where[kind.lower()] = f"{number}G" if kind == "Memory" else str(number)
    if accelerator := resources.get("accelerator"):
        name = text_of(accelerator.get("resourceType") or accelerator.get("type", ""), inputs)
        count = text_of(accelerator.get("resourceCount") or str(accelerator.get("count", "")), inputs)
        if name and count:
            pod.limits[name] = _quantity(count)


def _quantity(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?([kMGTPE]i?|m)?", text):
        raise DriverError(f"{text!r}: quantities must match the regular expression")
    return text


def references(kubernetes: Json, run: str, held: Mapping[tuple[str, str], str]) -> dict[str, str | None]:
    """Variables from secrets, config maps and fields of the pod; None: optional and not there (driver/k8s.go).

    Raises:
        HangsError: one that is not optional is not there.
    """
    found: dict[str, str | None] = {}
    for source, name, key in (("secretAsEnv", "secretNameParameter", "secretKey"),
                              ("configMapAsEnv", "configMapNameParameter", "configMapKey")):  # fmt: skip
        for one in kubernetes.get(source, []):
            where = one[name]["runtimeValue"]["constant"]
            for pair in one["keyToEnv"]:
                value = held.get((where, pair[key]))
                if value is None and not one.get("optional"):
                    raise HangsError(f"CreateContainerConfigError: {where} has no key {pair[key]}")
                found[pair["envVar"]] = value
    for one in kubernetes.get("fieldPathAsEnv", []):
        found[one["name"]] = run if one["fieldPath"] == "metadata.labels['pipeline/runid']" else one["fieldPath"]
    return found

"""What a compiled file alone shows to be wrong on a KFP backend: each rule is a function that lists what breaks it.

`lfm compile`, `submit`, `upload` and `schedule` apply them all. Each names its source: a file of
github.com/kubeflow/pipelines at tag 2.17.0 (its Go code under backend/src/v2/), or of
github.com/argoproj/argo-workflows at v4.0.5, or "seen" for what was met on a real one of these versions.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from lfm.errors import InputError
from lfm.pipelines.compiled import CHANNEL, Json, Place, Spec, as_value, kinds_of, parameters

LARGEST_WORKFLOW = 1024 * 1024
"""Bytes of a workflow with the state of its nodes (workflow/packer/packer.go:15)."""
LONGEST_ARGUMENT = 128 * 1024
"""Bytes of one argument of a program on Linux (MAX_ARG_STRLEN); the executor input is one (driver/driver.go:297)."""
A_WORKFLOW, A_STEP, BESIDE_STEPS = 1.75, 5_750, 28_000
"""Bytes of a workflow without its state for each byte of the compiled pipeline; of a step in the packed state; of what
is there besides.

A workflow above the limit has the state of its nodes packed with gzip and base64, and is refused if it is above it
still. Seen: 564 KB for the nodes of a training, so every sweep of two is packed; then 23 KB for the four steps of a
configuration, 45 KB for the three steps outside the loop, groups and root, and 85 KB for the rest, of a file of 49 KB.
"""
A_CONFIGURATION, AN_ARTIFACT = 2_380, 500
"""Bytes of a configuration in a list and of an artifact in the executor input: 128 KiB at about 55 (seen)."""

MISSING = "missing"


def channels_are_there(spec: Spec) -> list[str]:
    """What an input reads is an input of its group or an output of a task of the same group.

    Else the driver fails: "parent DAG does not have input parameter" (driver/resolve.go:394). The SDK takes a parameter
    that only a setting of a pod reads to the task, but not into a group around it.
    """
    return [
        f"{place.path}: {name} reads {source['componentInputParameter']}, which its group does not have"
        for place in spec.places()
        for name, source in place.task.get("inputs", {}).get("parameters", {}).items()
        if "componentInputParameter" in source and _kinds(spec, place, source) == (MISSING,)
    ]


def types_agree(spec: Spec) -> list[str]:
    """Each input has the type of the channel that it reads: a backend converts nothing but to text.

    driver/resolve.go:186-251. The item of a loop over a task's list is STRING (SDK, for_loop.py), so a STRUCT input
    refuses it; an integer may be given where a double is asked for.
    """
    found = []
    for place in spec.places():
        for name, wanted in parameters(spec.component(place.task)).items():
            source = place.task.get("inputs", {}).get("parameters", {}).get(name)
            if source is None or "parameterExpressionSelector" in source or "taskFinalStatus" in source:
                continue
            kinds = _kinds(spec, place, source)
            ask = wanted["parameterType"]
            if ask not in kinds and not (ask == "NUMBER_DOUBLE" and "NUMBER_INTEGER" in kinds):
                found.append(f"{place.path}: {name} is {ask}, its channel {' or '.join(kinds)}")
        found += _loop(spec, place)
    return found


def _loop(spec: Spec, place: Place) -> list[str]:
    """What is looped over is a list."""
    items = place.task.get("parameterIterator", {}).get("items", {}).get("inputParameter")
    if items and parameters(spec.component(place.task))[items]["parameterType"] != "LIST":
        return [f"{place.path}: loops over {items}, which is no LIST"]
    return []


def _kinds(spec: Spec, place: Place, source: Json) -> tuple[str, ...]:
    """The types of what an input reads."""
    group = spec.pipeline["components"][place.dag] if place.dag else spec.root
    if "componentInputParameter" in source:
        given = parameters(group).get(source["componentInputParameter"], {})
        return (str(given.get("parameterType", MISSING)),)
    if "taskOutputParameter" in source:
        wanted = source["taskOutputParameter"]
        producer = spec.component(group["dag"]["tasks"][wanted["producerTask"]])
        return (str(parameters(producer, "outputDefinitions")[wanted["outputParameterKey"]]["parameterType"]),)
    return kinds_of(as_value(source["runtimeValue"]["constant"]))


def pod_settings_are_text(spec: Spec) -> list[str]:
    """A parameter in image or resources is a STRING: of a number GetStringValue makes "" (driver/resolve.go:818).

    GPUs are then not asked for without a word, CPU or memory fail the driver (driver/driver.go:331-456). In the value
    of an environment variable nothing is put in (driver/driver.go:291).
    """
    found = []
    for place, container in _containers(spec):
        settings = {"image": container["image"], **_flat(container.get("resources", {}))}
        for setting, text in settings.items():
            for name in CHANNEL.findall(str(text)):
                kinds = _kinds(spec, place, place.task["inputs"]["parameters"][name])
                if kinds != ("STRING",):
                    found.append(f"{place.path}: {setting} takes {name}, which is {kinds[0]}")
        for one in container.get("env", []):
            if CHANNEL.search(str(one.get("value", ""))):
                found.append(f"{place.path}: env {one['name']} holds a placeholder, which stays as it is")
    return found


def deadlines_cover_retries(spec: Spec) -> list[str]:
    """The longest wait is the total time of all attempts, and a retried pod is killed then (operator.go:1028, 1094).

    So backoffMaxDuration is at least (retries + 1) x the step's time limit, and the waits between.
    """
    found = []
    for place, _ in _containers(spec):
        retry = place.task.get("retryPolicy")
        limit = spec.kubernetes(spec.component(place.task)).get("activeDeadlineSeconds")
        if not retry or "backoffMaxDuration" not in retry:
            continue
        if limit is None:
            found.append(f"{place.path}: retries without a time limit")
            continue
        tries = int(retry.get("maxRetryCount", 0)) + 1
        if float(retry["backoffMaxDuration"].removesuffix("s")) < tries * float(limit):
            found.append(f"{place.path}: {retry['backoffMaxDuration']} for {tries} attempts of {limit} s")
    return found


def one_source_for_each_variable(spec: Spec, plugin: frozenset[str] = frozenset()) -> list[str]:
    """No variable has a value and a valueFrom, or two of either: the API server refuses the pod, the run hangs (seen).

    Args:
        spec: the compiled file.
        plugin: variables that KFP's MLflow plugin sets where injectUserEnvVars is on.
    """
    found = []
    for place, container in _containers(spec):
        kubernetes = spec.kubernetes(spec.component(place.task))
        names = [*plugin, *(one["name"] for one in container.get("env", []))]
        for kind in ("secretAsEnv", "configMapAsEnv"):
            names += [pair["envVar"] for one in kubernetes.get(kind, []) for pair in one["keyToEnv"]]
        names += [one["name"] for one in kubernetes.get("fieldPathAsEnv", [])]
        found += [f"{place.path}: {name} is set more than once" for name in sorted(set(names)) if names.count(name) > 1]
    return found


def runs_as_non_root(spec: Spec) -> list[str]:
    """Every step says runAsNonRoot: a user's container gets seccomp alone from KFP (driver/security_context.go:78).

    Without it a namespace that enforces Pod Security "restricted" refuses the pod (seen).
    """
    return [
        place.path
        for place, _ in _containers(spec)
        if not spec.kubernetes(spec.component(place.task)).get("securityContext", {}).get("runAsNonRoot")
    ]


def fits(spec: Spec) -> list[str]:
    """The workflow stays below 1 MiB, and what a step is told below 128 KiB, by the default values of the parameters.

    workflow/packer/packer.go:15; the executor input is one argument of a program (driver/driver.go:297), which Linux
    limits (MAX_ARG_STRLEN).
    """
    items = max((_leaves(one.get("defaultValue")) for one in parameters(spec.root).values()), default=0)
    steps = sum(items if "for-loop" in place.dag else 1 for place, _ in _containers(spec))
    file = len(json.dumps(spec.pipeline)) + len(json.dumps(spec.platform))
    whole = round(A_WORKFLOW * file) + BESIDE_STEPS + steps * A_STEP
    found = [f"the workflow has some {whole:,} bytes of {LARGEST_WORKFLOW:,}"] if whole > LARGEST_WORKFLOW else []
    for place, container in _containers(spec):
        component = spec.component(place.task)
        lists = sum(one["parameterType"] == "LIST" for one in parameters(component).values())
        collected = sum(
            one.get("isArtifactList", False)
            for one in component.get("inputDefinitions", {}).get("artifacts", {}).values()
        )
        told = items * (lists * A_CONFIGURATION + collected * AN_ARTIFACT)
        longest = max(told, *(len(str(one)) for one in (*container["command"], *container["args"])))
        if longest > LONGEST_ARGUMENT:
            found.append(f"{place.path} is told some {longest:,} bytes of {LONGEST_ARGUMENT:,}")
    return found


def _leaves(value: Any) -> int:
    """Entries of a list, those of lists in it counted one by one; of anything else 0."""
    if not isinstance(value, list):
        return 0
    return sum(_leaves(one) if isinstance(one, list) else 1 for one in value)


def _containers(spec: Spec) -> Iterator[tuple[Place, Json]]:
    for place in spec.places():
        component = spec.component(place.task)
        if "executorLabel" in component:
            yield place, spec.container(component)


def _flat(values: Json, above: str = "") -> Json:
    found: Json = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


RULES: tuple[Callable[[Spec], list[str]], ...] = (
    channels_are_there,
    types_agree,
    pod_settings_are_text,
    deadlines_cover_retries,
    one_source_for_each_variable,
    runs_as_non_root,
    fits,
)


def check(spec: Spec) -> None:
    """Refuse a compiled pipeline that a backend would refuse, or run otherwise than meant.

    Raises:
        InputError: It breaks a rule; the first of what breaks it is named.
    """
    for rule in RULES:
        if found := rule(spec):
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise InputError(f"{spec.name} would not run on KFP: {found[0]}{more}; {REMEDIES.get(rule, OURS)}")


OURS = "this is a mistake of LFM's, not of yours: report it with the command"
REMEDIES: dict[Callable[[Spec], list[str]], str] = {
    one_source_for_each_variable: "name each variable once in the cluster's file; the steps set LFM_HOME, "
    "LFM_SHARED_HOME, LFM_PIPELINE_RUN, LFM_ACCELERATOR and LFM_IMAGE themselves",
    fits: "give fewer configurations; lfm sweep --runner kfp makes several runs of many",
}
"""Rule -> what a person can do who broke it; the others only LFM itself can break."""

"""What may leave the exit handler without the state of the steps, as the compiled file shows it."""

import json

from lfm.pipelines.compiled import Json, Spec


def ends_with_a_launcher(spec: Spec) -> list[str]:
    """The last tasks of a group are steps that run: the group's state is counted as a launcher ends, never else.

    metadata/client.go:800, component/launcher_v2.go:219. An untaken dsl.If, or a step from the cache, at the end
    leaves RUNNING for the exit handler.
    """
    found = []
    for name, component in spec.groups():
        tasks = {
            key: task for key, task in component["dag"]["tasks"].items() if "taskFinalStatus" not in json.dumps(task)
        }
        if not name:
            continue  # nothing asks for the state of the root
        needed = {one for task in tasks.values() for one in task.get("dependentTasks", [])}
        for key in sorted(set(tasks) - needed):
            why = _may_have_no_launcher(spec, tasks[key], name)
            found += [f"{name}: {key} {why}"] if why else []
    return found


def _may_have_no_launcher(spec: Spec, task: Json, group: str) -> str:
    if task.get("cachingOptions", {}).get("enableCache"):
        return "may come from the cache"
    # Inside condition-branches the branches shut each other out; whether one is taken is its last one's condition.
    if "condition" in task.get("triggerPolicy", {}) and not group.startswith("comp-condition-branches"):
        return "may not be taken"
    return ""

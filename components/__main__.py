"""Write docs/components.md, the list of the components, by `python -m lfm.components`."""

import sys
from pathlib import Path
from typing import Any

from lfm.components import begin, control, steps
from lfm.components.resources import STEPS, request
from lfm.config.presets import load

SHOWN = ("fashion-mnist-lt", "cifar100-lt", "imagenet-lt")
TARGET = Path(__file__).resolve().parents[1] / "docs" / "components.md"


def listing() -> str:
    """Every component with its inputs, outputs and resources, as Markdown."""
    lines = [
        "# Components",
        "",
        "Written by `make components`. `docs/pipelines.md` says how a cluster's settings change the resources.",
    ]
    found = {
        c.name: c for module in (begin, steps, control) for c in vars(module).values() if hasattr(c, "component_spec")
    }
    assert found.keys() == STEPS.keys()
    for name, step in STEPS.items():
        spec = found[name].component_spec
        about = (spec.description or "").strip().splitlines()[0]
        lines += ["", f"## {name}", "", about, ""]
        lines += ["| | name | type | what |", "|---|---|---|---|"]
        lines += _rows("in", spec.inputs) + _rows("out", spec.outputs)
        gpu = "; the GPUs of the run" if step.gpu else ""
        lines += ["", f"Time limit {step.hours:g} h; {step.retries} retries{gpu}."]
    return "\n".join([*lines, *_requests()]) + "\n"


def _requests() -> list[str]:
    """What the steps of some presets request, on nodes with a GPU and 8 GiB of shared memory, and without."""
    lines = ["", "## Requests", "", "CPU cores and memory, without a GPU / with one. By `components/resources.py`.", ""]
    lines += [f"| | {' | '.join(SHOWN)} |", f"|---|{'---|' * len(SHOWN)}"]
    configs = [load(preset) for preset in SHOWN]
    for name, step in STEPS.items():
        cells = []
        for config in configs:
            without = request(name, [config], gpus=False)
            with_one = request(name, [config], gpus=True, shared_memory=8.0 if step.gpu else 0.0)
            both = dict.fromkeys(f"{asked.cpu}, {asked.memory}" for asked in (without, with_one))
            cells.append(" / ".join(both))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _rows(way: str, channels: dict[str, Any] | None) -> list[str]:
    return [
        f"| {way} | `{name}` | {_kind(channel)} | {' '.join((channel.description or '').split())} |"
        for name, channel in (channels or {}).items()
    ]


def _kind(channel: Any) -> str:
    kind = str(channel.type).rpartition("@")[0] or str(channel.type)
    kind = kind.removeprefix("system.")
    return f"list of {kind}" if getattr(channel, "is_artifact_list", False) else kind


if __name__ == "__main__":
    TARGET.write_text(listing())
    sys.stdout.write(f"wrote {TARGET}\n")

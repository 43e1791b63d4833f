"""Write docs/components.md, the list of the components, by `python -m lfm.components`."""

import sys
from pathlib import Path
from typing import Any

from lfm.components import begin, control, steps
from lfm.components.resources import RESOURCES

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
    assert found.keys() == RESOURCES.keys()
    for name, resources in RESOURCES.items():
        spec = found[name].component_spec
        about = (spec.description or "").strip().splitlines()[0]
        lines += ["", f"## {name}", "", about, ""]
        lines += ["| | name | type | what |", "|---|---|---|---|"]
        lines += _rows("in", spec.inputs) + _rows("out", spec.outputs)
        gpu = ", the GPUs of the run" if resources.gpu else ""
        lines += [
            "",
            f"{resources.cpu} CPU, {resources.memory}{gpu}; time limit {resources.hours:g} h; "
            f"{resources.retries} retries.",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


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

"""A configuration to change."""

from typing import Any

from lfm.config.overrides import apply_overrides
from lfm.config.schema import RunConfig, Section

BASE = RunConfig(preset="test")
SECTIONS = [name for name, value in BASE if isinstance(value, Section)]


def changed(**values: Any) -> RunConfig:
    """The base with `section__field=value` applied."""
    return apply_overrides(BASE, {name.replace("__", "."): value for name, value in values.items()})

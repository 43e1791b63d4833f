"""`--set NAME=VALUE`: fields of a configuration replaced by name."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import yaml
from pydantic import ValidationError

from lfm.config.schema import DataConfig, RunConfig, Section
from lfm.errors import InputError, unknown

# Where the authors' released code differs from the paper's text (docs/method.md): for every run, and for each mixup.
# MMS, LDAM and the thresholds of Remix carry the same numbers in both, so they do not appear.
CODE_VALUES: dict[str, Any] = {
    "mixup.lambda_per": "batch",
    "shots.few": 21,
    "loss.focal_gamma": 0.0,
    "stage1.cosine": "epoch",
    "stage2.cosine": "epoch",
}
CODE_MIXUPS: dict[str, dict[str, Any]] = {
    "mixup": {"mixup.beta": 1.0},
    "remix": {"mixup.beta": 0.5, "mixup.remix_branches": "swapped"},
    "lfm": {"mixup.beta": 0.2, "mixup.partner_image": "until-used-up"},
}


OF_SUBSETS = ("imbalance", "max_per_class")
"""Fields of the data that are without effect where all images are taken (data.profile=as-is)."""


def code_values(mixup: str) -> dict[str, Any]:
    """What `fidelity: code` sets, dotted field name -> value.

    Args:
        mixup: name of the mixup.
    """
    return CODE_VALUES | CODE_MIXUPS.get(mixup, {})


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """`["stage1.epochs=3"]` -> `{"stage1.epochs": 3}`; values are read as YAML scalars or lists.

    Raises:
        InputError: an item without `=`, or a value that is not YAML.
    """
    overrides = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InputError(f"--set {item!r} is not NAME=VALUE; write it like --set stage1.epochs=3")
        try:
            overrides[name.strip()] = _yaml_value(value)
        except yaml.YAMLError as error:
            raise InputError(
                f'--set {item!r}: the value is not valid YAML; put texts in quotes, a list as ["one", "two"]'
            ) from error
    return overrides


def _yaml_value(text: str) -> Any:
    if not text:  # data.source= empties the field; YAML would say null
        return ""
    value = yaml.safe_load(text)
    if isinstance(value, dict):  # no field takes a table: `{}` is the place of a class name
        return text
    if isinstance(value, str):  # YAML 1.1 reads 2e-3 as text; people mean the number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def apply_overrides(base: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The base with some fields replaced, `fidelity: code` filled in, and everything checked again.

    Args:
        base: Checked configuration, normally a preset's.
        overrides: New values by dotted field name.

    Raises:
        InputError: an unknown field (the nearest valid name is given) or a bad value.
    """
    values = base.model_dump()
    if overrides.get("fidelity", base.fidelity) == "code":
        overrides = {**code_values(overrides.get("mixup.name", base.mixup.name)), **overrides}
    if overrides.get("data.profile") == "as-is":  # what the preset says of its subset goes with the subset
        overrides = {f"data.{name}": DataConfig.model_fields[name].default for name in OF_SUBSETS} | dict(overrides)
    for name, value in overrides.items():
        if name == "preset":
            raise InputError("preset is not a field to set; name another preset instead")
        _put(values, name, value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(cast("dict[str, Any]", item)) for item in error.errors())) from error


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *path, leaf = name.split(".")
    section: Any = values
    for part in path:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or leaf not in section:
        raise unknown("config field", name, field_names())
    if isinstance(section[leaf], dict):
        raise InputError(
            f"{name} is a section; set one of its fields: {', '.join(f'{name}.{k}' for k in section[leaf])}"
        )
    section[leaf] = value


def _explain(item: dict[str, Any]) -> str:
    # A union's location also names the alternative that failed: alpha.float, alpha.literal['auto'].
    fields = [
        str(part)
        for part in item["loc"]
        if str(part) not in ("float", "int", "constrained-int") and "[" not in str(part)
    ]
    name = ".".join(fields)
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    given = "" if item["type"] == "value_error" else f" = {item['input']!r}:"
    return f"{name}{given or ':'} {message}"


def field_names() -> list[str]:
    """All dotted names that `--set` takes."""
    names: list[str] = []
    for name, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            names += [f"{name}.{sub}" for sub in kind.model_fields]
        elif name != "preset":
            names.append(name)
    return names


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value, in the order of the declaration."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat

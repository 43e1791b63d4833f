"""What Kubernetes takes for the values of a cluster file: each kind of value is a type that says what is wrong.

A name that Kubernetes refuses is found by it only when a run's first pod is made, hours after a schedule was.
"""

import re
from collections.abc import Callable, Hashable
from pathlib import PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator

_WORD = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_HOST = r"([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_REPOSITORY = r"[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_UNITS = {"": 1, **{f"{unit}i": 1024**n for n, unit in enumerate("KMGTPE", 1)}} | {
    unit: 1000**n for n, unit in enumerate("KMGTPE", 1)
}
SMALLEST = 1024**2
"""Bytes under which a quantity of memory lacks its unit."""


def _like(pattern: str, rule: str, longest: int = 253) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value) or len(value) > longest:
            raise ValueError(f"{value!r} {rule}")
        return value

    return check


def _image(value: str) -> str:
    """By the grammar of github.com/distribution/reference."""
    rest, _, digest = value.partition("@")
    place, colon, tag = rest.rpartition(":") if ":" in rest.rpartition("/")[2] else (rest, "", "")
    host = rf"({_HOST}(:[0-9]+)?/)?"
    if (
        not re.fullmatch(rf"{host}{_REPOSITORY}(/{_REPOSITORY})*", place)
        or (colon and not re.fullmatch(r"\w[\w.-]{0,127}", tag, re.ASCII))
        or ("@" in value and not re.fullmatch(r"[a-z][a-z0-9+._-]*:[0-9a-fA-F]{32,}", digest))
    ):
        raise ValueError(
            f"{value!r} is no name of an image; write [HOST[:PORT]/]NAME:TAG or NAME@sha256:DIGEST, the name in small "
            f"letters and without a scheme, as in registry.example/lfm:abc"
        )
    return value


def _memory(value: str) -> str:
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTPE]i?)?", value)
    if number is None:
        raise ValueError(f"{value!r} is no amount of memory; write a number with its unit, as in 32Gi")
    if float(number[1]) * _UNITS[number[2] or ""] < SMALLEST:
        raise ValueError(f"{value!r} is less than a megabyte of memory; write a number with its unit, as in 32Gi")
    return value


def _cpu(value: str) -> str:
    number = re.fullmatch(r"(\d+)m|(\d+(?:\.\d+)?)", value)
    if number is None or not float(number[1] or number[2]):
        raise ValueError(f"{value!r} is no number of CPU cores above 0; write it as in 8 or 500m")
    return value


def _folder(value: str) -> str:
    if not PurePosixPath(value).is_absolute() or ":" in value or ".." in PurePosixPath(value).parts or value == "/":
        raise ValueError(f"{value!r} is no folder of a pod; write an absolute path without ':' and '..', as in /data")
    return value


_name = _like(
    rf"{_WORD}(\.{_WORD})*",
    "is no name in Kubernetes: small letters, digits, - and . alone, a letter or digit at both ends; copy it from "
    "kubectl get",
)
Name = Annotated[str, AfterValidator(_name)]
"""Of a secret, a config map, a service account or a volume claim."""
NameOrNone = Annotated[str, AfterValidator(lambda value: value and _name(value))]
Key = Annotated[
    str, AfterValidator(_like(r"[-._A-Za-z0-9]+", "is no key of a secret or config map: letters, digits, -, _, ."))
]
Variable = Annotated[
    str,
    AfterValidator(
        _like(r"[A-Za-z_][A-Za-z0-9_]*", "is no name of a variable: letters, digits and _, no digit first", 10**4)
    ),
]
_LABEL = rf"({_WORD}(\.{_WORD})*/)?[A-Za-z0-9]([-._A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
LabelKey = Annotated[
    str, AfterValidator(_like(_LABEL, "is no key of a label: [DOMAIN/]NAME of letters, digits, -, _, ., at most 63"))
]
LabelValue = Annotated[
    str,
    AfterValidator(
        _like(
            r"([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?",
            "is no value of a label: at most 63 letters, digits, -, _, ., a letter or digit at both ends",
            63,
        )
    ),
]
Accelerator = Annotated[
    str,
    AfterValidator(
        _like(
            rf"|{_WORD}(\.{_WORD})*/[A-Za-z0-9]([-._A-Za-z0-9]{{0,61}}[A-Za-z0-9])?",
            "is no resource of a node; write DOMAIN/NAME as kubectl describe node shows it, as in nvidia.com/gpu",
        )
    ),
]
Image = Annotated[str, AfterValidator(_image)]
Cpu = Annotated[str, AfterValidator(_cpu)]
Memory = Annotated[str, AfterValidator(_memory)]
"""A quantity that both KFP and Kubernetes read."""
MemoryOrNone = Annotated[str, AfterValidator(lambda value: value and _memory(value))]
Folder = Annotated[str, AfterValidator(_folder)]


class _Once(yaml.SafeLoader):
    """Reads a mapping whose keys are there once: YAML itself takes the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise ValueError(f"line {line}: {key} is there twice; leave one of the two out")
            if value_node.tag == "tag:yaml.org,2002:null":
                raise ValueError(f"line {line}: {key} has no value; write one, or leave the line out")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The content of a YAML file.

    Raises:
        yaml.YAMLError: It is no YAML.
        ValueError: A key is there twice, or has no value.
    """
    return yaml.load(text, _Once)  # noqa: S506  a SafeLoader

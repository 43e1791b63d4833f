"""What a cluster is like: read from a YAML file when a pipeline is compiled, never in a local run."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from lfm.config.schema import Section
from lfm.errors import InputError
from lfm.revision import image


class Toleration(Section):
    """A taint that the pods of training steps put up with."""

    key: str
    """Of the taint, as in nvidia.com/gpu."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists, or Equal to `value`."""
    value: str | None = None
    """Of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Of the taint."""


class FromKeys(Section):
    """A secret or a config map whose keys become environment variables."""

    name: str
    """Of the secret or config map, in the namespace of the pipelines."""
    keys: dict[str, str]
    """Key -> environment variable."""
    optional: bool = True
    """A pod starts without it too."""


class Volume(Section):
    """A persistent volume claim that every step mounts."""

    name: str
    """Of the claim."""
    path: str
    """Where it is mounted."""


class StepSize(Section):
    """Replaces parts of what `components/resources.py` asks for a step."""

    cpu: str | None = None
    """Cores, as in 8 or 500m."""
    memory: str | None = None
    """As in 32Gi."""
    hours: float | None = Field(None, gt=0)
    """After which the step is ended."""
    retries: int | None = Field(None, ge=0)
    """After a failure or a lost node."""


class ClusterSettings(Section):
    """Where and how the steps run. Every field has a default that a plain Kubeflow takes."""

    image: str = Field(default_factory=image)
    """Container image of all steps; its tag should change with the code, for KFP's cache looks at nothing else."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes fetch the image."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of secrets for a private registry."""
    accelerator: str = ""
    """Resource name of GPUs, as in nvidia.com/gpu; empty: none are asked for. How many is in the run form."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that training and evaluation go to."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that training and evaluation put up with."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm in training and evaluation; Kubernetes gives 64 MB. Empty: leave it so."""
    secrets: tuple[FromKeys, ...] = ()
    """Credentials of MLflow and S3."""
    config_maps: tuple[FromKeys, ...] = ()
    """Endpoints of MLflow and S3."""
    home: Volume | None = None
    """Volume for LFM_HOME: data, finished steps and checkpoints then outlive a pod, and steps share them. Without it
    a retried step begins anew."""
    environment: dict[str, str] = Field(default_factory=dict)
    """More variables of every step."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of every pod."""
    backoff_seconds: int = Field(60, ge=0)
    """Wait before the first retry; doubled each time, an hour at most."""
    parallelism: int = Field(4, ge=1)
    """Configurations of a sweep that run at a time."""
    steps: dict[str, StepSize] = Field(default_factory=dict)
    """Component name, as in train-stage1 -> what it needs instead."""


def read_settings(path: Path | None, image: str = "") -> ClusterSettings:
    """Settings of a cluster.

    Args:
        path: YAML file; None: the defaults.
        image: instead of the file's.

    Raises:
        InputError: the file is missing or no YAML, or a field is unknown or bad.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
            raise InputError(f"--cluster {path} cannot be read: {why}") from error
        if not isinstance(values, dict):
            raise InputError(f"--cluster {path} holds no settings; write NAME: VALUE lines (docs/pipelines.md)")
    from lfm.components.resources import NEEDS

    try:
        settings = ClusterSettings.model_validate(values | ({"image": image} if image else {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"--cluster {path}: {place}: {first['msg']}; docs/pipelines.md lists the fields") from error
    strange = settings.steps.keys() - NEEDS
    if strange:
        raise InputError(f"--cluster {path}: steps: no component {min(strange)!r}; known: {', '.join(NEEDS)}")
    return settings

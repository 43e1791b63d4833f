"""Settings of a cluster, read from a YAML file when a pipeline is compiled. A local run has none."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from lfm.config.schema import Section
from lfm.errors import InputError
from lfm.revision import image

CPU = r"^(\d+m|\d+(\.\d+)?)$"
MEMORY = r"^\d+(\.\d+)?([KMGTPE]i?)?$"
"""Quantities that both KFP and Kubernetes read."""


class Toleration(Section):
    """A taint that the pods of training and evaluation tolerate."""

    key: str
    """Key of the taint, as in nvidia.com/gpu."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the taint must exist with any value, or equal `value`."""
    value: str | None = None
    """Value of the taint, for the operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""


class FromKeys(Section):
    """A secret or a config map whose keys become environment variables."""

    name: str
    """Name of the secret or config map, in the namespace of the pipelines."""
    keys: dict[str, str]
    """Key -> environment variable."""
    optional: bool = True
    """Whether a pod starts if it does not exist."""


class Volume(Section):
    """A persistent volume claim that every step mounts."""

    name: str
    """Name of the claim."""
    path: str
    """Folder in the pod that it is mounted at."""


class StepResources(Section):
    """Resources of one step, in place of those in `components/resources.py`."""

    cpu: str | None = Field(None, pattern=CPU)
    """CPU cores, as in 8 or 500m."""
    memory: str | None = Field(None, pattern=MEMORY)
    """Memory, as in 32Gi."""
    hours: float | None = Field(None, gt=0)
    """Time limit of the step."""
    retries: int | None = Field(None, ge=0)
    """Attempts after a failure or a lost node."""


class ClusterSettings(Section):
    """Where and how the steps run. The defaults work on a Kubeflow without further setup."""

    image: str = Field(default_factory=image)
    """Container image of all steps; its tag should change with the code, because KFP's cache compares only the tag."""
    service_account: str = ""
    """Who the steps are in the cluster; empty: whom Kubeflow Pipelines chooses, `pipeline-runner`."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes fetch the image."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of secrets for a private registry."""
    accelerator: str = ""
    """Resource name of GPUs, as in nvidia.com/gpu; empty: no GPUs are requested. Their number is the run parameter
    `gpus`."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for training and evaluation."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that training and evaluation tolerate."""
    shared_memory: str = Field("8Gi", pattern=f"^$|{MEMORY}")
    """Size of /dev/shm in training and evaluation; empty: the 64 MB that Kubernetes gives."""
    secrets: tuple[FromKeys, ...] = ()
    """Credentials of MLflow and S3."""
    config_maps: tuple[FromKeys, ...] = ()
    """Endpoints of MLflow and S3."""
    home: Volume | None = None
    """Volume for LFM_HOME: data, finished steps and checkpoints then outlive a pod, and steps share them. Without it
    a retried step starts from the beginning."""
    mlflow_plugin: bool = False
    """Whether KFP's own MLflow plugin gives the steps their MLFLOW_ variables (`injectUserEnvVars`). Then none may be
    named here: a variable that is given twice makes every pod invalid, and the run hangs."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of every step."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of every pod."""
    backoff_seconds: int = Field(60, ge=0)
    """Wait before the first retry, in seconds; doubled for each further retry, up to an hour."""
    parallelism: int = Field(4, ge=1)
    """Configurations of a sweep that run at the same time."""
    steps: dict[str, StepResources] = Field(default_factory=dict)
    """Component name, as in train-stage1 -> its resources."""


def read_settings(path: Path | None, image: str = "") -> ClusterSettings:
    """Settings of a cluster.

    Args:
        path: YAML file; None: the defaults.
        image: Container image in place of the file's; empty: the file's.

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
            raise InputError(f"--cluster {path} has no settings; write NAME: VALUE lines (docs/pipelines.md)")
    from lfm.components.resources import STEPS

    try:
        settings = ClusterSettings.model_validate(values | ({"image": image} if image else {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"--cluster {path}: {field}: {first['msg']}; docs/pipelines.md lists the fields") from error
    named = [
        *settings.environment,
        *(v for one in (*settings.secrets, *settings.config_maps) for v in one.keys.values()),
    ]
    ours = [variable for variable in named if variable.startswith("MLFLOW_")]
    if settings.mlflow_plugin and ours:
        raise InputError(
            f"--cluster {path}: mlflow_plugin is on, so KFP gives the steps their MLflow variables, and {ours[0]} is "
            f"named here too, which makes every pod invalid; leave out one of the two"
        )
    unknown = settings.steps.keys() - STEPS
    if unknown:
        raise InputError(f"--cluster {path}: steps: no component {min(unknown)!r}; known: {', '.join(STEPS)}")
    return settings

"""Settings of a cluster, read from a YAML file when a pipeline is compiled. A local run has none."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from lfm.config.schema import RunConfig, Section
from lfm.errors import InputError
from lfm.pipelines.kubernetes_values import (
    Accelerator,
    Cpu,
    Folder,
    Image,
    Key,
    LabelKey,
    LabelValue,
    Memory,
    MemoryOrNone,
    Name,
    NameOrNone,
    Variable,
    read_yaml,
)
from lfm.revision import image
from lfm.storage.s3 import is_remote

RELATIVE = "is relative to this folder, and the pods of a cluster do not have it"
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")
"""Endings of model.weights that name a file, not a tag."""


class Toleration(Section):
    """A taint that the pods of training and evaluation tolerate."""

    key: LabelKey
    """Key of the taint, as in nvidia.com/gpu."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the taint must exist with any value, or equal `value`."""
    value: LabelValue | None = None
    """Value of the taint, for the operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""

    @model_validator(mode="after")
    def _value_for_equal_alone(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            wrong = "Equal needs a value" if self.operator == "Equal" else "Exists takes no value"
            raise ValueError(f"the operator {wrong}; write operator: Equal with a value, or Exists without one")
        return self


class FromKeys(Section):
    """A secret or a config map whose keys become environment variables."""

    name: Name
    """Name of the secret or config map, in the namespace of the pipelines."""
    keys: dict[Key, Variable] = Field(min_length=1)
    """Key -> environment variable."""
    optional: bool = True
    """Whether a pod starts if it does not exist."""


class Volume(Section):
    """A persistent volume claim that every step mounts."""

    name: Name
    """Name of the claim."""
    path: Folder
    """Folder in the pod that it is mounted at."""


class StepResources(Section):
    """Resources of one step, in place of those in `components/resources.py`."""

    cpu: Cpu | None = None
    """CPU cores, as in 8 or 500m."""
    memory: Memory | None = None
    """Memory, as in 32Gi."""
    hours: float | None = Field(None, gt=0)
    """Time limit of the step."""
    retries: int | None = Field(None, ge=0)
    """Attempts after a failure or a lost node."""


class ClusterSettings(Section):
    """Where and how the steps run. The defaults work on a Kubeflow without further setup."""

    image: Image = Field(default_factory=image, validate_default=True)
    """Container image of all steps; its tag should change with the code, because KFP's cache compares only the tag."""
    service_account: NameOrNone = ""
    """Who the steps are in the cluster; empty: whom Kubeflow Pipelines chooses, `pipeline-runner`."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes fetch the image."""
    image_pull_secrets: tuple[Name, ...] = ()
    """Names of secrets for a private registry."""
    accelerator: Accelerator = ""
    """Resource name of GPUs, as in nvidia.com/gpu; empty: no GPUs are requested. Their number is the run parameter
    `gpus`."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes for training and evaluation."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that training and evaluation tolerate."""
    shared_memory: MemoryOrNone = "8Gi"
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
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Further environment variables of every step."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
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
            values = read_yaml(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
            raise InputError(f"--cluster {path} cannot be read: {why}") from error
        except ValueError as error:
            raise InputError(f"--cluster {path}, {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"--cluster {path} has no settings; write NAME: VALUE lines (docs/pipelines.md)")
    from lfm.components.resources import STEPS

    try:
        settings = ClusterSettings.model_validate(values | ({"image": image} if image else {}))
    except ValidationError as error:
        raise InputError(_refusal(error, path, image)) from error
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


def _refusal(error: ValidationError, path: Path | None, image: str) -> str:
    """What is wrong with the first bad field, and where it stands."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    where = f"--cluster {path}: {field}" if path else field
    if field == "image" and (image or path is None):
        where = "--image" if image else "LFM_IMAGE"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}; docs/pipelines.md lists the fields"


def check_places(config: RunConfig) -> None:
    """Check that the places which a configuration names can be found by a pod.

    Raises:
        InputError: One is relative: a pod would look for it in a folder of its image.
    """
    places = {
        "data.source": config.data.source,
        "data.images": config.data.images,
        "data.class_names": config.data.class_names,
        "text.descriptions": config.text.descriptions,
        "model.weights": config.model.weights if config.model.weights.endswith(CHECKPOINTS) else "",
        "model.tower": config.model.tower if config.model.tower.endswith(".json") else "",
    }
    for field, place in places.items():
        if place and not is_remote(place) and not Path(place).is_absolute():
            raise InputError(
                f"{field}: {place} {RELATIVE}; write an absolute path on the pods' volume (home.path of --cluster), as "
                f"in /data/{Path(place).name}, or s3://BUCKET/{Path(place).name}"
            )

"""The options of every command that reaches a cluster: written once, and read by a command as one value."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from lfm.cli.options import NoCacheOption
from lfm.errors import InputError

if TYPE_CHECKING:
    from lfm.pipelines.cluster_settings import ClusterSettings
    from lfm.pipelines.kfp_client import Cluster

HostOption = Annotated[
    str, typer.Option("--host", help="Address of KFP (https://kfp.example/pipeline). Default: KF_PIPELINES_ENDPOINT.")
]  # fmt: skip
NamespaceOption = Annotated[str, typer.Option("--namespace", help="Your namespace in a multi-user installation.")]
ImageOption = Annotated[
    str, typer.Option("--image", help="Container image of the steps. Default: LFM_IMAGE, else lfm:COMMIT.")
]
ClusterOption = Annotated[Path | None, typer.Option("--cluster", help="YAML file with the settings of your cluster.")]
GpusOption = Annotated[
    int, typer.Option("--gpus", min=0, help="GPUs for training and evaluation, one process each. 0: as configured.")
]


@dataclass(frozen=True)
class OnCluster:
    """Where a command finds KFP, and with what its steps run there."""

    host: HostOption = ""
    namespace: NamespaceOption = ""
    image: ImageOption = ""
    cluster: ClusterOption = None
    gpus: GpusOption = 0
    no_cache: NoCacheOption = False

    def refuse_here(self) -> None:
        """Refuse the options that a run on this machine would not look at.

        Raises:
            InputError: There are some.
        """
        if self.host or self.namespace or self.cluster:
            raise InputError("--host, --namespace and --cluster are for --runner kfp; leave them out, or add that")

    def changes(self, set_: list[str] | None) -> list[str] | None:
        """The changes of --set, and the one that --gpus stands for."""
        return [*(set_ or []), f"train.processes={self.gpus}"] if self.gpus else set_

    def settings(self) -> "ClusterSettings":
        """Settings of the cluster.

        Raises:
            InputError: They cannot be read, or name no GPUs where some are asked for.
        """
        from lfm.pipelines.cluster_settings import read_settings

        settings = read_settings(self.cluster, self.image)
        if self.gpus and not settings.accelerator:
            raise InputError(
                f"--gpus {self.gpus}: the cluster's settings name no GPUs, so none would be asked for; write "
                f"accelerator: nvidia.com/gpu into {self.cluster or 'a file, and name it with --cluster FILE'}"
            )
        if self.no_cache:
            from lfm.storage.store import NO_CACHE

            return settings.model_copy(update={"environment": {**settings.environment, NO_CACHE: "1"}})
        return settings

    def connect(self) -> "Cluster":
        """A connection to KFP.

        Raises:
            InputError: Nothing answers there, it refuses, or it is not KFP.
        """
        from lfm.pipelines.kfp_client import Cluster

        return Cluster(self.host, self.namespace)


def on_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its parameter `on`, an `OnCluster`."""
    own, hints = inspect.signature(command), get_type_hints(OnCluster, include_extras=True)
    others = [one for one in own.parameters.values() if one.name != "on"]
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(OnCluster)
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        on = OnCluster(**{one.name: given.pop(one.name) for one in fields(OnCluster)})
        command(**given, on=on)

    with_options.__signature__ = own.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
    return with_options

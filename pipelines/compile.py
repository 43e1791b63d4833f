"""Pipelines as YAML for a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm.config.presets import PRESETS
from lfm.config.schema import RunConfig
from lfm.config.sweeps import Part, variants_of
from lfm.errors import InputError
from lfm.pipelines.backend_rules import check
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compiled import Spec
from lfm.pipelines.retrain import retraining_pipeline
from lfm.pipelines.sweep import sweep_pipeline
from lfm.pipelines.training import training_pipeline


def _sweep(
    config: RunConfig,
    settings: ClusterSettings,
    variants: Sequence[Mapping[str, Any]] = (),
    part: Part | None = None,
) -> Any:
    # The list of configurations is a parameter: the run form can give another.
    return sweep_pipeline(config, variants or variants_of("baselines", first_seed=config.seed), settings, part=part)


KINDS: dict[str, Callable[..., Any]] = {
    "train": training_pipeline,
    "retrain": retraining_pipeline,
    "sweep": _sweep,
}
"""Kind of pipeline -> function that makes it."""


def pipeline_name(kind: str, preset: str) -> str:
    """Name of a pipeline, and of its file without .yaml."""
    return preset if kind == "train" else f"{preset}-{kind}"


def write(pipeline: Any, path: Path) -> None:
    """Compile into a file.

    Raises:
        InputError: A backend would refuse it, or run it otherwise than meant (`lfm.pipelines.backend_rules`).
    """
    from kfp import compiler

    aside = path.with_name(f".{path.stem}.tmp.yaml")  # KFP writes to names that end so
    try:
        compiler.Compiler().compile(pipeline, str(aside))
        check(Spec.read(aside))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def all_pipelines() -> Iterator[tuple[str, str]]:
    """The kind and the preset of every pipeline."""
    return ((kind, preset) for preset in PRESETS for kind in KINDS)


def targets(out: Path, wanted: list[tuple[str, str]]) -> list[Path]:
    """The file of each pipeline: `out` itself for a single one that is named .yaml, else inside the folder `out`.

    Raises:
        InputError: a file name for several pipelines, or one that Kubeflow does not take.
    """
    is_file = out.suffix in (".yaml", ".yml")
    if is_file and len(wanted) > 1:
        raise InputError(f"{out} is one file for {len(wanted)} pipelines; name a folder, as in -o pipelines-yaml")
    if out.suffix and not is_file and not out.is_dir():
        raise InputError(f"{out} does not end in .yaml, which Kubeflow asks for; name it {out.with_suffix('.yaml')}")
    return [out] if is_file else [out / f"{pipeline_name(kind, preset)}.yaml" for kind, preset in wanted]

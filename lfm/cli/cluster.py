"""`lfm compile`, `submit`, `upload`, `schedule`: the commands that need a Kubeflow cluster."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm.cli.cluster_options import ClusterOption, ImageOption, OnCluster, on_cluster
from lfm.cli.options import PresetArgument, SetOption, check_file, examples, read_config
from lfm.errors import InputError, counted, unknown

if TYPE_CHECKING:
    from lfm.config.schema import RunConfig
    from lfm.pipelines.cluster_settings import ClusterSettings

RUNNERS = ("local", "docker", "kfp")
ACTIONS = ("list", "pause", "resume", "delete", "replace")

ExperimentOption = Annotated[str, typer.Option("--experiment", help="Experiment in KFP. Default: the preset's name.")]
KindOption = Annotated[str, typer.Option("--kind", help="Kind of pipeline: train, retrain or sweep.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every preset and every kind.")]
PresetsArgument = Annotated[list[str] | None, typer.Argument(help="Names of presets.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(name="compile")(examples(compile_))
    for command in (submit, upload, schedule):
        app.command()(examples(on_cluster(command)))


def runner_for(name: str, image: str) -> Callable[["RunConfig"], AbstractContextManager[Any]]:
    """The `lfm.pipelines.local_run.Runner` of this name, for a run on this machine.

    Args:
        name: Name of the runner: local or docker.
        image: Container image, for docker.

    Raises:
        InputError: The name is unknown, or local has no use for an image.
    """
    if name not in RUNNERS:
        raise unknown("runner", name, RUNNERS)
    if name == "local":
        if image:
            raise InputError("--image is for --runner docker and kfp; leave it out")
        from lfm.pipelines.local_run import in_processes

        return in_processes
    if image:
        os.environ["LFM_IMAGE"] = image  # before the components are imported, which carry it
    from lfm import revision
    from lfm.pipelines.docker_runner import docker_steps

    return lambda config: docker_steps(revision.image(), config)


def submit_run(config: "RunConfig", on: OnCluster, registers: bool) -> None:
    """Start a training run on a cluster and print where to see it."""
    settings = _settings(on, config)
    kfp = on.connect()
    run = kfp.submit(config, settings, registers=registers)
    typer.echo(f"{config.preset}: run {run}\n{kfp.run_page(run)}")


def submit_sweep(config: "RunConfig", variants: list[Any], on: OnCluster) -> None:
    """Start a sweep on a cluster, a large one as runs one after the other, so that `parallelism` holds for them all."""
    from lfm.config.sweeps import check
    from lfm.pipelines.sweep import parts

    settings = _settings(on, *check(config, variants))
    kfp, run = on.connect(), ""
    for part, listed in parts(variants):
        if run and part and (state := kfp.wait(run)) == "CANCELED":
            raise InputError(f"part {part.number - 1} was ended as {state}; the same command starts all parts again")
        run = kfp.submit(config, settings, kind="sweep", variants=listed, part=part)
        typer.echo(f"{config.preset}: {counted(len(listed), 'configuration')}, run {run}\n{kfp.run_page(run)}")


def _settings(on: OnCluster, *configs: "RunConfig") -> "ClusterSettings":
    """Settings of the cluster, once it is certain that its pods find what the configurations name."""
    from lfm.pipelines.cluster_settings import check_places

    for config in configs:
        check_places(config)
    return on.settings()


def _configs(presets: list[str] | None, all_: bool, set_: list[str] | None) -> dict[str, "RunConfig"]:
    """The configuration of each preset that is named, or of all."""
    from lfm.config.presets import PRESETS

    return {preset: read_config(preset, set_) for preset in presets or (PRESETS if all_ else ())}


def _wanted(presets: list[str] | None, all_: bool, kind: str) -> list[tuple[str, str]]:
    from lfm.config.presets import PRESETS
    from lfm.pipelines.compile import KINDS, all_pipelines

    if all_:
        if presets:
            raise InputError("--all goes without names of presets; leave one of the two out")
        return list(all_pipelines())
    if not presets:
        raise InputError(f"name a preset or give --all; known: {', '.join(PRESETS)}")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return [(kind, preset) for preset in presets]


def compile_(
    presets: PresetsArgument = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="YAML file to write, or a folder for PRESET.yaml of each.")
    ] = Path("pipeline.yaml"),
    all_: AllOption = False,
    kind: KindOption = "train",
    set_: SetOption = None,
    image: ImageOption = "",
    cluster: ClusterOption = None,
) -> None:
    """Write pipelines as YAML for a Kubeflow cluster.

    Examples:
      lfm compile fashion-mnist-lt -o pipeline.yaml

      lfm compile cifar100-lt --kind retrain --set stage1.epochs=20 --cluster cluster.yaml

      lfm compile --all -o pipelines-yaml
    """
    configs = _configs(presets, all_, set_)
    from lfm.pipelines.compile import KINDS, targets, write

    wanted = _wanted(presets, all_, kind)
    settings, paths = _settings(OnCluster(image=image, cluster=cluster), *configs.values()), targets(out, wanted)
    for path in paths:
        check_file(path)
    for (one, preset), path in zip(wanted, paths, strict=True):
        write(KINDS[one](configs[preset], settings), path)
        typer.echo(f"wrote {path}")


def submit(
    preset: PresetArgument,
    set_: SetOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the run has ended; exit code 1 if it failed.")
    ] = False,
    experiment: ExperimentOption = "",
    kind: KindOption = "train",
    *,
    on: OnCluster,
) -> None:
    """Start a run on a Kubeflow cluster.

    Examples:
      lfm submit fashion-mnist-lt --host http://localhost:8080

      lfm submit cifar100-lt --set loss.name=mms --wait

      lfm submit imagenet-lt --gpus 8 --cluster cluster.yaml
    """
    config = read_config(preset, on.changes(set_))
    _wanted([preset], False, kind)
    settings = _settings(on, config)
    kfp = on.connect()
    run = kfp.submit(config, settings, experiment, kind)
    typer.echo(f"{preset}: run {run}\n{kfp.run_page(run)}")
    if wait and (state := kfp.wait(run, lambda state: typer.echo(f"  {state}"))) != "SUCCEEDED":
        raise RuntimeError(f"the run ended as {state}; {kfp.run_page(run)} shows which step, and its log")


def upload(
    presets: PresetsArgument = None,
    all_: AllOption = False,
    kind: KindOption = "train",
    set_: SetOption = None,
    *,
    on: OnCluster,
) -> None:
    """Upload pipelines to a Kubeflow cluster; a name that is there gets a new version.

    Examples:
      lfm upload fashion-mnist-lt --host http://localhost:8080

      lfm upload --all
    """
    configs = _configs(presets, all_, on.changes(set_))
    from lfm.pipelines.compile import pipeline_name

    wanted, settings = _wanted(presets, all_, kind), _settings(on, *configs.values())
    kfp = on.connect()
    for one, preset in wanted:
        pipeline, version = kfp.upload(one, configs[preset], settings)
        typer.echo(f"{pipeline_name(one, preset)}: pipeline {pipeline}, version {version}")


def schedule(
    what: Annotated[str, typer.Argument(help=f"A preset to schedule, or {', '.join(ACTIONS)}.")],
    name: Annotated[str, typer.Argument(help="pause, resume, delete, replace: the preset, or the id.")] = "",
    cron: Annotated[
        str, typer.Option("--cron", help='Six fields, the second first: "0 0 3 * * *" is three every night.')
    ] = "",
    set_: SetOption = None,
    experiment: ExperimentOption = "",
    *,
    on: OnCluster,
) -> None:
    """Retrain a preset at set times: trains only on new data, promotes only what is better than the champion.

    One run at a time. Of runs that were missed, as while a schedule was paused, KFP starts the latest one at once, and
    no other; it ends within its first step if champion or challenger was trained on these very files, or if another
    retraining of the same configuration goes on.

    Examples:
      lfm schedule custom --cron "0 0 3 * * *" --set data.source=s3://bucket/photos

      lfm schedule list

      lfm schedule pause custom

      lfm schedule replace custom --cron "0 0 3 * * SUN" --set data.source=s3://bucket/photos
    """
    config = _check_schedule(what, name, cron, on.changes(set_))
    settings = _settings(on, *([config] if config else []))
    kfp = on.connect()
    if what == "list":
        schedules = kfp.schedules()
        for one in schedules:
            typer.echo(f"{one.name:<30} {one.cron:<20} {'on' if one.enabled else 'paused':<8} {one.id}")
        if not schedules:
            typer.echo("no schedules")
    elif config is None:
        one = kfp.find_schedule(name)
        getattr(kfp, what)(one)
        typer.echo(f"{what}d {one.name} ({one.cron}), {one.id}")
    else:
        make = kfp.replace if what == "replace" else kfp.schedule
        one = make(config, cron, settings, experiment)
        typer.echo(f"{one.name} runs at {one.cron} (UTC unless your cluster says otherwise), {one.id}")


def _check_schedule(what: str, name: str, cron: str, set_: list[str] | None) -> "RunConfig | None":
    """Check all that can be checked without a cluster: the configuration to schedule; None for the other actions."""
    from lfm.pipelines.cron import check_cron

    if what in ACTIONS and what != "list" and not name:
        raise InputError(f"lfm schedule {what} of what? Name the preset, as in lfm schedule {what} custom")
    if what == "list" or what in ("pause", "resume", "delete"):
        return None
    if what not in ACTIONS and name:
        raise InputError(f"{name!r} is one name too many; {what} is what is scheduled")
    config = read_config(name if what == "replace" else what, set_)
    if not cron:
        raise InputError(
            'when? Give --cron with six fields, the second first: --cron "0 0 3 * * *" is three every night'
        )
    check_cron(cron)
    return config

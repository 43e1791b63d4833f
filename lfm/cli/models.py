"""`lfm sweep`, `retrain`, `models`, `promote`, `rollback`, `sync`: many runs, and the models they registered."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm.cli.cluster import runner_for, submit_sweep
from lfm.cli.cluster_options import ClusterOption, HostOption, ImageOption, NamespaceOption, OnCluster
from lfm.cli.options import (
    HomeOption,
    NoCacheOption,
    PresetArgument,
    SetOption,
    debugging,
    examples,
    read_config,
    set_home,
    use_home,
)
from lfm.storage.artifact import check_writable, home

if TYPE_CHECKING:
    from lfm.pipelines.local_run import Result

NameArgument = Annotated[str, typer.Argument(help="Name of the registered model, which is the preset's.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (sweep, retrain, models, promote, rollback, sync):
        app.command()(examples(command))


def sweep(
    preset: PresetArgument,
    grid: Annotated[
        str, typer.Option("--grid", help="baselines, imbalance, alpha, tau, or FIELD=VALUE,VALUE,...")
    ] = "baselines",
    values: Annotated[str, typer.Option("--values", help="Values in place of the paper's: VALUE,VALUE,...")] = "",
    seeds: Annotated[
        int, typer.Option("--seeds", help="Runs of each configuration, with consecutive seeds.", min=1)
    ] = 1,
    set_: SetOption = None,
    parallel: Annotated[
        int, typer.Option("--parallel", help="Runs at the same time; 2 at most on one machine.", min=1)
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for table, figure and page. Default: in sweeps/ of the home folder."),
    ] = None,
    home_: HomeOption = None,
    runner: Annotated[str, typer.Option("--runner", help="local, docker, or kfp for a cluster.")] = "local",
    host: HostOption = "",
    namespace: NamespaceOption = "",
    cluster: ClusterOption = None,
    image: ImageOption = "",
    no_cache: NoCacheOption = False,
) -> None:
    """Train a list of configurations and compare their scores.

    Data and text that several share are made once; what an earlier run trained is not trained again. On a cluster a
    large list becomes several pipeline runs, one after the other, which are compared as one.

    Examples:
      lfm sweep fashion-mnist-lt

      lfm sweep fashion-mnist-lt --grid alpha --values 0,0.5,1 --seeds 3

      lfm sweep fashion-mnist-lt --grid loss.temperature=0.02,0.05,0.1 --out sweep

      lfm sweep fashion-mnist-lt --seeds 5 --runner kfp --host http://localhost:8080
    """
    config = read_config(preset, set_)
    from lfm.config import sweeps
    from lfm.config.overrides import parse_overrides

    chosen = [parse_overrides([f"value={value}"])["value"] for value in values.split(",")] if values else []
    variants = sweeps.variants_of(grid, chosen, seeds, config.seed)
    configs = sweeps.check(config, variants)
    on = OnCluster(host, namespace, image, cluster, no_cache=no_cache)
    if runner == "kfp":
        return submit_sweep(config, variants, on)
    chosen_runner = runner_for(runner, image)
    on.refuse_here()
    use_home(home_)
    if out:
        check_writable(out)
    from lfm.jobs.prepare import check
    from lfm.pipelines.local_run import run_sweep

    for one in configs:
        check(one)
    _show_comparison(run_sweep(config, variants, parallel, debugging(), chosen_runner, no_cache), out)


def _show_comparison(result: "Result", out: Path | None) -> None:
    """Print a sweep's table and copy table, figure and page to a folder."""
    from lfm.report.tables import percent

    rows = json.loads((result.output("table") / "table.json").read_text())
    width = max(len(row["label"]) for row in rows) + 2
    typer.echo("\n" + " " * width + "".join(f"{name:>9}" for name in ("many", "medium", "few", "all")))
    for row in rows:
        cells = "".join(f"{percent(row[name]):>9}" for name in ("many", "medium", "few", "all"))
        typer.echo(f"{row['label']:<{width}}{cells}")
    folder = out or home() / "sweeps" / result.folder.name
    for name in ("table", "figure"):
        shutil.copytree(result.output(name), folder, dirs_exist_ok=True)
    shutil.copyfile(result.output("report"), folder / "report.html")
    typer.echo(f"\nTable, figure and page: {folder}")


def retrain(
    preset: PresetArgument, set_: SetOption = None, no_cache: NoCacheOption = False, home_: HomeOption = None
) -> None:
    """Train again if the data are new, and promote the model if it is better than the champion.

    Ends early where the champion or challenger was trained on these very data. Else the new model becomes champion
    when it is better on all test images by more than the noise and not worse on few shot classes (paired bootstrap,
    95 %), challenger otherwise. `lfm schedule` does the same on a cluster, at set times.

    Examples:
      lfm retrain fashion-mnist-lt

      lfm retrain custom --set data.source=photos
    """
    config = read_config(preset, set_)
    use_home(home_)
    from lfm.backbones.device import check_device
    from lfm.jobs.prepare import check
    from lfm.pipelines.local_run import run_retraining

    check(config)
    check_device(config.train.device)
    result = run_retraining(config, debugging(), no_cache=no_cache)
    if result.news == "unchanged":
        typer.echo("nothing to do: the data are unchanged")
    else:
        typer.echo(f"{result.model_uri} is {result.outcome}; `lfm models {preset}` says why")


def models(name: Annotated[str, typer.Argument(help="Show only this model.")] = "", home_: HomeOption = None) -> None:
    """List the registered models: which version is champion or challenger and why, its scores and its data.

    Examples:
      lfm models

      lfm models fashion-mnist-lt
    """
    set_home(home_)
    from lfm.errors import unknown
    from lfm.report.tables import percent
    from lfm.tracking import past_runs, registry

    found = registry.versions(name)
    if not found and name:
        raise unknown("registered model", name, sorted({version.name for version in registry.versions()}) or ["none"])
    if not found:
        typer.echo(f"no registered models in {home()}")
    runs = past_runs.by_id(version.run for version in found)
    for version in found:
        run, method = runs.get(version.run), version.tags.get("lfm.method", "")
        typer.echo(
            f"{version.uri:<40} {', '.join(version.aliases):<12} {method:<12} {past_runs.when(version.made)} UTC"
        )
        if run:
            scores = "  ".join(f"{group} {percent(value)}" for group, value in run.scores().items())
            typer.echo(f"  {scores}  on {run.data}  (run {run.run_id[:12]})")
        if data := version.tags.get(registry.DATASET):
            typer.echo(f"  trained on data {data[:12]}")
        if why := version.tags.get(registry.REASON):
            typer.echo(f"  {version.tags.get(registry.WHEN, '')}: {why}")


def promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(help="Version of the model, a number.")],
    why: Annotated[str, typer.Option("--why", help="Reason, which is kept with the version.")] = "by hand",
    home_: HomeOption = None,
) -> None:
    """Make a version the champion, whatever its test results.

    Examples:
      lfm promote fashion-mnist-lt 3 --why "looked at its mistakes"
    """
    use_home(home_)
    from lfm.tracking import registry

    before = registry.promote(name, version, why)
    if before and before.number == version:
        typer.echo(f"{name} {version} is champion already; nothing was changed")
        return
    typer.echo(f"{name} {version} is champion" + (f", after {before.number}" if before else ""))


def rollback(name: NameArgument, home_: HomeOption = None) -> None:
    """Make the version before the champion the champion again.

    Examples:
      lfm rollback fashion-mnist-lt
    """
    use_home(home_)
    from lfm.tracking import registry

    was, now = registry.rollback(name)
    typer.echo(f"{name} {now.number} is champion again, instead of {was.number}")


def sync(home_: HomeOption = None) -> None:
    """Send MLflow the records that were kept on disk because the server was down.

    Training never waits for a server: what cannot be sent is kept in the home folder (and at LFM_STORE, where that is
    set). The next run sends it, or this command.

    Examples:
      MLFLOW_TRACKING_URI=http://localhost:5000 lfm sync
    """
    use_home(home_)
    from lfm.errors import InputError, counted
    from lfm.tracking.step_logger import outboxes
    from lfm.tracking.sync import elsewhere
    from lfm.tracking.sync import sync as send

    (count, refused), others = send(), elsewhere()
    if count or not (others or refused):
        typer.echo(f"{counted(count, 'record')} sent" if count else "no records are waiting")
    if refused:
        were, kept = counted(refused, "record was", "records were"), f"kept in {outboxes()}/refused.jsonl"
        typer.echo(f"{were} refused by the server and {'is' if refused == 1 else 'are'} {kept}", err=True)
    if others:
        where = " and ".join(
            f"{counted(number, 'record waits', 'records wait')} for MLflow at {place}"
            for place, number in others.items()
        )
        raise InputError(f"{where}; set MLFLOW_TRACKING_URI to it, then sync again")
    if refused:
        raise typer.Exit(1)

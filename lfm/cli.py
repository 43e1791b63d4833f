"""`lfm ...`: each command one job. Heavy imports wait until a command needs them."""

import json
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from lfm import __version__, cli_cluster, cli_models, cli_report, cli_serve
from lfm.cli_options import HomeOption, PresetArgument, SetOption
from lfm.cli_options import check_file as _check_file
from lfm.cli_options import debugging as _debugging
from lfm.cli_options import examples as _examples
from lfm.cli_options import use_home as _use_home
from lfm.config.overrides import parse_overrides
from lfm.config.presets import PRESETS, load
from lfm.errors import InputError
from lfm.storage.artifact import home

INSPECT_KEYS = (
    "classes", "counts", "gamma", "gamma_effective", "own_label_mass", "label_mass", "neighbours"
)  # fmt: skip

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Text-guided mixup for long-tailed image data.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lfm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all output of the steps.")] = False,
) -> None:
    if debug:
        os.environ["LFM_DEBUG"] = "1"


@app.command()
@_examples
def run(
    preset: PresetArgument,
    set_: SetOption = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="First run the same without mixing (CE), and show both side by side."),
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the table to this file.")] = None,
    runner: Annotated[
        str, typer.Option("--runner", help="local: processes here; docker: containers here; kfp: a cluster.")
    ] = "local",
    image: Annotated[str, typer.Option("--image", help="docker and kfp: image of the steps. Default: LFM_IMAGE.")] = "",
    host: cli_cluster.HostOption = "",
    home_: HomeOption = None,
) -> None:
    """Train, evaluate and register a preset on this machine.

    Runs the whole pipeline (data, text embeddings, two stages, evaluation, registration), each step in a process
    of its own. What has not changed since an earlier run is reused. A killed run goes on where it stopped when
    the same command is given again.

    Examples:
      lfm run fashion-mnist-lt

      lfm run fashion-mnist-lt --set stage1.epochs=10 --set seed=1

      lfm run fashion-mnist-lt --baseline --set loss.name=mms

      lfm run fashion-mnist-lt --runner kfp --host http://localhost:8080
    """
    overrides = parse_overrides(set_ or [])
    runs = [overrides]
    if baseline:
        runs.insert(0, overrides | {"mixup.name": "none", "loss.name": "ce"})
    configs = [load(preset, changed) for changed in runs]
    if runner == "kfp":
        if json_ or home_:
            raise InputError("--json and --home are for runs on this machine; leave them out with --runner kfp")
        for changed in runs:
            cli_cluster.submit_run(preset, changed, host, image)
        return
    make_runner = cli_cluster.runner_for(runner, image)
    _use_home(home_)
    if json_:
        _check_file(json_)
    from lfm import jobs
    from lfm.backbones.device import check_device
    from lfm.report.tables import table
    from pipelines.run import run_local

    for config in configs:
        jobs.check(config)
        check_device(config.train.device)
    began, uri = time.monotonic(), ""
    methods: dict[str, Any] = {}
    for number, (config, changed) in enumerate(zip(configs, runs, strict=True), 1):
        typer.echo(f"[{number}/{len(runs)}] {preset}: {config.method}, seed {config.seed}")
        result = run_local(config, changed, _debugging(), make_runner)
        found = json.loads((result.metrics / "metrics.json").read_text())
        methods |= {jobs.untrained(config): found["untrained"], config.method: found["test"]}
        uri = result.model_uri
    seconds = time.monotonic() - began
    provenance = found["provenance"]
    typer.echo(f"\nTop-1 accuracy, % ({', '.join(f'{k}: {v}' for k, v in provenance.items())})\n")
    typer.echo(table(methods))
    typer.echo(f"\nRegistered model  {uri}")
    typer.echo(f"Page              {result.metrics / 'report.html'}")
    from lfm.tracking.uri import is_server, server_address

    ui = "make ui" if Path("Makefile").is_file() else "lfm ui"
    typer.echo(f"Compare the runs  {f'MLflow at {server_address()}' if is_server() else ui}")
    typer.echo(f"Took              {seconds:.0f} s; everything is in {home()}")
    if json_:
        _write_json(json_, methods, provenance, uri, seconds)


def _write_json(path: Path, methods: dict[str, Any], provenance: dict[str, Any], uri: str, seconds: float) -> None:
    names = {"lfm + ce": "lfm"}  # the short name that readers of build/demo.json expect
    scores = {
        names.get(name, name): {k: scored[k] for k in ("all", "many", "medium", "few") if scored[k] is not None}
        for name, scored in methods.items()
    }
    content = {"methods": scores, "model_uri": uri, "seconds": round(seconds, 1), "provenance": provenance}
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


data_app = typer.Typer(no_args_is_help=True, help="Look at data before training.")
app.add_typer(data_app, name="data")


@data_app.command()
@_examples
def fetch(
    name: Annotated[str, typer.Argument(help="A data set or a preset: fashion-mnist, cifar10, imagenet-lt, ...")],
    source: Annotated[str, typer.Option("--source", help="Where your copy lies; default: LFM_HOME/downloads.")] = "",
    images: Annotated[str, typer.Option("--images", help="Where the images lie, if not beside the lists.")] = "",
    home_: HomeOption = None,
) -> None:
    """Say which files of a data set go where, fetch what can be fetched, and check what is there.

    Examples:
      lfm data fetch cifar100

      lfm data fetch imagenet-lt --source ~/lists --images /data/imagenet

      lfm data fetch custom --source ~/photos
    """
    name = PRESETS[name]().data.name if name in PRESETS else name
    _use_home(home_)
    from lfm.config.schema import DataConfig
    from lfm.data.sources.custom import KINDS
    from lfm.data.sources.registry import DATASETS
    from lfm.errors import unknown

    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if name == "custom" and not source:
        typer.echo(f"Nothing to fetch: set data.source to {KINDS}")
        return
    found = DATASETS[name](DataConfig(name=name, source=source, images=images, profile="as-is"))
    found.check()
    typer.echo(f"{name}: all there, {len(found.images):,} images of {len(found.classes):,} classes")


@data_app.command()
@_examples
def inspect(
    preset: PresetArgument,
    set_: SetOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Image file. Default: inspect-PRESET.png in the home folder.")
    ] = None,
    home_: HomeOption = None,
) -> None:
    """What the method will do to each class, exactly and before any training.

    Shows training images, p(Y) (the share of pairs that show the class), own-label mass (how much of its label a
    class keeps on its clean images; under 0.5 it is about to collapse), M (its share of all label mass) and the
    nearest classes in text.

    Examples:
      lfm data inspect fashion-mnist-lt

      lfm data inspect fashion-mnist-lt --set mixup.tau=0.05 --set stage1.alpha=1
    """
    config = load(preset, parse_overrides(set_ or []))
    _use_home(home_)
    target = picture or home() / f"inspect-{preset}.png"
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--picture {target} does not end in .png, .svg or .pdf; name it so")
    _check_file(target)
    from lfm import jobs
    from lfm.report import data_page

    with redirect_stdout(sys.stderr if json_ else sys.stdout):
        jobs.check(config)
        dataset, _ = jobs.dataset_for(config.data, config.model, config.seed)
        backbone, _ = jobs.backbone_for(config.model, config.seed)
        text, _ = jobs.embeddings_for(config.text, dataset, backbone)
        found = jobs.inspect(config, 1, dataset, text)
        data_page.picture(target, f"{preset}, tau {config.mixup.tau:g}", found)
    if json_:
        typer.echo(json.dumps({name: found[name] for name in INSPECT_KEYS}))
        return
    typer.echo(
        f"{preset}: gamma {found['gamma']:.1f}, gamma' {found['gamma_effective']:.1f} "
        f"at tau {config.mixup.tau:g}; alpha {found['alpha']:g}\n\n{jobs.describe(found)}\n\nNearest in text"
    )
    for name, near in list(zip(found["classes"], found["neighbours"], strict=True))[: jobs.SHOWN_CLASSES]:
        typer.echo(f"  {name}: " + ", ".join(f"{n['class']} {n['cosine']:.2f}" for n in near))
    if found["collapsing"]:
        typer.echo(f"\nwarning: {found['collapsing']}")
    typer.echo(f"\nPicture: {target}")


@data_app.command(name="report")
@_examples
def report_(
    preset: PresetArgument,
    set_: SetOption = None,
    json_: Annotated[Path | None, typer.Option("--json", help="JSON file to write. Default: beside the page.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write. Default: data-PRESET.html in the home folder.")
    ] = None,
    home_: HomeOption = None,
) -> None:
    """Look at every image and class name before any training, and say what to mend first.

    Shows images that cannot be used or are odd, equal images and images that look alike (across splits and labels
    too), class names that a text tower cannot read, and what the method will do to each class.

    Examples:
      lfm data report fashion-mnist-lt

      lfm data report custom --set data.source=PHOTOS --out report.html
    """
    config = load(preset, parse_overrides(set_ or []))
    _use_home(home_)
    page = out or home() / f"data-{preset}.html"
    values = json_ or page.with_suffix(".json")
    if values == page:
        raise InputError(f"{page} cannot hold both the page and the JSON; give --out a name that ends in .html")
    for path in (page, values):
        _check_file(path)
    from lfm import jobs
    from lfm.report.data_page import data_summary

    jobs.check(config)
    found, html = jobs.report_data(config)
    page.write_text(html, encoding="utf-8", errors="backslashreplace")  # a file name may be no Unicode
    values.write_text(json.dumps(found, indent=1))
    typer.echo(f"{preset}\n{data_summary(found)}\n\nPage: {page}\nJSON: {values}")


app.command()(_examples(cli_report.report))
app.command()(_examples(cli_report.compare))


@app.command()
def presets() -> None:
    """List the presets, with what each expects and gives."""
    for name, build in PRESETS.items():
        lines = (build.__doc__ or "").strip().splitlines()
        typer.echo("\n".join([name, *(f"  {line.strip()}".rstrip() for line in lines)]))


cli_cluster.add_to(app)
cli_models.add_to(app)
cli_serve.add_to(app)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000, home_: HomeOption = None
) -> None:
    """Open the MLflow UI on the runs of this folder."""
    _use_home(home_)
    if not (home() / "mlflow.db").is_file():
        raise InputError(f"there are no runs in {home()} yet; start one with: lfm run fashion-mnist-lt")
    from lfm.tracking.uri import tracking_uri

    # The helpers that MLflow would start for jobs take seven times 240 MB and nothing here uses them.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    typer.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        tracking_uri(),
        "--port",
        str(port),
    ]
    os.execv(sys.executable, command)  # noqa: S606


def main() -> None:
    """The `lfm` command. Exit code 2: the user can mend it; 1: a step failed otherwise; 130: Ctrl-C; 143: SIGTERM."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)  # leaves by way of every `finally`: the running step writes a checkpoint

    signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except SystemExit as end:  # typer turns Ctrl-C into this
        if end.code in (INTERRUPTED, TERMINATED):
            typer.echo("\nstopped; the same command goes on where this one was", err=True)
        raise
    except Exception as error:
        from lfm.jobs.step import system_error

        told = system_error(error)
        if _debugging() or (told is None and not isinstance(error, RuntimeError)):
            raise
        typer.echo(f"error: {told or error}", err=True)
        raise SystemExit(told.exit_code if told else 1) from None


if __name__ == "__main__":
    main()

"""`lfm run`, `presets`, `ui`: train, evaluate and register a preset, and look at its runs."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm.cli.cluster import runner_for, submit_run
from lfm.cli.cluster_options import ClusterOption, HostOption, ImageOption, NamespaceOption, OnCluster
from lfm.cli.options import (
    HomeOption,
    NoCacheOption,
    PresetArgument,
    SetOption,
    check_file,
    debugging,
    examples,
    read_config,
    use_home,
)
from lfm.errors import InputError
from lfm.storage.artifact import home

if TYPE_CHECKING:
    from lfm.config.schema import RunConfig
    from lfm.pipelines.local_run import Result, Runner


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(examples(run))
    for command in (presets, ui):
        app.command()(command)


def run(
    preset: PresetArgument,
    set_: SetOption = None,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline", help="First run the same without mixup and with CE, which is not registered; show both."
        ),
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the table to this file.")] = None,
    runner: Annotated[
        str,
        typer.Option(
            "--runner", help="local: processes on this machine; docker: containers on this machine; kfp: a cluster."
        ),
    ] = "local",
    image: ImageOption = "",
    host: HostOption = "",
    namespace: NamespaceOption = "",
    cluster: ClusterOption = None,
    no_cache: NoCacheOption = False,
    home_: HomeOption = None,
) -> None:
    """Train, evaluate and register a preset on this machine.

    Runs the whole pipeline (data, text embeddings, two stages, evaluation, registration), each step in a process
    of its own. What has not changed since an earlier run is reused, unless --no-cache is given. A killed run goes on
    where it stopped when the same command is given again; one with --no-cache begins again.

    Examples:
      lfm run fashion-mnist-lt

      lfm run fashion-mnist-lt --set stage1.epochs=10 --set seed=1

      lfm run fashion-mnist-lt --baseline --set loss.name=mms

      lfm run fashion-mnist-lt --runner kfp --host http://localhost:8080 --cluster infra/cluster.yaml
    """
    configs = [read_config(preset, set_)]
    if baseline:
        configs.insert(0, read_config(preset, set_, mixup__name="none", loss__name="ce"))
    on = OnCluster(host, namespace, image, cluster, no_cache=no_cache)
    if runner == "kfp":
        if json_ or home_:
            raise InputError("--json and --home are for runs on this machine; leave them out with --runner kfp")
        for config in configs:
            submit_run(config, on, registers=config is configs[-1])
        return
    make_runner = runner_for(runner, image)
    on.refuse_here()
    use_home(home_)
    if json_:
        check_file(json_)
    began = time.monotonic()
    methods, results, provenance = _train(configs, make_runner, no_cache)
    seconds = time.monotonic() - began
    _print_results(methods, provenance, results[-1], seconds)
    _print_ids(configs, results)
    if json_:
        _write_json(json_, methods, provenance, results[-1].model_uri, seconds)


def _train(
    configs: list["RunConfig"], runner: "Runner", no_cache: bool
) -> tuple[dict[str, Any], list["Result"], dict[str, Any]]:
    """Check all configurations, then train each: scores by method, results, and where the last one's data came from.

    The last model alone is registered: a baseline is no version of the model that it is the baseline of.
    """
    from lfm.backbones.device import check_device
    from lfm.jobs.prepare import check
    from lfm.jobs.scoring import adjusted_row, untrained
    from lfm.pipelines.local_run import run_local

    for config in configs:
        check(config)
        check_device(config.train.device)
    methods: dict[str, Any] = {}
    results: list[Result] = []
    for number, config in enumerate(configs, 1):
        typer.echo(f"[{number}/{len(configs)}] {config.preset}: {config.method}, seed {config.seed}")
        results.append(run_local(config, debugging(), runner, config is configs[-1], no_cache))
        found = json.loads((results[-1].metrics / "metrics.json").read_text())
        methods |= {untrained(config): found["untrained"], config.method: found["test"]}
        methods |= adjusted_row(config.method, found)
    return methods, results, found["provenance"]


def _print_ids(configs: list["RunConfig"], results: list["Result"]) -> None:
    """Print by which id `lfm report` and `lfm compare` find each run."""
    from lfm.tracking import past_runs

    try:
        ids = [past_runs.id_of(result.key) for result in results]
    except InputError as error:  # the server is down; the records wait
        typer.echo(f"Run               no id yet: {error}")
        return
    for config, run_id in zip(configs, ids, strict=True):
        typer.echo(f"Run               {run_id}  {config.method}, seed {config.seed}")


def _print_results(methods: dict[str, Any], provenance: dict[str, Any], result: "Result", seconds: float) -> None:
    from lfm.report.tables import table
    from lfm.tracking.uri import is_server, server_address

    typer.echo(f"\nTop-1 accuracy, % ({', '.join(f'{k}: {v}' for k, v in provenance.items())})\n")
    typer.echo(table(methods))
    typer.echo(f"\nRegistered model  {result.model_uri}")
    typer.echo(f"Page              {result.metrics / 'report.html'}")
    ui = "make ui" if Path("Makefile").is_file() else "lfm ui"
    typer.echo(f"Compare the runs  {f'MLflow at {server_address()}' if is_server() else ui}")
    typer.echo(f"Took              {seconds:.0f} s; everything is in {home()}")


def _write_json(path: Path, methods: dict[str, Any], provenance: dict[str, Any], uri: str, seconds: float) -> None:
    names = {"lfm + ce": "lfm"}  # the name in build/demo.json
    scores = {}
    for name, scored in methods.items():
        base, adjusted, _ = name.partition(", adjusted")
        kept = ("all", "many", "medium", "few", *(["strength"] if adjusted else []))
        scores[names.get(base, base) + adjusted] = {k: scored[k] for k in kept if scored[k] is not None}
    content = {"methods": scores, "model_uri": uri, "seconds": round(seconds, 1), "provenance": provenance}
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


def presets() -> None:
    """List the presets with their data, hardware and expected scores."""
    from lfm.config.presets import PRESETS

    for name, build in PRESETS.items():
        lines = (build.__doc__ or "").strip().splitlines()
        typer.echo("\n".join([name, *(f"  {line.strip()}".rstrip() for line in lines)]))


def ui(
    port: Annotated[int, typer.Option(help="Port of the UI on this machine.", min=1, max=65535)] = 5000,
    home_: HomeOption = None,
) -> None:
    """Open the MLflow UI on the runs of this folder."""
    use_home(home_)
    from lfm.tracking.uri import is_server, server_address, sqlite_file, tracking_uri

    if is_server():
        raise InputError(f"runs go to the MLflow server at {server_address()}: open that, or unset MLFLOW_TRACKING_URI")
    file = sqlite_file()
    if file and not file.is_file():
        raise InputError(f"there are no runs in {file.parent} yet; start one with: lfm run fashion-mnist-lt")
    _check_free(port)
    from lfm.tracking.client import connect
    from lfm.tracking.database import adopt_home

    connect()  # MLflow's server would migrate a database of an older version
    adopt_home()
    # MLflow would start seven processes of 240 MB for jobs, which nothing here uses.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    typer.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port)]
    os.execv(sys.executable, command)  # noqa: S606


def _check_free(port: int) -> None:
    """Check that a server can listen on this port of loopback.

    Raises:
        InputError: another one does, or this user may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a port just let go is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}); end what listens there, or take another: lfm ui "
                f"--port {port + 1 if port < 65535 else 5001}"
            ) from error

"""`lfm predict` and `lfm serve`: predictions of a registered model, on this machine or over HTTP."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm.cli.options import HomeOption, examples, set_home
from lfm.errors import ERROR_MARK, InputError, counted
from lfm.storage.artifact import MANIFEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lfm.serving.predictor import Predictor
    from lfm.serving.prior import Prior, Shares

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="MODEL_URI",
        help="models:/NAME@champion, models:/NAME/VERSION, or a folder. Default: the only champion or model there is.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto (bf16 where the hardware has it), fp32, bf16.")]
PriorOption = Annotated[
    str,
    typer.Option(
        "--prior",
        help="In which shares the classes come: none (as the model has it), train, uniform, auto (estimated from the "
        "images), or a JSON or CSV file of class shares.",
    ),
]
AT_ONCE = 32
SHOWN_SHARES = 20
"""Classes, the most frequent first."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (predict, serve):
        app.command()(examples(command))


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files, or folders of files.")],
    model: ModelOption = "",
    top: Annotated[int, typer.Option("--top", help="Number of classes to show for each image.", min=1, max=100)] = 5,
    new_class: Annotated[
        list[str] | None, typer.Option("--new-class", help="Name of a class training has not seen. Repeatable.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object for each image and nothing else.")] = False,
    prior: PriorOption = "none",
    prior_out: Annotated[
        Path | None, typer.Option("--prior-out", help="Write the class shares that --prior auto estimates as JSON.")
    ] = None,
    device: DeviceOption = "auto",
    home_: HomeOption = None,
) -> None:
    """Classify images: the most likely classes, with probabilities and shot groups.

    A new class is recognised by its name alone (zero-shot). Calibration was fitted on validation images. A file that
    cannot be used gets a line that says why; the others are classified, and the exit code is 1.

    Examples:
      lfm predict photo.jpg

      lfm predict photos --model models:/custom@champion --top 3 --json

      lfm predict photo.jpg --new-class "snow leopard" --new-class lynx

      lfm predict photos --prior auto --prior-out shares.json
    """
    set_home(home_)
    from lfm.serving.prior import AUTO, NONE, read

    files, given = _files(images), read(prior)
    if prior_out and given != AUTO:
        raise InputError(f"--prior-out keeps what --prior auto estimates, not {prior}; leave it out")
    with _folder_of(model) as (folder, uri):
        from lfm.jobs.base import base_of
        from lfm.serving.predictor import Predictor

        predictor = Predictor(folder, device, backbone=base_of(folder))
        if new_class and predictor.not_placed:
            typer.echo(predictor.not_placed, err=True)
        if not json_:
            sure = "calibrated" if predictor.calibration else "not calibrated"
            asked = "" if given in ("", NONE) else f", for class shares {prior}"
            typer.echo(f"{uri}, {counted(len(predictor.classes), 'class', 'classes')}, probabilities {sure}{asked}")
        failed = 0
        for path, answer in _told(predictor, files, top, new_class or [], given, prior_out):
            failed += isinstance(answer, str)
            aside = isinstance(answer, str) and not json_
            typer.echo(_line(path, answer) if json_ else _shown(path, answer), err=aside)
    if failed:
        typer.echo(f"{ERROR_MARK}{failed:,} of {counted(len(files), 'image')} cannot be used", err=True)
        raise typer.Exit(1)


def _told(
    predictor: "Predictor", files: Sequence[Path], top: int, new: Sequence[str], given: "Prior", out: Path | None
) -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """Each file with what the model says, or with what is wrong with it. Wrong names are refused before any image."""
    from lfm.serving.prior import AUTO

    predictor.classes_of(new)
    shares = predictor.own.told(given)
    parts = [files[begin : begin + AT_ONCE] for begin in range(0, len(files), AT_ONCE)]
    looked_at: Iterable[list[Tensor | str]] = (_features(predictor, part) for part in parts)
    if given == AUTO:  # from all images, before any is answered
        looked_at = kept = list(looked_at)
        shares = _estimated(predictor, kept, out)
    for part, found in zip(parts, looked_at, strict=True):
        yield from zip(part, _answers(predictor, found, top, new, shares), strict=True)


def _features(predictor: "Predictor", files: Sequence[Path]) -> "list[Tensor | str]":
    """For each file what the tower makes of it, (1, D), or what is wrong with the file."""
    import numpy as np

    pixels = [_pixels(predictor, path) for path in files]
    good = [image for image in pixels if not isinstance(image, str)]
    units = iter(predictor.features(np.stack(good)).split(1) if good else [])
    return [image if isinstance(image, str) else next(units) for image in pixels]


def _estimated(predictor: "Predictor", looked_at: "Sequence[Sequence[Tensor | str]]", out: Path | None) -> "Shares":
    """The class shares of all images, shown on stderr and written if asked for."""
    import torch

    from lfm.serving.prior import AUTO

    units = [unit for some in looked_at for unit in some if not isinstance(unit, str)]
    if not units:
        raise InputError("none of the images can be used, so there is nothing to estimate class shares from")
    shares = predictor.shares(AUTO, torch.cat(units))
    assert shares is not None
    typer.echo(f"class shares estimated from {counted(len(units), 'image')}:", err=True)
    for name, share in list(shares.named(predictor.classes).items())[:SHOWN_SHARES]:
        typer.echo(f"  {100 * share:5.1f} %  {name}", err=True)
    for warning in shares.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if out:
        every = dict(zip(predictor.classes, shares.share_C.tolist(), strict=True))
        out.write_text(json.dumps(every, indent=1))
    return shares


def _answers(
    predictor: "Predictor",
    looked_at: "Sequence[Tensor | str]",
    top: int,
    new: Sequence[str],
    shares: "Shares | None",
) -> list[dict[str, Any] | str]:
    """For each file what the model says, or what is wrong with the file."""
    import torch

    good = [unit for unit in looked_at if not isinstance(unit, str)]
    rows = iter(predictor.rows(predictor.answers(torch.cat(good), top, new, shares)) if good else [])
    return [unit if isinstance(unit, str) else next(rows) for unit in looked_at]


def _pixels(predictor: "Predictor", path: Path) -> "NDArray[np.uint8] | str":
    from lfm.config.schema import DataConfig
    from lfm.data.decoding import BadImageError, decode

    grey = predictor.info["channels"] == 1
    try:
        image = decode(path.read_bytes(), str(path), DataConfig().max_megapixels, grey, predictor.ranges)
        return predictor.fit(image)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); give a file you may read"
    except BadImageError as error:
        return f"{error}; leave it out, or convert it to JPEG or PNG"
    except InputError as error:
        return f"{path} {error}"


def _line(path: Path, answer: dict[str, Any] | str) -> str:
    return json.dumps({"image": str(path), **({"error": answer} if isinstance(answer, str) else answer)})


def _shown(path: Path, answer: dict[str, Any] | str) -> str:
    if isinstance(answer, str):
        return f"{ERROR_MARK}{answer}"
    top = answer["top"]
    wide = max(len(one["label"]) for one in top)
    lines = [f"  {100 * one['probability']:5.1f} %  {one['label']:<{wide}}  {one['shot_group'] or ''}" for one in top]
    return "\n".join([f"\n{path}", *(line.rstrip() for line in lines)])


def _files(given: Sequence[Path]) -> list[Path]:
    """The files, and those of folders that end as images do."""
    from lfm.data.sources.image_folder import IMAGES

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
            if not inside:
                raise InputError(f"{path} holds no image; one ends in {', '.join(sorted(IMAGES))}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; give files or folders of images")
    return found


def serve(
    model: ModelOption = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8080,
    workers: Annotated[
        int, typer.Option("--workers", help="Number of processes, each with the model.", min=1, max=256)
    ] = 1,
    threads: Annotated[
        int, typer.Option("--threads", help="Threads of each process; 0: the cores divided among them.", min=0)
    ] = 0,
    prior: PriorOption = "none",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    body_mb: Annotated[
        float, typer.Option("--body-mb", help="Largest size of a request in megabytes.", min=0.001)
    ] = 32.0,
    images: Annotated[int, typer.Option("--images", help="Largest number of images in a request.", min=1)] = 64,
    requests: Annotated[
        int, typer.Option("--requests", help="Largest number of requests that a process handles at once.", min=1)
    ] = 32,
    home_: HomeOption = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM (docs/serving.md).

    Examples:
      lfm serve --model models:/fashion-mnist-lt@champion --port 8080

      lfm serve --workers 4 --host 0.0.0.0
    """
    set_home(home_)
    from lfm.serving.prior import read, shares_of

    given = read(prior)
    with _folder_of(model) as (folder, uri):
        from lfm.backbones.device import bf16_warning, pick_device
        from lfm.jobs.base import base_of
        from lfm.serving.settings import Settings
        from lfm.serving.supervisor import serve as run
        from lfm.storage.artifact import verify

        verify(folder)
        base_of(folder)  # each process of the server finds it in the store
        if not isinstance(given, str):
            shares_of(given, json.loads((folder / "info.json").read_text())["classes"])
        chosen = pick_device(device)
        if precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"--precision {precision} is not one of auto, fp32, bf16")
        if slow := bf16_warning(precision, chosen):
            typer.echo(slow, err=True)
        settings = Settings(
            folder=folder, model=uri, workers=workers, threads=threads, device=device, precision=precision,
            body_mb=body_mb, images=images, requests=requests, prior=given,
        )  # fmt: skip
        run(settings, host, port)


@contextmanager
def _folder_of(model: str) -> Iterator[tuple[Path, str]]:
    """The artifact of a model, downloaded if need be, and its name with the version that an alias means."""
    if model and not model.startswith("models:/"):
        found = next((path.parent for path in sorted(Path(model).rglob(MANIFEST))), None)
        if found is None:
            raise InputError(f"--model {model} holds no model; give models:/NAME@champion, or the folder of a model")
        yield found, model
        return
    from lfm.tracking import registration, registry

    uri = registry.resolve(model) if model else registry.only_one()
    with tempfile.TemporaryDirectory(prefix="lfm-model-") as folder:
        yield registration.fetch_model(uri, Path(folder)), uri

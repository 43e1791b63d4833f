"""`lfm data fetch`, `inspect`, `report`: what there is to know before training."""

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from lfm.cli.options import HomeOption, PresetArgument, SetOption, check_file, examples, read_config, use_home
from lfm.errors import InputError, counted
from lfm.storage.artifact import home

INSPECT_KEYS = (
    "classes", "counts", "gamma", "gamma_effective", "own_label_mass", "label_mass", "neighbours", "advice"
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    data = typer.Typer(no_args_is_help=True, help="Look at data before training.")
    app.add_typer(data, name="data")
    data.command()(examples(fetch))
    data.command()(examples(inspect))
    data.command(name="report")(examples(report_))


def fetch(
    name: Annotated[str, typer.Argument(help="A data set or a preset: fashion-mnist, cifar10, imagenet-lt, ...")],
    source: Annotated[str, typer.Option("--source", help="Folder of your copy. Default: LFM_HOME/downloads.")] = "",
    images: Annotated[str, typer.Option("--images", help="Folder of the images, if it is not that of the lists.")] = "",
    home_: HomeOption = None,
) -> None:
    """Show which files of a data set go where, download what can be downloaded, and check the files.

    Examples:
      lfm data fetch cifar100

      lfm data fetch imagenet-lt --source ~/lists --images /data/imagenet

      lfm data fetch custom --source ~/photos
    """
    from lfm.config.presets import PRESETS

    name = PRESETS[name]().data.name if name in PRESETS else name
    use_home(home_)
    from lfm.config.schema import DataConfig
    from lfm.data.sources.custom import KINDS
    from lfm.data.sources.registry import load as load_source
    from lfm.data.sources.registry import loader_of

    loader_of(name)
    if name == "custom" and not source:
        typer.echo(f"Nothing to fetch: set data.source to {KINDS}")
        return
    found = load_source(DataConfig(name=name, source=source, images=images, profile="as-is"))
    found.check()
    typer.echo(
        f"{name}: complete, {counted(len(found.images), 'image')} of {counted(len(found.classes), 'class', 'classes')}"
    )


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
    config = read_config(preset, set_)
    use_home(home_)
    target = picture or home() / f"inspect-{preset}.png"
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--picture {target} does not end in .png, .svg or .pdf; name it so")
    check_file(target)
    from lfm.data.class_name_audit import cleaned
    from lfm.jobs import prepare, preview
    from lfm.report import data_page

    with redirect_stdout(sys.stderr if json_ else sys.stdout):
        prepare.check(config)
        dataset, _ = prepare.dataset_for(config.data, config.model, config.seed)
        backbone, _ = prepare.backbone_for(config.model, config.seed, config.text)
        text, _ = prepare.embeddings_for(config.text, dataset, backbone)
        found = preview.inspect(config, 1, dataset, text)
        data_page.picture(target, f"{preset}, tau {config.mixup.tau:g}", found)
    if json_:
        typer.echo(json.dumps({name: found[name] for name in INSPECT_KEYS}))
        return
    typer.echo(
        f"{preset}: gamma {found['gamma']:.1f}, gamma' {found['gamma_effective']:.1f} "
        f"at tau {config.mixup.tau:g}; alpha {found['alpha']:g}\n\n{preview.describe(found)}\n\nNearest in text"
    )
    for name, near in list(zip(found["classes"], found["neighbours"], strict=True))[: preview.SHOWN_CLASSES]:
        typer.echo(f"  {name}: " + ", ".join(f"{n['class']} {n['cosine']:.2f}" for n in near))
    typer.echo("\n" + "\n".join(found["advice"]))
    if better := cleaned(found["classes"]):
        few = ", ".join(f"{name!r} -> {plain!r}" for name, plain in list(better.items())[:5])
        typer.echo(
            f"\n{counted(len(better), 'class name')} can be cleaned ({few}): `lfm data report {preset}` writes the list"
        )
    if found["collapsing"]:
        typer.echo(f"\nwarning: {found['collapsing']}")
    typer.echo(f"\nPicture: {target}")


def report_(
    preset: PresetArgument,
    set_: SetOption = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write. Default: the page's name with .json.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write. Default: data-PRESET.html in the home folder.")
    ] = None,
    home_: HomeOption = None,
) -> None:
    """Check every image and class name before any training, and list what to correct first.

    Shows images that cannot be used or are odd, equal images and images that look alike (across splits and labels
    too), class names that a text tower cannot read, and what the method will do to each class.

    Examples:
      lfm data report fashion-mnist-lt

      lfm data report custom --set data.source=PHOTOS --out report.html
    """
    config = read_config(preset, set_)
    use_home(home_)
    page = out or home() / f"data-{preset}.html"
    values = json_ or page.with_suffix(".json")
    if values == page:
        raise InputError(f"{page} cannot hold both the page and the JSON; give --out a name that ends in .html")
    for path in (page, values):
        check_file(path)
    from lfm.jobs.data_report import report_data
    from lfm.jobs.prepare import check
    from lfm.report.data_page import data_summary

    check(config)
    found, html = report_data(config)
    page.write_text(html, encoding="utf-8", errors="backslashreplace")  # a file name need not be valid Unicode
    values.write_text(json.dumps(found, indent=1))
    typer.echo(f"{preset}\n{data_summary(found)}\n\nPage: {page}\nJSON: {values}")
    _propose_names(page.with_name(f"{page.stem}-names.json"), found["audit"], config.data.class_names)


def _propose_names(file: Path, audit: Mapping[str, Any], used: str) -> None:
    """Write the cleaned names beside the page; a list of an earlier report goes where there is nothing to clean.

    Args:
        file: To write or remove.
        audit: Of the data report.
        used: `data.class_names` of this report, which stays as it is.
    """
    if used and file.exists() and file.samefile(used):
        return
    if better := audit["cleaned"]:
        proposed = {name: better.get(name, name) for name in audit["classes"]}
        file.write_text(json.dumps(proposed, indent=1, ensure_ascii=False), encoding="utf-8")
        typer.echo(f"Names: {file} (look at it, then --set data.class_names={file})")
    elif file.exists():
        file.unlink()
        typer.echo(f"Names: nothing to clean; the list of an earlier report is removed ({file})")

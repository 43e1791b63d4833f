"""Every hot part against the reference way of working, in one run: the table of docs/performance.md.

    make bench

The reference is the method as it is usually written, in our own words: for one pair at a time a walk over the
probabilities of all classes in Python; one PIL resize an image, then mixing; fp32; the whole validation set through the
tower each time; a loop over the images to count hits. `--reference PATH` times the authors' own functions instead where
their repository is at PATH. The whole loop is held against the bare model: forward, backward and optimizer on one
fixed batch in the same precision, in turns with the loop's epochs. `goal` is the ratio to reach; where a time is to be
reached, it is the ratio that makes that time. On a GPU the share of its peak that a step uses (MFU) is given, too.
Run it on an idle machine: two processes on the same cores slow each other more than twofold.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import reference as usual
from benchmarks.checkpoints import checkpoint_row
from benchmarks.inputs import jpeg_input_row, small_images, small_input_row
from benchmarks.measure import Row, row, seconds, unit_rows
from benchmarks.training import BATCH, SMALL, TOWER, loop_row, step_row, validation_row
from lfm.config.schema import ShotsConfig
from lfm.evaluation.metrics import accuracy, hits, shot_group, top_class
from lfm.method.mixup import local_sampling_rows, partner_sampler

TAU = 0.05


def partner_row(classes: int, goal: float | None, at_least: float, path: Path | None) -> Row:
    """Microseconds to draw a partner class, in batches of 256; no goal: 20 us."""
    text_CD = unit_rows(classes)
    rng = torch.Generator().manual_seed(1)
    sampler = partner_sampler(text_CD, TAU)
    label_B = torch.randint(classes, (256,), generator=rng)
    ours = seconds(lambda: sampler.draw(label_B, torch.rand(256, generator=rng, dtype=torch.float64)), at_least) / 256
    p_C = local_sampling_rows(text_CD, torch.tensor([3]), TAU)[0].float()
    draw, source = usual.way("partner", path, usual.partner(p_C), p_C)
    reference = seconds(draw, 0 if classes > 10_000 else at_least)
    return row(
        f"drawing a partner, C = {classes:,}", 1e6 * reference, 1e6 * ours, "us", goal or reference / 20e-6, source
    )


def accuracy_row(device: torch.device, images: int, at_least: float, path: Path | None) -> Row:
    """Seconds to score logits of 1,000 classes."""
    logits_NC = torch.randn(images, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    label_N = (torch.arange(images) % 1000).to(device)
    count_C, shots = torch.arange(1000) % 200 + 1, ShotsConfig()

    def ours() -> None:
        accuracy(hits(top_class(logits_NC), label_N, 1000).cpu(), count_C, shots)

    given = logits_NC.cpu(), label_N.cpu(), shot_group(count_C, shots)
    theirs, source = usual.way("accuracy", path, lambda: usual.accuracy(*given), *given)
    part = f"accuracy of {images:,} x 1,000 logits"
    return row(part, seconds(theirs, 0), seconds(ours, at_least), "s", 50, source)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure all, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements, small sizes: whether it runs")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--out", type=Path, default=None, help="also write the table as Markdown")
    parser.add_argument("--reference", type=Path, default=None, help="the authors' repository: time its functions")
    options = parser.parse_args(argv)
    if options.reference and not options.reference.is_dir():
        parser.error(f"--reference {options.reference} is no folder; give a clone of the authors' repository")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    at_least, jpegs = (0.0, 200) if options.quick else (3.0, 400)
    theirs, name = options.reference, SMALL if options.quick else TOWER
    steps, epochs = (4, 1) if options.quick else (200, 3) if device.type == "cuda" else (6, 4)
    every = 16 if options.quick else 400 if device.type == "cuda" else 12  # steps between checkpoints
    parts: list[Callable[[], Row]] = [
        lambda: small_input_row("fast", 50, device, at_least, theirs),
        lambda: small_input_row("exact", 2.8, device, at_least, theirs),
        lambda: jpeg_input_row("once", 10, jpegs, at_least),
        lambda: jpeg_input_row("each-time", 2.5, jpegs, at_least),
        *(lambda c=c: partner_row(c, 1000, at_least, theirs) for c in (100, 1000, 8142)),
        *([] if options.quick else [lambda: partner_row(100_000, None, at_least, theirs)]),
        lambda: accuracy_row(device, 1000 if options.quick else 50_000, at_least, theirs),
        lambda: step_row(1, 3.0, device, at_least, name),
        lambda: step_row(2, 3.8, device, at_least, name),
        lambda: loop_row(1, 0.97, small_images(BATCH * steps, device), epochs, name),
        lambda: loop_row(2, 0.98, small_images(BATCH * steps, device), epochs, name),
        lambda: checkpoint_row(0.97, small_images(BATCH * every, device), every, name, options.json.parent),
        lambda: validation_row(small_images(10_000, device), 32 if options.quick else 96, at_least, name),
    ]
    rows = []
    model = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    machine = f"{model}, {len(os.sched_getaffinity(0))} cores, PyTorch {torch.__version__}"
    print(machine)
    for measured in parts:
        rows.append(measured())
        part, before, source, after, unit, ratio, _ = rows[-1].cells()
        print(f"{part}: {before} ({source}) -> {after} {unit}, {ratio} x", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1))
    lines = ["| part | reference | of | ours | unit | ratio | goal |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(r.cells())} |" for r in rows]
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        about = (__doc__ or "").split("\n\n")[2]
        options.out.write_text(f"# Speed\n\nPrinted by `make bench` on {machine}.\n\n{about}\n\n{table}")
    return rows


if __name__ == "__main__":
    main()

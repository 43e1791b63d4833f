"""Partner classes for a batch of 256, beside the reference way of working: the table of docs/sampling.md.

    .venv/bin/python benchmarks/sampling.py

The reference draws as the method is usually written: for one pair at a time, p_ls over all C classes as a softmax,
then one multinomial draw. Each measurement is a process of its own, so that the peak of its memory is its own.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812

from lfm.mixup import PartnerSampler

BATCH, DIM, TAU = 256, 512, 0.05


def text(classes: int) -> torch.Tensor:
    """Random class embeddings of unit length, (C, 512)."""
    return F.normalize(torch.randn(classes, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


def _memory(field: str) -> float:
    """A figure of this process's memory in MiB: VmRSS now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def ours(classes: int, draws: int) -> tuple[float, float]:
    """Microseconds a pair and MiB of extra memory, to draw `draws` partners for each image of a batch."""
    text_CD = text(classes)
    rng = torch.Generator().manual_seed(1)
    label_B = torch.randint(classes, (BATCH,), generator=rng)
    u_BK = torch.rand(BATCH, draws, generator=rng, dtype=torch.float64)
    text_CD[:2] @ text_CD[:2].T  # the libraries' own memory is not ours to count
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: making the embeddings had its own
    before = _memory("VmRSS")
    sampler = PartnerSampler(text_CD, TAU)
    sampler.draw(label_B, u_BK)
    began = time.perf_counter()
    sampler.draw(label_B, u_BK)
    seconds = time.perf_counter() - began
    extra = _memory("VmHWM") - before
    return 1e6 * seconds / (BATCH * draws), extra


def reference(classes: int, pairs: int) -> float:
    """Microseconds a pair, one pair at a time."""
    text_CD = text(classes)
    began = time.perf_counter()
    for k in range(pairs):
        i = k % classes
        p_C = (text_CD @ text_CD[i] / TAU).softmax(dim=0)
        p_C[i] = 0
        torch.multinomial(p_C, 1)
    return 1e6 * (time.perf_counter() - began) / pairs


def measure(classes: int, draws: int) -> dict[str, float]:
    """One row, in a fresh process."""
    command = [sys.executable, __file__, "--one", str(classes), "--draws", str(draws)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each number of classes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--draws", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(argv)
    if options.one:
        cost, extra = ours(options.one, options.draws)
        slow = reference(options.one, 200 if options.one < 10_000 else 20)
        print(json.dumps({"ours": cost, "extra": extra, "reference": slow}))
        return
    lines = [
        f"# Drawing partner classes: batch {BATCH}, d = {DIM}",
        "",
        "Printed by `python benchmarks/sampling.py --out docs/sampling.md`. Microseconds a pair; extra memory is the",
        "growth of the process's peak. The reference draws one pair at a time over all classes.",
        "",
        f"Machine: {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}.",
        "",
        "| classes | partners an image | reference, us | ours, us | ratio | extra memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for classes in options.classes:
        for draws in (1, 1_000):
            row = measure(classes, draws)
            lines.append(
                f"| {classes:,} | {draws:,} | {row['reference']:,.1f} | {row['ours']:,.3f} "
                f"| {row['reference'] / row['ours']:,.0f} | {row['extra']:,.0f} |"
            )
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        options.out.write_text(table)


if __name__ == "__main__":
    main()

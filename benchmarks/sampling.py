"""Partner classes for a batch of 256, against the reference way of working: the table of docs/sampling.md.

    .venv/bin/python benchmarks/sampling.py

The reference draws as the method is usually written: for one pair at a time, p_ls over all C classes as a softmax,
then one multinomial draw. Ours is measured cold (the first batch of a new sampler) and warm (after every class was
drawn once). Each row is a process of its own, so that the peak of its memory is its own.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812

from lfm.method.mixup import TABLE_CLASSES, partner_sampler
from lfm.method.partners import BLOCK, KEPT_BYTES, ChunkPartners, TablePartners

BATCH, DIM, TAU = 256, 512, 0.05


def text(classes: int) -> torch.Tensor:
    """Random class embeddings of unit length, (C, 512)."""
    return F.normalize(torch.randn(classes, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


def _memory(field: str) -> float:
    """A figure of this process's memory in MiB: VmRSS now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def ours(classes: int) -> dict[str, float]:
    """Microseconds a pair of the first batch and of later ones, seconds to draw all classes once, MiB."""
    text_CD = text(classes)
    rng = torch.Generator().manual_seed(1)

    def batch(class_B: torch.Tensor) -> float:
        u_B = torch.rand(len(class_B), generator=rng, dtype=torch.float64)
        began = time.perf_counter()
        sampler.draw(class_B, u_B)
        return time.perf_counter() - began

    text_CD[:2] @ text_CD[:2].T  # the libraries' own memory is not ours to count
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: making the embeddings had its own
    before = _memory("VmRSS")
    began = time.perf_counter()
    sampler = partner_sampler(text_CD, TAU)
    made = time.perf_counter() - began
    cold = made + batch(torch.randint(classes, (BATCH,), generator=rng))
    every = sum(batch(class_B) for class_B in torch.randperm(classes, generator=rng).split(BATCH))
    warm = statistics.median(batch(torch.randint(classes, (BATCH,), generator=rng)) for _ in range(100))
    assert isinstance(sampler, TablePartners | ChunkPartners)
    kept = sampler.table if isinstance(sampler, TablePartners) else sampler.mass_CM
    return {
        "cold": 1e6 * cold / BATCH,
        "every": made + every,
        "warm": 1e6 * warm / BATCH,
        "kept": kept.numel() * kept.element_size() / 2**20,
        "extra": _memory("VmHWM") - before,
    }


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


def measure(classes: int) -> dict[str, float]:
    """One row, in a fresh process."""
    command = [sys.executable, __file__, "--one", str(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each number of classes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="*", default=[100, 1_000, 8_142, 100_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(argv)
    if options.one:
        found = ours(options.one)
        slow = reference(options.one, 200 if options.one < 10_000 else 20)
        print(json.dumps(found | {"reference": slow}))
        return
    lines = [
        f"# Drawing partner classes: batch {BATCH}, d = {DIM}",
        "",
        "Printed by `python benchmarks/sampling.py --out docs/sampling.md`. Microseconds a pair; the reference draws",
        "one pair at a time over all classes, the ratio is to our warm draw.",
        "",
        f"Up to {TABLE_CLASSES:,} classes the cumulative rows of p_ls are kept. Beyond, the mass of each chunk of",
        f"classes is, at most {KEPT_BYTES / 2**20:,.0f} MiB in all: computed when a class of its block of {BLOCK} is",
        "first drawn (cold), ready from then on (warm). `all classes` is the time until each was drawn once; peak is",
        "the growth of the process's largest memory.",
        "",
        f"Machine: {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}.",
        "",
        "| classes | reference, us | cold, us | all classes, s | warm, us | ratio | kept, MiB | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for classes in options.classes:
        row = measure(classes)
        lines.append(
            f"| {classes:,} | {row['reference']:,.1f} | {row['cold']:,.1f} | {row['every']:,.2f} | {row['warm']:,.3f} "
            f"| {row['reference'] / row['warm']:,.0f} | {row['kept']:,.1f} | {row['extra']:,.0f} |"
        )
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        options.out.write_text(table)


if __name__ == "__main__":
    main()

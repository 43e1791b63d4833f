"""How benchmarks/speed.py measures: rows, seconds, and what a GPU could do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

DIM = 512
PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 operations a second of GPUs whose name contains this, the first that fits; from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Row:
    """One measurement and its reference."""

    part: str
    reference: float
    ours: float
    unit: str
    ratio: float
    goal: float
    source: str = "stand-in"
    """Of the reference: "stand-in", "authors' code", "bare model", or "without" what the part is about."""
    mfu: float | None = None
    """Of ours on a GPU of `PEAK`: its operations a second by the GPU's, in percent."""

    def cells(self) -> tuple[str, ...]:
        """What a table shows."""
        mfu = "" if self.mfu is None else f" (MFU {self.mfu:.0f} %)"
        ours = f"{short(self.ours)}{mfu}"
        return self.part, short(self.reference), self.source, ours, self.unit, short(self.ratio), short(self.goal)


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def finished() -> float:
    """The time, after all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(action: Callable[[], Any], at_least: float) -> float:
    """Seconds a call takes, after one to warm up; the median of as many as fit into `at_least`, three or more."""
    action()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < at_least:
        began = finished()
        action()
        taken.append(finished() - began)
    return float(np.median(taken))


def row(part: str, reference: float, ours: float, unit: str, goal: float, source: str = "stand-in") -> Row:
    """A row; the ratio is above 1 where ours is better."""
    ratio = ours / reference if unit.endswith("/s") else reference / ours
    return Row(part, reference, ours, unit, ratio, goal, source)


def unit_rows(classes: int, dim: int = DIM) -> Tensor:
    """Random class embeddings of unit length."""
    return F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(0)), dim=1)


def utilisation(step: Callable[[], object], took: float) -> float | None:
    """Percent of the GPU's operations a second in bf16 that a step makes use of; None on other machines."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for known, peak in PEAK.items() if known in name), None)
    if peak is None:
        return None
    with FlopCounterMode(display=False) as counter:
        step()
    return float(100 * counter.get_total_flops() / took / peak)

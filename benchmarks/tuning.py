"""What it costs to tune a ViT-B/16 a little: time of a step and memory of each way, in turns, beside the whole tower.

`python -m benchmarks.tuning --out docs/tuning.md`: each way has a process of its own, whose memory is the system's
count of it; the processes take steps in turns, so that what else the machine does meets all alike.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import IO, Any

KINDS = ("full", "adaptformer", "lora", "vpt", "bias", "norm", "mask", "last:1")
CLASSES = 100
STEPS, BATCH = 5, 32


def worker(kind: str, batch: int) -> None:
    """Take a step for each line of stdin, and print its seconds; at the end what memory was taken at most."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    from benchmarks.measure import finished, unit_rows
    from lfm.backbones.assembly import Assembly
    from lfm.backbones.device import pick_device, use_bf16
    from lfm.backbones.openclip import build_image_tower
    from lfm.backbones.tuning import Tuning
    from lfm.config.schema import TowerStageConfig
    from lfm.training.memory import FrozenWeights
    from lfm.training.schedule import optimizer_of

    spec = find_spec("open_clip")
    assert spec and spec.origin
    config = json.loads((Path(spec.origin).parent / "model_configs" / "ViT-B-16.json").read_text())
    torch.manual_seed(0)
    device, libraries = pick_device("auto"), _memory("VmRSS")
    assembly = Assembly(Tuning(kind, 0, "kaiming-uniform", CLASSES, 0), "classes")
    model = assembly.model(build_image_tower(config), unit_rows(CLASSES)).to(device)
    trained = model.train_stage(1)
    bf16 = use_bf16("auto", device)
    FrozenWeights(model.image, cast=bf16)
    # The paper's way with the paper's optimizer, the others with LIFT's.
    stage = TowerStageConfig(lr=1e-6, optimizer="adam" if kind == "full" else "sgd")
    optimizer = optimizer_of(stage, trained)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    label_B = torch.arange(batch, device=device) % CLASSES
    delta = sum(value.nbytes for value in model.changing().values())
    weights = sum(parameter.numel() for parameter in trained) - CLASSES * 768
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: building a model is not training it
    print(json.dumps({"weights": weights, "delta": delta}), flush=True)
    for _ in sys.stdin:
        began = finished()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x) / 0.04, label_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(finished() - began, flush=True)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _memory("VmHWM") - libraries
    print(json.dumps({"peak": peak, "device": str(device), "bf16": bf16}), flush=True)


def _memory(what: str) -> int:
    """Memory of this process in bytes: VmRSS now, VmHWM at most since that was cleared."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def measure(kinds: Sequence[str], steps: int, batch: int) -> dict[str, dict[str, Any]]:
    """Seconds of a step, bytes and weights of each kind; steps in turns, after one to warm up."""
    command = [sys.executable, "-m", "benchmarks.tuning", "--batch", str(batch), "--worker"]
    running = {
        kind: subprocess.Popen(  # noqa: S603  ours
            [*command, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for kind in kinds
    }
    found = {kind: json.loads(_pipe(process.stdout).readline()) for kind, process in running.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(steps + 1):
        for kind, process in running.items():
            _pipe(process.stdin).write("step\n")
            _pipe(process.stdin).flush()
            seconds = float(_pipe(process.stdout).readline())
            taken[kind] += [seconds] if turn else []
    for kind, process in running.items():
        out, _ = process.communicate()
        found[kind] |= json.loads(out) | {"seconds": median(taken[kind])}
    return found


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream
    return stream


def page(found: dict[str, dict[str, Any]], batch: int, steps: int) -> str:
    """The table in Markdown."""
    full = found["full"]
    precision = "bf16" if full["bf16"] else "fp32"
    lines = [
        "# Tuning a little of the tower",
        "",
        f"`python -m benchmarks.tuning --out docs/tuning.md` wrote this on {time.strftime('%Y-%m-%d')}: ViT-B/16 of",
        f"random weights, {CLASSES} classes, batch {batch}, {precision}, {full['device']}; median of {steps} steps",
        "that were taken in turns; the whole tower with Adam, the others with SGD. Memory is the most that training",
        "took, the model included, Python and its libraries not; what is kept is what a registered version holds, with",
        "its head.",
        "",
        "| `stage1.tune` | weights | step, s | times as fast as full | memory, GiB | of full | kept, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {of['weights']:,} | {of['seconds']:.2f} | {full['seconds'] / of['seconds']:.2f} "
        f"| {of['peak'] / 2**30:.2f} | {of['peak'] / full['peak']:.2f} | {of['delta'] / 1e6:.1f} |"
        for kind, of in found.items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file for the table.")
    parser.add_argument("--kinds", default=",".join(KINDS), help="Which to measure; full is always among them.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return worker(options.worker, options.batch)
    kinds = list(dict.fromkeys(["full", *options.kinds.split(",")]))
    text = page(measure(kinds, options.steps, options.batch), options.batch, options.steps)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()

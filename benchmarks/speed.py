"""Every hot part beside the reference way of working, in one run: the table of docs/performance.md.

    make bench

The reference is the method as it is usually written, in our own words: one pair at a time, a softmax over all classes
and a draw in Python; one PIL resize an image, then mixing; fp32; a loop over the images to count hits. `goal` is what
we want to reach. Run it on an idle machine: two processes on the same cores slow each other more than twofold.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lfm.backbone import DEFAULT, build_image_tower
from lfm.config import DataConfig, ShotsConfig
from lfm.data import Images, Source, add_pixels, open_split, write
from lfm.data.decode import fitted
from lfm.data.feed import fetched_ahead, mixed_images
from lfm.data.source import TEST, TRAIN, Files
from lfm.evaluate import confusion, metrics
from lfm.mixup import PairSampler, PartnerSampler
from lfm.model import LFM
from lfm.score import use_bf16

TAU, DIM = 0.05, 512


@dataclass(frozen=True)
class Row:
    """One measurement beside its reference."""

    part: str
    reference: float
    ours: float
    unit: str
    ratio: float
    goal: float


def seconds(action: Callable[[], Any], at_least: float) -> float:
    """Seconds a call takes, after one to warm up; the median of as many as fit into `at_least`, three or more."""
    action()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < at_least:
        began = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def row(part: str, reference: float, ours: float, unit: str, goal: float) -> Row:
    """A row; the ratio is above 1 where ours is better."""
    ratio = ours / reference if unit.endswith("/s") else reference / ours
    return Row(part, reference, ours, unit, ratio, goal)


def unit_rows(classes: int, dim: int = DIM) -> Tensor:
    """Random class embeddings of unit length."""
    return F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(0)), dim=1)


# --- the reference way of working ---


def reference_partner(text_CD: Tensor, i: int, rng: np.random.Generator) -> int:
    """A partner class: similarities to all classes, a softmax, a draw, for one image."""
    weights = []
    for k in range(len(text_CD)):
        weights.append(0.0 if k == i else float(torch.exp(text_CD[i] @ text_CD[k] / TAU)))
    total = sum(weights)
    return int(rng.choice(len(weights), p=[w / total for w in weights]))


def reference_input(image_of: Callable[[int], Image.Image], pairs: Sequence[tuple[int, int, float]]) -> Tensor:
    """Mixed images: each of the two is flipped, resized by PIL, made a tensor, normalised; then they are mixed."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (DEFAULT.mean, DEFAULT.std))
    rng = np.random.default_rng(0)

    def one(i: int) -> Tensor:
        image = ImageOps.mirror(image_of(i)) if rng.random() < 0.5 else image_of(i)
        return (torch.from_numpy(np.array(fitted(image, DEFAULT))).permute(2, 0, 1).float() / 255 - mean) / std

    return torch.stack([lam * one(i) + (1 - lam) * one(j) for i, j, lam in pairs])


def reference_accuracy(logits_NC: Tensor, label_N: Tensor, count_C: Tensor) -> dict[str, float]:
    """Hits of each group, an image at a time."""
    predicted_N = F.softmax(logits_NC, dim=1).argmax(dim=1)
    hits: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for n in range(len(label_N)):
        count = int(count_C[int(label_N[n])])
        group = "many" if count > 100 else "few" if count < 20 else "medium"
        hits[group].append(int(predicted_N[n] == label_N[n]))
    return {group: float(np.mean(found)) for group, found in hits.items() if found}


# --- the parts ---


def small_images(n: int, device: torch.device, resize: str = "fast") -> Images:
    """Images of CIFAR's size on their way to a tower of 224 pixels."""
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    held, label_N = pixels.to(device), torch.arange(n) % 100

    def fetch(index_B: Tensor) -> Tensor:
        return held.index_select(0, index_B.to(device)).permute(0, 3, 1, 2)

    return Images(fetch, (3, 32, 32), label_N.to(device), DEFAULT, True, resize)


def input_row(part: str, images: Images, image_of: Callable[[int], Image.Image], goal: float, at_least: float) -> Row:
    """Mixed images a second, ready for the tower, in the paper's batches of 32; pairs are drawn before, for both."""
    sampler = PairSampler(
        images.label_N.cpu(), unit_rows(100), name="lfm", alpha=1.0, tau=TAU, batch_size=32, seed=0, stage=1
    )
    batches = [sampler.batch(0, step) for step in range(min(9, sampler.steps_per_epoch))]
    dtype = torch.bfloat16 if use_bf16("auto", images.device) else torch.float32

    def ours() -> None:
        for batch, pixels in fetched_ahead(images, batches):
            mixed_images(images, batch, True, pixels, dtype)

    pairs = [(i, j, 0.3) for i, j in batches[0].index_B2.tolist()]
    reference = seconds(lambda: reference_input(image_of, pairs), at_least)
    count = sum(len(batch.index_B2) for batch in batches)
    return row(part, len(pairs) / reference, count / seconds(ours, at_least), "mixed images/s", goal)


def small_input_row(resize: str, goal: float, device: torch.device, at_least: float) -> Row:
    """Images that lie in memory and are resized on the device."""
    images = small_images(10_000, device, resize)
    pixels = images.fetch(torch.arange(10_000)).permute(0, 2, 3, 1).cpu().numpy()
    part = {"fast": "input, CIFAR sizes", "exact": "input, CIFAR sizes, exact resize"}[resize]
    return input_row(part, images, lambda i: Image.fromarray(pixels[i]), goal, at_least)


def photo(rng: np.random.Generator) -> Image.Image:
    """A picture of ImageNet's usual size: gradients and noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-12, 12, smooth.shape, dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def jpeg_input_row(decode: Literal["once", "each-time"], goal: float, count: int, at_least: float) -> Row:
    """JPEGs of ImageNet's sizes, from a memory map of pixels decoded once, or decoded each time from the table."""
    rng, config = np.random.default_rng(0), DataConfig(name="custom", profile="as-is", decode=decode)
    with TemporaryDirectory() as place:
        raw, table, folder, work = (Path(place, name) for name in ("raw", "table", "data", "work"))
        for made in (raw, table, folder):
            made.mkdir()
        paths = [str(raw / f"{k:04d}.jpg") for k in range(count)]
        for path in paths:
            photo(rng).save(path, quality=90)
        classes = tuple(f"class {k}" for k in range(100))
        split_N = np.array([TRAIN] * (count - 100) + [TEST] * 100, np.int8)
        write(table, Source(Files(paths), np.arange(count) % 100, split_N, classes, "made here"), config, 0, work)
        add_pixels(folder, table, DEFAULT, config, work)
        part = f"input, JPEG at ImageNet sizes, {'decoded once' if decode == 'once' else 'raw'}"
        images = open_split(folder, "train")  # on the CPU: decoding is its work
        return input_row(part, images, lambda i: Image.open(paths[i]).convert("RGB"), goal, at_least)


def partner_row(classes: int, goal: float, at_least: float) -> Row:
    """Microseconds to draw a partner class, in batches of 256."""
    text_CD = unit_rows(classes)
    rng = torch.Generator().manual_seed(1)
    sampler = PartnerSampler(text_CD, TAU)
    label_B = torch.randint(classes, (256,), generator=rng)
    u_BK = torch.rand(256, 1, generator=rng, dtype=torch.float64)
    ours = seconds(lambda: sampler.draw(label_B, u_BK), at_least) / 256
    draws = np.random.default_rng(0)
    reference = seconds(lambda: reference_partner(text_CD, 3, draws), 0 if classes > 10_000 else at_least)
    return row(f"drawing a partner, C = {classes:,}", 1e6 * reference, 1e6 * ours, "us", goal)


def tower(device: torch.device) -> LFM:
    """ViT-B/32 of the paper, random weights."""
    spec = find_spec("open_clip")
    assert spec and spec.origin
    config = json.loads((Path(spec.origin).parent / "model_configs" / "ViT-B-32.json").read_text())
    torch.manual_seed(0)
    return LFM(build_image_tower(config), unit_rows(100)).to(device)


def step_row(stage: int, goal: float, device: torch.device, at_least: float) -> Row:
    """Images a second of forward, backward and optimizer step on a fixed batch of 32."""
    x = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    label_B = torch.arange(32, device=device)

    def stepper(model: nn.Module, trained: list[nn.Parameter], fast: bool) -> Callable[[], None]:
        optimizer = torch.optim.Adam(trained, lr=1e-6, fused=fast)
        batch = x.bfloat16() if fast else x

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                loss = F.cross_entropy(model(batch), label_B)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    slow = tower(device).train()
    for parameter in slow.parameters():  # as it is usually written: everything in train mode, all gradients
        parameter.requires_grad_(True)
    reference = seconds(stepper(slow, list((slow.image if stage == 1 else slow.w).parameters()), False), at_least)
    del slow
    quick = tower(device)
    ours = seconds(stepper(quick, quick.train_stage(stage), use_bf16("auto", device)), at_least)
    return row(f"stage {stage} step, ViT-B/32, batch 32", 32 / reference, 32 / ours, "images/s", goal)


def accuracy_row(device: torch.device, at_least: float) -> Row:
    """Seconds to score 50,000 x 1,000 logits."""
    logits_NC = torch.randn(50_000, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    label_N = (torch.arange(50_000) % 1000).to(device)
    count_C = torch.arange(1000) % 200 + 1
    shots = ShotsConfig()

    def ours() -> None:
        metrics(confusion(logits_NC.argmax(dim=1), label_N, 1000).cpu(), count_C, shots)

    reference = seconds(lambda: reference_accuracy(logits_NC.cpu(), label_N.cpu(), count_C), 0)
    return row("accuracy of 50,000 x 1,000 logits", reference, seconds(ours, at_least), "s", 50)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure all, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements, small sizes: whether it runs")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--out", type=Path, default=None, help="also write the table as Markdown")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    at_least, jpegs = (0.0, 200) if options.quick else (3.0, 400)
    parts: list[Callable[[], Row]] = [
        lambda: small_input_row("fast", 50, device, at_least),
        lambda: small_input_row("exact", 2.8, device, at_least),
        lambda: jpeg_input_row("once", 10, jpegs, at_least),
        lambda: jpeg_input_row("each-time", 2.5, jpegs, at_least),
        *(lambda c=c: partner_row(c, 1000, at_least) for c in (100, 1000)),
        lambda: accuracy_row(device, at_least),
    ]
    if not options.quick:
        parts += [
            lambda: partner_row(8142, 1000, at_least),
            lambda: partner_row(100_000, 3000, at_least),
            lambda: step_row(1, 3.0, device, at_least),
            lambda: step_row(2, 3.8, device, at_least),
        ]
    rows = []
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    machine = f"{name}, {len(os.sched_getaffinity(0))} cores, PyTorch {torch.__version__}"
    print(machine)
    for part in parts:
        rows.append(part())
        found = rows[-1]
        print(
            f"{found.part}: {found.reference:,.3g} -> {found.ours:,.3g} {found.unit}, {found.ratio:,.1f} x", flush=True
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1))
    lines = ["| part | reference | ours | unit | ratio | goal |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.part} | {r.reference:,.3g} | {r.ours:,.3g} | {r.unit} | {r.ratio:,.1f} | {r.goal:g} |" for r in rows
    ]
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        about = (__doc__ or "").split("\n\n")[2]
        options.out.write_text(f"# Speed\n\nPrinted by `make bench` on {machine}.\n\n{about}\n\n{table}")
    return rows


if __name__ == "__main__":
    main()

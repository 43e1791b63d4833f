"""`lfm serve` under load, against plain open_clip inference: the table of docs/serving-speed.md.

    python -m benchmarks.serving

Both sides do the same work in one process with the same tower (random weights): JPEGs in memory -> PIL, open_clip's
resize and crop -> tower -> cosines with 100 classes -> the likeliest class. Plain inference is open_clip as its README
has it, in fp32. `lfm serve` gets the files over HTTP on loopback and answers in JSON, so it also pays for its clients,
which run on the same machine. The two take turns, so that a noisy machine slows both alike; the ratio is the median
over the turns. Latencies are those of whole requests, as the clients see them. Run it on an idle machine.
"""

import argparse
import http.client
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

from benchmarks.measure import finished, short, unit_rows
from lfm.backbones.model import LFM
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import DEFAULT
from lfm.storage.artifact import publishing

CLASSES = 100
GOAL = 0.8
WAYS = (("fp32", 32, 1), ("fp32", 32, 4), ("auto", 32, 1), ("auto", 32, 4), ("auto", 1, 8))
"""Precision, images of a request, clients."""
BOUNDARY = "benchmark-boundary"


@dataclass(frozen=True)
class Row:
    """One way of asking, against plain inference on batches of as many images."""

    precision: str
    batch: int
    clients: int
    plain: float
    served: float
    ratio: float
    p50: float
    p95: float
    p99: float

    def cells(self) -> tuple[str, ...]:
        """What the table shows; rates in images/s, latencies in ms."""
        latencies = (short(1000 * value) for value in (self.p50, self.p95, self.p99))
        head = self.precision, str(self.batch), str(self.clients)
        return (*head, short(self.plain), short(self.served), f"{self.ratio:.2f}", *latencies)


def photos(count: int) -> list[bytes]:
    """JPEG files of 500 x 375 pixels, smooth as photographs are."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        out = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
        found.append(out.getvalue())
    return found


def write_model(tower: str, folder: Path) -> Any:
    """A model artifact with random weights; open_clip's own model with the same tower."""
    import open_clip

    plain = open_clip.create_model(tower, pretrained=None).eval()
    config = open_clip.get_model_config(tower)
    image = build_image_tower(config)
    image.load_state_dict(plain.visual.state_dict())
    model = LFM(image, unit_rows(CLASSES, config["embed_dim"]))
    info = {
        "tower": tower, "weights": "random", "architecture": config, "channels": 3, "image_shape": None,
        "preprocess": asdict(DEFAULT) | {"size": config["vision_cfg"]["image_size"]},
        "classes": [f"class {k}" for k in range(CLASSES)], "counts": [1] * CLASSES, "temperature": 0.01,
    }  # fmt: skip
    with publishing(folder, "model", {}) as aside:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, aside / "model.safetensors")
        (aside / "info.json").write_text(json.dumps(info))
    return plain


def plain_inference(model: Any, device: torch.device) -> Callable[[list[bytes]], list[int]]:
    """Files -> classes with open_clip, as its README does it."""
    import open_clip

    size = model.visual.image_size
    prepare = open_clip.image_transform(size if isinstance(size, int) else size[0], is_train=False)
    model, text_CD = model.to(device), unit_rows(CLASSES, model.visual.output_dim).to(device)

    @torch.no_grad()
    def classify(files: list[bytes]) -> list[int]:
        x = torch.stack([prepare(Image.open(io.BytesIO(file))) for file in files]).to(device)
        unit_ND = F.normalize(model.encode_image(x), dim=1)
        found: list[int] = (100 * unit_ND @ text_CD.T).softmax(dim=1).argmax(dim=1).tolist()
        return found

    return classify


@contextmanager
def serving(folder: Path, precision: str) -> Iterator[int]:
    """A server of one worker in a process of its own; its port."""
    command = [
        sys.executable,
        "-m",
        "lfm.cli",
        "serve",
        "--model",
        str(folder),
        "--port",
        "0",
        "--precision",
        precision,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout
    try:
        port = int(process.stdout.readline().partition("127.0.0.1:")[2].partition(",")[0])
        while True:
            try:
                if ask(port, "GET", "/ready")[0] == 200:
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def form(files: Sequence[bytes]) -> bytes:
    """The files as multipart/form-data."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}--\r\n".encode()


def load(port: int, body: bytes, batch: int, clients: int, seconds: float) -> tuple[float, list[float], list[str]]:
    """Images per second, latencies and the labels of one answer, of clients that ask again once they are answered."""
    stop, taken, labels = time.perf_counter() + seconds, [], [""]
    lock = threading.Lock()

    def client() -> None:
        while (began := time.perf_counter()) < stop:
            path, kind = "/predict?top=1", f"multipart/form-data; boundary={BOUNDARY}"
            status, answer = ask(port, "POST", path, body, kind)
            assert status == 200, answer
            with lock:
                taken.append(time.perf_counter() - began)
                labels[:] = [row["label"] for row in json.loads(answer)["predictions"]]

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return batch * len(taken) / (time.perf_counter() - began), taken, labels


def plain_rate(classify: Callable[[list[bytes]], list[int]], files: list[bytes], seconds: float) -> float:
    """Images per second."""
    began, done = finished(), 0
    while done == 0 or finished() - began < seconds:
        classify(files)
        done += len(files)
    return done / (finished() - began)


def measure(
    folder: Path, classify: Callable[[list[bytes]], list[int]], ways: Sequence[tuple[str, int, int]], turns: int,
    seconds: float,
) -> Iterator[Row]:  # fmt: skip
    """A row for each (precision, images of a request, clients)."""
    for precision in dict.fromkeys(way[0] for way in ways):
        with serving(folder, precision) as port:
            for _, batch, clients in (way for way in ways if way[0] == precision):
                files = photos(batch)
                expected, body = classify(files), form(files)
                labels = load(port, body, batch, 1, 0.1)[2]
                same = sum(label == f"class {k}" for label, k in zip(labels, expected, strict=True))
                assert same >= (batch if precision == "fp32" else 0.8 * batch), "the two sides do not agree"
                plain, served, latencies = [], [], []
                for _ in range(turns):
                    plain.append(plain_rate(classify, files, seconds))
                    rate, taken, _ = load(port, body, batch, clients, seconds)
                    served.append(rate)
                    latencies += taken
                ratio = float(np.median(np.divide(served, plain)))
                percentiles = np.percentile(latencies, (50, 95, 99)).tolist()
                yield Row(
                    precision, batch, clients, float(np.median(plain)), float(np.median(served)), ratio, *percentiles
                )


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table, write it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short turn: whether it runs")
    parser.add_argument("--tower", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--out", type=Path, default=None, help="also write the table as Markdown")
    options = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    turns, seconds = (1, 2.0) if options.quick else (5, 8.0)
    model = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    machine = f"{options.tower}, {model}, {cores} cores, PyTorch {torch.__version__}, {turns} turns of {seconds:g} s"
    print(machine, flush=True)
    columns = ("precision", "images a request", "clients", "plain fp32, images/s", "served, images/s", "ratio",
               "p50, ms", "p95, ms", "p99, ms")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        classify = plain_inference(write_model(options.tower, folder), device)
        for row in measure(folder, classify, WAYS, turns, seconds):
            rows.append(row)
            lines.append(f"| {' | '.join(row.cells())} |")
            print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    if options.out:
        about = " ".join((__doc__ or "").split("\n\n")[2].split())
        goal = f"The goal is a ratio of {GOAL} at 32 images a request."
        text = f"# Speed of serving\n\n`python -m benchmarks.serving --out {options.out}` wrote this.\n\n"
        options.out.write_text(f"{text}{machine}\n\n{table}\n{about} {goal}\n")
    return rows


if __name__ == "__main__":
    main()

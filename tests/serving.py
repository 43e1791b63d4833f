"""Models to serve, and real servers of them."""

import http.client
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.backbones import openclip, weights
from lfm.backbones.model import LFM, conv4
from lfm.backbones.text_encoders import embed
from lfm.config.schema import ModelConfig, TextConfig
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.storage.artifact import publishing
from tests.conftest import Fashion

LFM_COMMAND = Path(sys.executable).with_name("lfm")
GROUPS = ["many"] * 4 + ["medium"] * 3 + ["few"] * 3
CALIBRATION = {"temperature": 0.03, "images": 60, "split": "val", "before": 1.0, "after": 0.9}
SHIFT: dict[str, Any] = CALIBRATION | {"temperature": 0.04, "prior": [0.1] * 10}
VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COLOURS = {"red": (210, 20, 30), "green": (20, 170, 40), "blue": (30, 40, 200)}


_TRAINED: dict[int, tuple[LFM, float, float]] = {}


def trained_conv4(fashion: Fashion, text_CD: Tensor) -> tuple[LFM, float, float]:
    """A conv4 that has seen 3,000 images, and their mean and deviation. Made once: both arguments are the session's."""
    if id(text_CD) not in _TRAINED:
        x_N = torch.from_numpy(fashion.train_images[:3000].copy()).float()[:, None] / 255
        label_N = torch.from_numpy(fashion.train_labels[:3000])
        mean, std = x_N.mean().item(), x_N.std().item()
        x_N, model = (x_N - mean) / std, LFM(conv4(1, text_CD.shape[1], seed=0), text_CD)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(3):
            for here in torch.arange(3000).split(100):
                F.cross_entropy(model(x_N[here]) / 0.05, label_N[here]).backward()
                optimizer.step()
                optimizer.zero_grad()
        _TRAINED[id(text_CD)] = model, mean, std
    return _TRAINED[id(text_CD)]


def write_conv4(folder: Path, fashion: Fashion, text_CD: Tensor) -> Path:
    """A conv4 trained on Fashion-MNIST as an artifact to serve: it is sure of some images, and its answers differ."""
    model, mean, std = trained_conv4(fashion, text_CD)
    info = {
        "tower": "conv4", "weights": "random", "architecture": None, "channels": 1, "image_shape": [1, 28, 28],
        "preprocess": {"size": 0, "mean": [mean], "std": [std], "interpolation": "bicubic", "resize_mode": "squash"},
        "classes": list(CLASSES), "counts": [200] * 4 + [50] * 3 + [5] * 3, "temperature": 0.05,
        "prior": [0.1] * 10,  # it was trained on as many images of each class
    }  # fmt: skip
    return write(
        folder, model, info, {"groups": GROUPS, "calibration": CALIBRATION, "shift": SHIFT, "text": text_of("minilm")}
    )


def write_vit(folder: Path, work: Path, **more: Any) -> tuple[Path, Path]:
    """An open_clip ViT of random weights with its text tower; and the backbone it is from. `more` is in its info."""
    (work / "vit.json").write_text(json.dumps(VIT))
    whole = work / "backbone"
    whole.mkdir()
    config = ModelConfig(tower=str(work / "vit.json"), weights="random")
    weights.fetch(config, 0, whole)
    text_CD = embed(list(COLOURS), TextConfig(**text_of("backbone")), whole)
    preprocess = json.loads((whole / "preprocess.json").read_text())
    info = {
        "tower": "vit", "weights": "random", "architecture": VIT, "channels": 3, "image_shape": None,
        "preprocess": preprocess, "classes": list(COLOURS), "counts": [9, 9, 9], "temperature": 0.1,
        "prior": [1 / 3] * 3,
        **more,
    }  # fmt: skip
    model = LFM(openclip.image_tower(whole), text_CD)
    served = {"groups": ["few"] * 3, "calibration": None, "text": text_of("backbone")}
    return write(folder, model, info, served, whole), whole


def text_of(encoder: str) -> dict[str, Any]:
    """As the configuration has it."""
    return {"encoder": encoder, "prompt": "a photo of a {}"}


def write(
    folder: Path, model: LFM, info: Mapping[str, Any], served: Mapping[str, Any], whole: Path | None = None
) -> Path:
    """A served artifact."""
    with publishing(folder, "served", {}) as aside:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, aside / "model.safetensors")
        (aside / "info.json").write_text(json.dumps(info))
        (aside / "served.json").write_text(json.dumps(served))
        if whole:
            (aside / "text").mkdir()
            openclip.keep_text_half(whole, aside / "text")
    return folder


def png(pixels: NDArray[np.uint8], form: str = "png") -> bytes:
    """An image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


@dataclass
class Server:
    """A running `lfm serve`."""

    port: int
    process: "subprocess.Popen[str]"

    def ask(
        self, path: str, body: bytes | None = None, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, JSON or text, headers of one request on its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            more = {"Content-Type": kind} if kind else {}
            connection.request("GET" if body is None else "POST", path, body, {**more, **(headers or {})})
            reply = connection.getresponse()
            text = reply.read().decode()
            is_json = reply.headers.get("content-type", "").startswith("application/json")
            return reply.status, json.loads(text) if is_json else text, reply.headers
        finally:
            connection.close()

    def invoke(self, body: Any) -> tuple[int, Any]:
        """POST /invocations."""
        return self.ask("/invocations", json.dumps(body).encode(), "application/json")[:2]

    @property
    def workers(self) -> list[int]:
        """Processes that serve: forks of the supervisor's child that was started for that."""

        def children(pid: int) -> list[int]:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

        servers = [p for p in children(self.process.pid) if b"forkserver" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return [worker for server in servers for worker in children(server)]

    def wait_ready(self, seconds: float = 90) -> None:
        """Until a worker answers."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline
            try:
                if self.ask("/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)


@contextmanager
def serving(folder: Path, *options: str, program: Sequence[str] = (str(LFM_COMMAND),)) -> Iterator[Server]:
    """A server of a model in processes of its own."""
    command = [*program, "serve", "--model", str(folder), "--port", "0", "--precision", "fp32", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line
        server = Server(int(found[1]), process)
        server.wait_ready()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in server.workers:
                os.kill(pid, 9)
            process.kill()

"""All of open_clip's towers: which build without a network, which train a step, and what each needs from the hub.

    python -m benchmarks.towers --out docs/towers.md

Every image tower is built without weights, on PyTorch's meta device. Those of at most `--million` weights are drawn at
random too, and trained for two steps by the loop itself (stage 1, two images a step, float32, on the CPU, with text of
MiniLM's dimensions), each in a process of its own, since a library may crash.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from lfm.backbones import towers
from lfm.backbones.model import LFM
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.config.presets import load
from lfm.config.schema import ModelConfig
from lfm.data.images import Images
from lfm.errors import InputError, ended_by
from lfm.training.loop import Stage

CLASSES, IMAGES = 2, 4
MOST_SECONDS = 600.0
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers")


def hub_needs(name: str) -> list[str]:
    """What a run asks the Hugging Face hub for, beside the weights of a tag, with the model's own text tower."""
    text = json.loads(towers.built_in()[name].read_bytes())["text_cfg"]
    if not text:
        return ["has none"]
    needs = [f"tokenizer {text['hf_tokenizer_name']}"] if text.get("hf_tokenizer_name") else []
    return needs + ([f"text tower {text['hf_model_name']}"] if text.get("hf_model_name") else [])


def image_weights(name: str) -> int:
    """Weights of the image tower, which is built but never filled."""
    with torch.device("meta"):
        tower = build_image_tower(towers.config_of(ModelConfig(tower=name, weights="random")))
    return sum(parameter.numel() for parameter in tower.parameters())


def train(name: str) -> dict[str, Any]:
    """Two steps of stage 1 on random images with MiniLM's dimensions: seconds, memory layout, whether it draws."""
    torch.manual_seed(0)
    model = ModelConfig(tower=name, weights="random")
    config, to = towers.config_of(model, own_text=False), towers.preprocess(model)
    settings = load("custom-scratch", {
        "stage1.epochs": 1, "stage1.batch_size": IMAGES // 2, "train.validate_every": 0, "train.precision": "fp32",
        "train.device": "cpu",
    })  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    text_CD = F.normalize(torch.randn(CLASSES, config["embed_dim"], generator=rng), dim=1)
    pixels = torch.randint(0, 256, (IMAGES, 3, to.size, to.size), generator=rng, dtype=torch.uint8)
    label_N, ready = torch.arange(IMAGES) % CLASSES, Preprocess(0, to.mean, to.std, to.interpolation, to.resize_mode)
    images = Images(lambda index_B: pixels[index_B], (3, to.size, to.size), label_N, ready, held=True)
    net = LFM(build_image_tower(config), text_CD)
    before = {key: value.clone() for key, value in net.image.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(1, settings, net, images, images, Path(folder), lambda *_: None, 0.5)
        began = time.perf_counter()
        stage.run()
        seconds = (time.perf_counter() - began) / 2
    moved = sum(not torch.equal(value, before[key]) for key, value in net.image.named_parameters())
    return {"seconds": seconds, "layout": str(stage.layout).removeprefix("torch."), "moved": moved / len(before)}


def _answer(name: str, to: Any) -> None:
    try:
        to.send(train(name))
    except InputError as error:
        to.send({"error": str(error)})


def in_a_process(name: str) -> Mapping[str, Any]:
    """`train` in a fork: what it found, or `error`, how it ended."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, writer))
    process.start()
    writer.close()
    try:
        found: dict[str, Any] = reader.recv() if reader.poll(MOST_SECONDS) else {"error": "took too long"}
    except EOFError:
        process.join()
        code = process.exitcode or 0
        found = {"error": ended_by(-code) if code < 0 else f"ended with exit code {code}"}
    process.kill()
    process.join()
    return found


def row(name: str, million: float) -> str:
    """One tower's line of the table."""
    config = json.loads(towers.built_in()[name].read_bytes())
    size = towers.preprocess(ModelConfig(tower=name, weights="random")).size
    weights = image_weights(name)
    found = in_a_process(name) if weights <= million * 1e6 else None
    trained = "only built" if found is None else found.get("error") or "trains"
    layout = (found or {}).get("layout", "").replace("contiguous_format", "plain").replace("_", " ")
    tags = len(towers.tags_of(name))
    needs = "; ".join(hub_needs(name)) or "nothing"
    cells = (name, size, config["embed_dim"], f"{weights / 1e6:.0f}", trained, layout, needs, tags or "")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--million", type=float, default=100, help="train towers of at most so many million weights")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--out", type=Path, help="file to write; default: the screen")
    given = parser.parse_args()
    import open_clip  # noqa: F401  once, before the forks

    torch.set_num_threads(1)
    rows = []
    for name in towers.built_in():
        if given.only in name:
            rows.append(row(name, given.million))
            print(rows[-1], flush=True)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    if given.out:
        given.out.write_text(PAGE.format(versions=versions, million=given.million, machine=platform.machine(),
                                         count=len(rows), rows="\n".join(rows)))  # fmt: skip


PAGE = """# Towers: open_clip's, and one with ImageNet's weights

`python -m benchmarks.towers --out docs/towers.md` made this table, with {versions}, on one thread of an {machine} CPU.

All {count} towers were built without a network, those of at most {million:.0f} million weights in the image tower also
trained for two steps of two images ("only built": larger ones). Class names come from the tower's own text encoder
(`text.encoder=backbone`, the column "for its own text" says what that needs from the Hugging Face hub), or from MiniLM
(`text.encoder=minilm`), for which nothing is needed from the hub: a tower of `model.weights=random` is then drawn with
MiniLM's 384 dimensions, pre-trained weights must have them. The weights of a tag are on the hub too (the last column
counts the tags); a file of your own, or `random`, needs none of it, nor does `imagenet-lite0`, the one tag of
tf_efficientnet_lite0, which is timm's and comes from the `imagenet` extra ([data.md](data.md)).

Memory layout: which towers keep the plain one on a CPU, and why, is in [training.md](training.md).

| tower | pixels | dimensions | million weights of the image tower | training | layout | for its own text | tags |
|---|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()

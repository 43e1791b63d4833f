"""Memory of the steps against what they request on a cluster (components/resources.py).

.venv/bin/python -m benchmarks.memory            # runs each step and prints the table; 4 minutes on 2 idle cores
.venv/bin/python -m benchmarks.memory --towers   # writes lfm/backbones/tower_sizes.json; after open_clip changed
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.build import write_tree
from lfm.backbones import openclip, towers
from lfm.components.resources import GIB, SIZES, request
from lfm.config.overrides import apply_overrides
from lfm.config.presets import load
from lfm.config.schema import ModelConfig, RunConfig
from lfm.jobs.evaluation import evaluate
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.jobs.training import train_stage
from lfm.tracking.pipeline_run import begin_pipeline_run

TOWERS = ("conv4", "RN50", "ViT-B-32", "ViT-B-16")
STEPS = ("prepare", "train-stage1", "train-stage2", "evaluate")


def size_of(name: str) -> tuple[int, int, int]:
    """Weights of the image tower, of the whole model, and bytes that the image tower keeps of an image for backward.

    Built on PyTorch's meta device: no weight is held. Where the text tower is the hub's, as many weights are assumed
    as the largest that open_clip names has, XLM-RoBERTa large.
    """
    model = ModelConfig(tower=name, weights="random")
    config, size = towers.config_of(model), config_size(name)
    with torch.device("meta"):
        tower = openclip.build_image_tower(config).train()
        image = sum(weight.numel() for weight in tower.parameters())
        known = not config["text_cfg"].get("hf_model_name")
        whole = image if known else image + 560_000_000
        if known and config["text_cfg"]:
            whole = sum(weight.numel() for weight in openclip.build(config, Path()).parameters())
    own = {weight.untyped_storage()._cdata for weight in tower.parameters()}
    kept: list[torch.Tensor] = []  # held, so that no address is used twice

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x

    with saved_tensors_hooks(keep, keep):
        tower(torch.empty(2, 3, size, size, device="meta"))
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in kept}
    return image, whole, sum(bytes_ for where, bytes_ in storages.items() if where not in own) // 2


def config_size(name: str) -> int:
    """Pixels a side of a tower's images."""
    return towers.preprocess(ModelConfig(tower=name, weights="random")).size


def write_sizes() -> None:
    """The table of all towers that open_clip can build, a line each."""
    lines = []
    for name in towers.built_in():
        try:
            lines.append(f"{json.dumps(name)}: {json.dumps(size_of(name))}")
        except Exception as error:  # timm, open_clip and PyTorch each have their own kinds
            sys.stderr.write(f"{name}: not built: {str(error).splitlines()[0]}\n")
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.write(f"wrote {len(lines)} of {len(towers.built_in())} towers into {SIZES.name}\n")


def configuration(tower: str, photos: Path) -> RunConfig:
    """A run on photos, short: what is held in memory does not depend on its length."""
    return apply_overrides(
        load("custom"),
        {
            "data.source": str(photos), "model.tower": tower, "model.weights": "random",
            "stage1.epochs": 1, "stage2.epochs": 1, "train.validate_every": 0, "train.precision": "fp32",
            **({"model.image_size": 64, "text.encoder": "minilm"} if tower == "conv4" else {}),
        },
    )  # fmt: skip


def run_step(step: str, config: RunConfig) -> None:
    """One step in this process, the earlier ones taken from the store; prints its peak resident memory in GiB."""
    begin_pipeline_run("memory", step)
    dataset, _ = dataset_for(config.data, config.model, config.seed)
    backbone, _ = backbone_for(config.model, config.seed)
    text, _ = embeddings_for(config.text, dataset, backbone)
    out = Path(os.environ["LFM_HOME"])
    values, folders = config.model_dump(), (str(dataset), str(text), str(backbone))
    if step.startswith("train"):
        number = int(step[-1])
        before = str(out / "stage1") if number == 2 else ""
        train_stage(number, values, *folders, before, str(out / f"stage{number}"))
    elif step == "evaluate":
        evaluate(values, *folders, str(out / "stage2"), str(out / "metrics"), str(out / "report.html"))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stdout.write(f"\npeak {peak * 1024 / GIB:.2f}\n")


def main() -> None:
    """Each step of each tower in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--towers", action="store_true", help="write the sizes of all towers instead")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "TOWER", "PHOTOS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.towers:
        return write_sizes()
    if chosen.step:
        step, tower, photos = chosen.step
        return run_step(step, configuration(tower, Path(photos)))
    sys.stdout.write("| tower | step | peak, GiB | requested |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / "photos", 400, 300, 225)
        for tower in TOWERS:
            environment = os.environ | {
                "LFM_HOME": f"{folder}/{tower}", "LFM_PIPELINE_RUN": "of the benchmark", "OMP_NUM_THREADS": "2"
            }  # fmt: skip
            for step in STEPS:
                command = [sys.executable, "-m", "benchmarks.memory", "--step", step, tower, f"{folder}/photos"]
                output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout  # noqa: S603
                peak = output.rpartition("peak ")[2].strip()
                asked = request(step, [configuration(tower, Path(folder))], gpus=False).memory
                sys.stdout.write(f"| {tower} | {step} | {peak} | {asked} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()

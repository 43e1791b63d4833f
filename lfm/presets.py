"""One function per data set, read top to bottom, giving the whole `RunConfig`."""

from collections.abc import Callable, Mapping
from typing import Any

from lfm.config import (
    DataConfig,
    LossConfig,
    MixupConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    apply_overrides,
    unknown,
)


def fashion_mnist_lt() -> RunConfig:
    """Fashion-MNIST-LT, 10 classes, imbalance 100: real images and text without a network.

    Command: lfm run fashion-mnist-lt
    Hardware: 2 CPU cores, under a minute of training; LFM_HOME needs 200 MB.
    Expected (3 seeds, the demo's recipe): All 82.1 for LFM + CE, 79.4 for CE.
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
        stage1=StageConfig(
            epochs=40, lr=2e-3, warmup=0.05, optimizer="adamw", weight_decay=1e-2, batch_size=64, alpha=0.5
        ),
        stage2=StageConfig(epochs=10, lr=1e-3, warmup=0.05, optimizer="adamw", batch_size=64, alpha=0.5),
        train=TrainConfig(),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {"fashion-mnist-lt": fashion_mnist_lt}


def load(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The preset with overrides applied.

    Raises:
        InputError: unknown preset (the known ones are listed), unknown field, or bad value.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return apply_overrides(PRESETS[name](), overrides or {})

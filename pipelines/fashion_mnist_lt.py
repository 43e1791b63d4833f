"""Fashion-MNIST-LT as a pipeline."""

from kfp import dsl

from pipelines.longtail import Outcome, train_and_register


@dsl.pipeline(name="fashion-mnist-lt", description="Text-guided mixup on Fashion-MNIST-LT")
def fashion_mnist_lt(preset: str = "fashion-mnist-lt", overrides: dict = {}) -> Outcome:  # type: ignore[type-arg]  # noqa: B006, D103
    return train_and_register(preset, overrides)

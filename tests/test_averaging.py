"""The moving average of weights: by hand, in checkpoints, and only where it is asked for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.training.loop import Stage
from tests.small_stage import config, images, text


def trained(folder: Path, **values: object) -> tuple[LFM, list[dict[str, Tensor]]]:
    """A model of stage 1, and its weights after each step."""
    seen: list[dict[str, Tensor]] = []

    class Watched(Stage):
        def step(self, *given: object) -> Tensor:
            loss = super().step(*given)  # type: ignore[arg-type]
            seen.append({k: v.detach().clone() for k, v in self.model.image.named_parameters()})
            return loss

    model = LFM(conv4(1, 32, 0), text())
    settings = config(train__precision="fp32", train__validate_every=1, **values)
    Watched(1, settings, model, images(), images(1), folder, lambda v, _: None, 0.5).run()
    return model, seen


def test_a_stage_ends_with_the_average_of_its_weights(tmp_path: Path) -> None:
    plain, steps = trained(tmp_path / "plain")
    averaged, same_steps = trained(tmp_path / "ema", stage1__ema=0.9)
    for a, b in zip(steps, same_steps, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a), "scores in the middle leave the training as it is"
    assert all(torch.equal(steps[-1][key], value) for key, value in plain.image.named_parameters())
    start = dict(conv4(1, 32, 0).named_parameters())
    for key, value in averaged.image.named_parameters():
        mean = start[key].detach()
        for step in steps:
            mean = 0.9 * mean + 0.1 * step[key]
        assert torch.allclose(value, mean, atol=1e-6), key
        assert not torch.allclose(value, steps[-1][key], atol=1e-6)


def test_a_mean_that_stays_at_the_start_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "slow", stage1__ema=0.99)
    assert "stage1.ema: 83 % of the mean are the weights of the start after 18 steps; a decay of 0.77 leaves 1 %" in (
        capsys.readouterr().out
    )
    trained(tmp_path / "quick", stage1__ema=0.7)
    assert "ema" not in capsys.readouterr().out


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_it_goes_on_from_a_checkpoint_to_the_last_bit(decay: float, tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", stage1__ema=decay, train__checkpoint_steps=5)
    newest = max((tmp_path / "whole").glob("step-*"))
    (tmp_path / "cut").mkdir()
    newest.rename(tmp_path / "cut" / newest.name)
    again, steps = trained(tmp_path / "cut", stage1__ema=decay, train__checkpoint_steps=5)
    assert 0 < len(steps) < 15
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())

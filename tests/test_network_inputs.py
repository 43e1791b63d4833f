"""Stage 2 on features that the frozen tower makes once: beside the way through the tower, and mixed by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.config.presets import load
from lfm.errors import InputError
from lfm.training.batches import pair_sampler
from lfm.training.loop import Stage
from lfm.training.network_inputs import MixedFeatures
from lfm.training.processes import Processes
from tests.small_stage import config, images, text

ALONE = Processes(0, 1, torch.device("cpu"))


def trained(folder: Path, **values: object) -> tuple[LFM, list[float]]:
    model, losses = LFM(conv4(1, 32, 0), text()), []
    settings = config(train__precision="fp32", stage2__epochs=3, **values)
    Stage(2, settings, model, images(), images(1), folder, lambda v, _: losses.append(v["stage2/loss"]), 0.5).run()
    return model, losses


def test_without_mixing_and_flips_it_is_the_same_training(tmp_path: Path) -> None:
    plain: dict[str, object] = {"mixup__name": "none", "train__flip": False}
    through, losses = trained(tmp_path / "tower", **plain)
    cached, same = trained(tmp_path / "cached", stage2__features="cached", **plain)
    assert torch.allclose(through.w.weight, cached.w.weight, atol=1e-5)
    assert not torch.allclose(cached.w.weight, torch.eye(32), atol=1e-3)
    assert losses == pytest.approx(same, abs=1e-5)


def test_features_of_both_ways_are_mixed_as_the_draws_say() -> None:
    data, model = images(), LFM(conv4(1, 32, 0), text()).eval()
    mixed = MixedFeatures(model, data, config().train, torch.float32, ALONE)
    sampler = pair_sampler(config(), 2, data.label_N, text(), 0.5, 16)
    batch = sampler.batch(1, 0)
    after = sampler.batch(1, 0).rng
    found = mixed.mixed(batch, None, 0.0, slice(None))
    flip_2B = torch.rand(2, 16, generator=after) < 0.5
    assert 0 < int(flip_2B.sum()) < 32

    def feature(position: int, turned: bool) -> Tensor:
        x = data.exact(torch.tensor([position]))
        with torch.inference_mode():
            out: Tensor = model.image(x.flip(3) if turned else x)[0]
            return out

    for row, (i, j) in enumerate(batch.index_B2.tolist()):
        weight = float(batch.lambda_x_B[row])
        first, second = feature(i, bool(flip_2B[0, row])), feature(j, bool(flip_2B[1, row]))
        assert torch.allclose(found[row], weight * first + (1 - weight) * second, atol=1e-5)
    assert torch.equal(mixed.mixed(sampler.batch(1, 0), None, 0.0, slice(3, 9)), found[3:9])


def test_it_resumes_to_the_last_bit_and_a_searched_batch_size_is_refused(tmp_path: Path) -> None:
    values: dict[str, object] = {"stage2__features": "cached", "train__checkpoint_steps": 4}
    whole, _ = trained(tmp_path / "whole", **values)
    newest = max((tmp_path / "whole").glob("step-*"))
    (tmp_path / "cut").mkdir()
    newest.rename(tmp_path / "cut" / newest.name)
    again, _ = trained(tmp_path / "cut", **values)
    assert torch.equal(whole.w.weight, again.w.weight)
    with pytest.raises(InputError, match="batch_size auto is searched for with the tower"):
        load("custom", {"stage2.features": "cached", "stage2.batch_size": "auto"})

"""The line from the untouched tower to the tuned one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.errors import InputError
from lfm.training.loop import Stage
from lfm.training.wise import TRIED
from tests.small_stage import config, images, text


def tower() -> torch.nn.Module:
    """Without batch norm."""
    torch.manual_seed(4)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 32))


def trained(folder: Path, share: float | str, **values: object) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    model, logged = LFM(tower(), text()), []
    settings = config(train__precision="fp32", stage1__wise=share, stage1__epochs=4, **values)
    Stage(1, settings, model, images(), images(1), folder, lambda v, _: logged.append(dict(v)), 0.5).run()
    return {k: v.detach() for k, v in model.image.named_parameters()}, logged


def test_a_share_of_the_way_is_the_mean_of_both_ends(tmp_path: Path) -> None:
    start = {k: v.detach() for k, v in tower().named_parameters()}
    end, logged = trained(tmp_path / "end", 1)
    part, told = trained(tmp_path / "part", 0.3)
    for key, value in part.items():
        assert torch.allclose(value, 0.7 * start[key] + 0.3 * end[key], atol=1e-6), key
    assert told[-1] == {"stage1/wise/share": 0.3} and not any("wise" in key for key in logged[-1])
    none, _ = trained(tmp_path / "none", 0)
    assert all(torch.equal(value, start[key]) for key, value in none.items())


def test_auto_takes_the_best_on_the_validation_images_also_after_a_resume(tmp_path: Path) -> None:
    chosen, logged = trained(tmp_path / "auto", "auto", train__checkpoint_steps=7)
    found = logged[-1]
    scores = {share: found[f"stage1/wise/val {share:g}"] for share in TRIED}
    best = found["stage1/wise/share"]
    assert scores[best] == max(scores.values()) > scores[0.0]
    assert all(torch.equal(value, trained(tmp_path / "same", best)[0][key]) for key, value in chosen.items())
    newest = max((tmp_path / "auto").glob("step-*"))
    (tmp_path / "cut").mkdir()
    newest.rename(tmp_path / "cut" / newest.name)
    again, _ = trained(tmp_path / "cut", "auto", train__checkpoint_steps=7)
    assert all(torch.equal(value, chosen[key]) for key, value in again.items())


def test_what_has_no_line_or_nothing_to_choose_by_is_refused_before_training(tmp_path: Path) -> None:
    settings = config(stage1__wise=0.5)
    with pytest.raises(InputError, match=r"stage1\.wise: this tower has batch norms"):
        Stage(1, settings, LFM(conv4(1, 32, 0), text()), images(), images(1), tmp_path, lambda v, _: None, 0.5)
    none = images(1)
    none.label_N = none.label_N[:0]
    with pytest.raises(InputError, match=r"wise=auto chooses on validation images, and there are none"):
        Stage(1, config(stage1__wise="auto"), LFM(tower(), text()), images(), none, tmp_path, lambda v, _: None, 0.5)

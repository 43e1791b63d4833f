"""The loop: frozen parts, exact repetition and exact resume."""

import math
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.data.images import Images
from lfm.data.prefetch import mixed_images
from lfm.errors import InputError
from lfm.method.mixup import PairBatch
from lfm.storage.artifact import MANIFEST
from lfm.training.batches import pair_sampler
from lfm.training.nonfinite import NonFiniteLossError
from tests.small_stage import config, images, text
from tests.train_cases import start, state, train


@pytest.mark.parametrize(("number", "trained", "frozen"), [(1, "image.", "w."), (2, "w.", "image.")])
def test_a_stage_changes_its_part_and_leaves_the_other_bit_for_bit(
    number: int, trained: str, frozen: str, tmp_path: Path
) -> None:
    model = LFM(conv4(1, 32, 0), text())
    before = state(model)
    train(config(), tmp_path, number, model)
    after = state(model)
    assert all(torch.equal(before[k], after[k]) for k in after if k.startswith((frozen, "text_CD")))
    weights = [k for k in after if k.startswith(trained) and k.endswith("weight")]
    assert weights and all(not torch.equal(before[k], after[k]) for k in weights)
    if number == 2:
        assert any("running_mean" in k for k in after)  # so the equality above covered BatchNorm


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "balce", "focal", "ldam", "mms"])
@pytest.mark.parametrize("mixup", ["none", "mixup", "remix", "lfm"])
def test_every_loss_trains_with_every_mixup(loss: str, mixup: str, tmp_path: Path) -> None:
    _, logged = train(config(loss__name=loss, mixup__name=mixup, stage1__epochs=8), tmp_path)
    assert logged[-1]["stage1/loss"] < 0.9 * logged[0]["stage1/loss"]


def test_the_loss_of_a_step_is_the_papers_for_its_pairs(tmp_path: Path) -> None:
    """One step of plain SGD's worth: the logged loss of a one-batch epoch against a by-hand computation."""
    settings = config(stage1__epochs=1, stage1__batch_size=200, train__precision="fp32", train__flip=False)
    fresh = LFM(conv4(1, 32, 0), text())
    fresh.train_stage(1)
    data = images()
    batch = pair_sampler(settings, 1, data.label_N, text(), 0.5, 200).batch(0, 0)
    expected = 0.0
    pixels = data.fetch(torch.arange(len(data))).float() / 255
    mixed = torch.stack(
        [
            (lam * pixels[i] + (1 - lam) * pixels[j] - 0.5) / 0.3
            for (i, j), lam in zip(batch.index_B2.tolist(), batch.lambda_x_B.tolist(), strict=True)
        ]
    )
    logits = fresh(mixed).tolist()
    for row, labels, weights in zip(logits, batch.label_B2.tolist(), batch.weight_B2.tolist(), strict=True):
        z = [v / 0.05 for v in row]
        log_sum = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
        expected += sum(w * (log_sum - z[k]) for k, w in zip(labels, weights, strict=True)) / len(logits)
    _, logged = train(settings, tmp_path)
    assert logged[0]["stage1/loss"] == pytest.approx(expected, rel=1e-4)


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(tmp_path: Path) -> None:
    first, logged = train(config(), tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)  # global randomness must not matter
    second, again = train(config(), tmp_path / "b")
    other, _ = train(config(seed=1), tmp_path / "c")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert [v["stage1/loss"] for v in logged] == [v["stage1/loss"] for v in again]
    assert not torch.equal(first.state_dict()["image.0.weight"], other.state_dict()["image.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "fp32")])
def test_killed_with_sigkill_and_resumed_training_ends_in_the_same_weights(
    stage: int, precision: str, tmp_path: Path
) -> None:
    values = {"train__precision": precision, "train__checkpoint_steps": 5}
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors", stage, **values)
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    for _ in range(2):
        seen = {p.name for p in (tmp_path / "cut").glob("step-*")}
        process = start(tmp_path / "cut", tmp_path / "cut.safetensors", stage, **values)
        deadline = time.monotonic() + 60
        while {p.name for p in (tmp_path / "cut").glob("step-*")} <= seen and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut.safetensors").exists()
    process = start(tmp_path / "cut", tmp_path / "cut.safetensors", stage, **values)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "resumes from step" in output
    expected, found = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "cut.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(v, found[k]) for k, v in expected.items())


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(train__checkpoint_steps=4)
    whole, _ = train(settings, tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    state_file = newest / "state.safetensors"
    state_file.write_bytes(state_file.read_bytes()[:-100])
    resumed, _ = train(settings, tmp_path)
    said = capsys.readouterr().out
    assert "is torn" in said and f"resumes from step {int(newest.name[5:]) - 4}" in said
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    train(config(train__checkpoint_steps=2), tmp_path)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert len(found) == 2 and all((tmp_path / name / MANIFEST).is_file() for name in found)


def test_a_loss_that_is_no_number_stops_with_its_step_its_pairs_and_the_way_on(tmp_path: Path) -> None:
    """Weights that one huge step broke: the next step's loss is no number, for every pair of its batch."""
    broken = {"stage1__lr": 1e38, "stage1__warmup": 0.0, "train__precision": "fp32", "stage1__epochs": 9}
    settings = config(**broken)
    with pytest.raises(NonFiniteLossError, match=r"stage 1 .* step 2 of epoch 1; lower stage1\.lr") as caught:
        train(settings, tmp_path)
    batch = pair_sampler(settings, 1, images().label_N, text(), 0.5, 16).batch(0, 1)
    assert caught.value.index_K2 is not None and torch.equal(caught.value.index_K2, batch.index_B2)
    with pytest.raises(NonFiniteLossError, match=r"weights of stage 1 .* lower stage1\.lr"):
        train(config(**broken, train__checkpoint_steps=1), tmp_path)
    assert not list(tmp_path.glob("step-*")), "broken weights are not kept"


def test_only_the_pairs_whose_loss_is_no_number_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(train__precision="fp32")
    bad = 7

    def spoilt(data: Images, batch: PairBatch, *rest: object) -> Tensor:
        x = mixed_images(data, batch, False)
        return torch.where((batch.index_B2 == bad).any(dim=1)[:, None, None, None], math.inf, x)

    monkeypatch.setattr("lfm.training.network_inputs.mixed_images", spoilt)
    model = LFM(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 32)), text())
    with pytest.raises(NonFiniteLossError) as caught:
        train(settings, tmp_path, model=model)
    index_K2 = caught.value.index_K2
    assert index_K2 is not None and 0 < len(index_K2) < 16 and bool((index_K2 == bad).any(dim=1).all())


def test_another_configuration_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    train(config(train__checkpoint_steps=4), tmp_path)
    with pytest.raises(InputError, match=r"other values: mixup\.tau .* -> 0\.3, stage1\.lr 0\.002 -> 0\.001; set"):
        train(config(train__checkpoint_steps=4, stage1__lr=1e-3, mixup__tau=0.3), tmp_path)
    train(config(train__checkpoint_steps=3, stage2__lr=1e-5), tmp_path)  # neither changes stage 1's weights

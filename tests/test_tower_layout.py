"""The memory layout of a tower on a CPU, and the message where bfloat16 is slow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lfm.backbones import towers
from lfm.backbones.device import bf16_warning
from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.config.schema import ModelConfig
from lfm.training.loop import Stage
from lfm.training.memory import layout_of
from tests.conftest import REPOSITORY
from tests.small_stage import config, images, text
from tests.test_tower_draws import colour_images

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("MobileCLIP-S1", torch.contiguous_format),
        ("MobileCLIP-S2", torch.contiguous_format),
        ("MobileCLIP2-S0", torch.contiguous_format),
        ("MobileCLIP2-S2", torch.contiguous_format),
        ("RN50", torch.channels_last),
        ("ViT-B-32", torch.channels_last),
        ("convnext_base", torch.channels_last),
        ("swin_base_patch4_window7_224", torch.channels_last),
    ],
)
def test_the_layout_of_a_tower(name: str, layout: torch.memory_format) -> None:
    with torch.device("meta"):
        tower = build_image_tower(towers.config_of(ModelConfig(tower=name, weights="random")))
    assert layout_of(tower, CPU) == layout
    assert layout_of(tower, GPU) == torch.channels_last


@pytest.mark.parametrize(
    ("kernel", "stride", "plain"),
    [(1, 2, True), (2, 3, True), ((3, 1), (2, 2), True), (2, 2, False), (3, 2, False), (16, 16, False), (1, 1, False)],
)
def test_a_stride_beyond_the_kernel_decides(kernel: int, stride: int, plain: bool) -> None:
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, kernel, stride)))
    assert (layout_of(tower, CPU) == torch.contiguous_format) == plain


@pytest.mark.parametrize(("kernel", "plain"), [(1, True), (2, False)])
def test_images_come_in_the_layout_of_the_tower(kernel: int, plain: bool, tmp_path: Path) -> None:
    """A convolution takes the layout of either input: weights alone decide nothing."""
    seen: set[tuple[bool, bool]] = set()
    with torch.random.fork_rng(devices=[]):
        first = nn.Conv2d(3, 4, kernel, 2)
        tower = nn.Sequential(first, nn.Flatten(), nn.Linear(4 * 16 * 16, 32))

    def look(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0]
        seen.add((x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)))

    first.register_forward_pre_hook(look)
    settings, data = config(stage1__epochs=1, train__precision="fp32"), colour_images()
    Stage(1, settings, LFM(tower, text()), data, data, tmp_path, lambda *_: None, 0.5).run()
    assert seen == {(plain, not plain)}


def test_conv4_trains_in_the_layout_it_always_had(tmp_path: Path) -> None:
    model = LFM(conv4(1, 32, 0), text())
    stage = Stage(1, config(), model, images(), images(1), tmp_path, lambda *_: None, 0.5)
    assert stage.layout == torch.channels_last
    assert model.image[4].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]


@pytest.mark.slow
def test_towers_that_would_crash_train_by_the_command_that_makes_the_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.towers", "--only", "MobileCLIP2-S0", "--out", str(tmp_path / "towers.md")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "towers.md").read_text()
    assert re.search(r"^\| MobileCLIP2-S0 \| 256 \| 512 \| 1\d \| trains \| plain \| nothing \| \d ", page, re.M)
    assert f"torch {torch.__version__.split('+')[0]}" in page and "open_clip_torch" in page


def test_bf16_where_the_hardware_has_no_instructions_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "this CPU has no instructions that multiply bfloat16"
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    for precision, expected in (("bf16", True), ("fp32", False), ("auto", False)):
        assert (said in bf16_warning(precision, CPU)) == expected
        settings = config(train__precision=precision)
        stage = Stage(1, settings, LFM(conv4(1, 32, 0), text()), images(), images(1), tmp_path / precision,
                      lambda *_: None, 0.5)  # fmt: skip
        assert (stage.dtype == torch.bfloat16) == expected, "obeyed all the same"
        assert (said in capsys.readouterr().out) == expected
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert not bf16_warning("bf16", CPU)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert "this GPU has no instructions" in bf16_warning("bf16", GPU) and not bf16_warning("auto", GPU)

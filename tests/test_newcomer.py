"""What CONTRIBUTING.md promises a newcomer: a loss, a mixup and a data set take two files and under 40 lines each."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lfm.config.presets import load
from lfm.errors import InputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


class Edit(NamedTuple):
    """Text put before or after the only place in a file where `at` stands."""

    file: str
    at: str
    before: str = ""
    after: str = ""


LOSS = [
    Edit(
        "lfm/method/losses.py",
        "LOSSES: dict",
        before='''def squared(cosine_BC: Tensor, label_BK: Tensor, temperature: float) -> Tensor:
    """Squared error of the probabilities (Brier 1950): sum_k (p_k - onehot(y)_k)^2, p = softmax(z / T). (B, K)."""
    p_BC = (cosine_BC / temperature).softmax(dim=1)
    return 1 - 2 * p_BC.gather(1, label_BK) + p_BC.square().sum(dim=1, keepdim=True)


''',
    ),
    Edit(
        "lfm/method/losses.py",
        "= {\n",
        after='    "squared": lambda v, c: lambda z, y: squared(z, y, v.temperature),\n',
    ),
    Edit("lfm/config/schema.py", '"ldam", "mms"', after=', "squared"'),
]
MIXUP = [
    Edit(
        "lfm/method/mixup.py",
        "MIXUPS: dict",
        before='''class Swap(Mixup):
    """Mixup whose labels are mixed the other way round."""

    def label_weight(self, lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor) -> Tensor:  # noqa: D102
        return 1 - lambda_x_B


''',
    ),
    Edit("lfm/method/mixup.py", '"lfm": LocalFeatureMixup', after=', "swap": Swap'),
    Edit("lfm/config/schema.py", '"remix", "lfm"', after=', "swap"'),
]


LOADER = '''"""Two-tone squares: a data set made on the spot."""

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Source


def load_squares(config: DataConfig) -> Source:
    """Eight images a class for training, four for testing; grey, 12 pixels a side."""
    rng = np.random.default_rng(0)

    def half(images: int) -> tuple[np.ndarray, np.ndarray]:
        label_N = np.arange(2).repeat(images)
        pixels = rng.integers(0, 60, (len(label_N), 12, 12)) + 150 * label_N[:, None, None]
        return pixels.astype(np.uint8), label_N

    return Source.from_arrays(half(8), half(4), ("dark square", "bright square"), "squares 1")
'''
DATA = [
    Edit("lfm/data/sources/squares.py", "", after=LOADER),
    Edit(
        "lfm/data/sources/registry.py",
        '    "custom": Loader(',
        before='    "squares": Loader("lfm.data.sources.squares", "load_squares"),\n',
    ),
]


def copy_with(edits: Sequence[Edit], folder: Path) -> None:
    """A copy of the package with the edits, which must be few.

    Args:
        edits: applied in order.
        folder: to copy to.
    """
    shutil.copytree(ROOT / "lfm", folder / "lfm", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits:
        path = folder / edit.file
        if not edit.at:  # a new file
            path.write_text(edit.after)
            continue
        parts = path.read_text().split(edit.at)
        assert len(parts) == 2, f"{edit.at} stands {len(parts) - 1} times in {edit.file}"
        path.write_text(parts[0] + edit.before + edit.at + edit.after + parts[1])
    files = {edit.file for edit in edits}
    changed = [
        line
        for file in files
        for line in unified_diff(lines_of(ROOT / file), lines_of(folder / file), n=0)
        if line.startswith("+") and not line.startswith("+++")
    ]
    assert len(files) <= 2
    assert 0 < len(changed) < 40


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def steps(folder: Path, *settings: str) -> dict[str, Any]:
    """What a few training steps of the copied package give with these `--set`."""
    command = [sys.executable, str(ROOT / "tests" / "newcomer_steps.py"), *settings]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    assert Path(printed["package"]).is_relative_to(folder)
    return printed


def test_a_loss_is_added(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loss\.name = 'squared'.*'ce', 'balce', 'focal', 'ldam' or 'mms'"):
        load("fashion-mnist-lt", {"loss.name": "squared"})
    copy_with(LOSS, tmp_path)
    losses = steps(tmp_path, "loss.name=squared", "loss.temperature=0.1", "mixup.name=none")["losses"]
    assert all(0 <= loss <= 2 for loss in losses)
    assert losses[-1] < 0.5 * losses[0]


def test_a_mixup_is_added(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mixup\.name = 'swap'.*'none', 'mixup', 'remix' or 'lfm'"):
        load("fashion-mnist-lt", {"mixup.name": "swap"})
    copy_with(MIXUP, tmp_path)
    done = steps(tmp_path, "mixup.name=swap", "mixup.beta=2")
    assert done["label_weight"] == pytest.approx([1 - lambda_x for lambda_x in done["lambda_x"]], abs=1e-6)
    assert len(set(done["lambda_x"])) == 20


def test_a_data_set_is_added(tmp_path: Path) -> None:
    """Its artifact is built by the command, with the method's look at it; the other loaders are not imported."""
    copy_with(DATA, tmp_path)
    command = [sys.executable, "-m", "lfm.cli", "data", "inspect", "custom-scratch", "--json", "--home", str(tmp_path)]
    settings = ("data.name=squares", "model.image_size=16", "stage1.alpha=0.5")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, *(part for setting in settings for part in ("--set", setting))],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["classes"], found["counts"]) == (["dark square", "bright square"], [8, 8])
    refused = subprocess.run(
        [*command, "--set", "data.name=square"], capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=300,
    )  # fmt: skip
    assert (refused.returncode, refused.stderr) == (2, "error: unknown data set 'square'; did you mean squares?\n")

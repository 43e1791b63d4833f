"""The speed benchmark in small: that its rows are right, not how fast they are; and its two kinds of reference."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from benchmarks import inputs, measure, reference, speed
from lfm.config.schema import ShotsConfig
from lfm.evaluation.metrics import accuracy, hits, shot_group

# Written for these tests in the layout of the authors' repository: the names and arguments that the benchmark calls.
# No constructor may run, as theirs want CUDA, downloads or other arguments.
DATALOADER = """
from data.ImbalanceCIFAR import IMBALANCECIFAR100

class ResettableSubsetSampler:
    def __init__(self, indices):
        self.indices = indices
    def sample(self):
        return self.indices[0]

class LocalClassSampler:
    def __init__(self, *values):
        raise RuntimeError("no constructor")
    def get_next_j_sample(self, i):
        return self.samplers[int(self.probability_matrix[i].argmax())].sample()

def pair_local_samples(batch):
    import torch
    x = torch.stack([item[0] for item in batch]).unflatten(0, (-1, 2)).transpose(0, 1)
    y = torch.tensor([item[1] for item in batch]).view(-1, 2).T
    return x, y, None
"""
CIFAR = """
from PIL import Image

class IMBALANCECIFAR100:
    def __init__(self, *values):
        raise RuntimeError("no constructor")
    def __getitem__(self, n):
        assert self.target_transform is None
        return self.transform(Image.fromarray(self.data[n])), self.labels[n], n
"""
MIXUPS = """
class LocalFeatureMixup:
    def __init__(self, alpha, freq):
        self.alpha, self.freq = alpha, freq
    def mix(self, x_i, y_i, x_j, y_j):
        return (x_i + x_j) / 2, self.freq[y_i] + self.freq[y_j]
"""
UTILS = """
class Evaluator:
    def __init__(self, *values):
        raise RuntimeError("no constructor")
    def accuracy(self):
        assert self.device == 0
        logits, labels = self.get_tensors()
        return [self.class_subdivisions[t] for t in labels], (logits.argmax(1) == labels).float().mean()
"""
MODULES = {"data/dataloader": DATALOADER, "data/ImbalanceCIFAR": CIFAR, "mixups": MIXUPS, "utils": UTILS}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in MODULES.items():
        path = tmp_path / "theirs" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    names = {"data", *(name.replace("/", ".") for name in MODULES)}
    assert not names & set(sys.modules)
    before = list(sys.path)
    yield tmp_path / "theirs"
    assert sys.path == before
    for name in names & set(sys.modules):
        del sys.modules[name]


@pytest.mark.slow
def test_every_row_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = speed.main(["--quick", "--json", str(tmp_path / "bench.json"), "--out", str(tmp_path / "speed.md")])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written) == {"machine", "rows"} and len(written["rows"]) == len(rows) >= 10
    table = (tmp_path / "speed.md").read_text()
    assert written["machine"] in table and table.splitlines()[-1] in capsys.readouterr().out
    for found in written["rows"]:
        assert {"part", "reference", "ours", "unit", "ratio", "goal", "source"} <= set(found)
        better = found["ours"] / found["reference"]
        assert found["ratio"] == pytest.approx(better if found["unit"].endswith("/s") else 1 / better)
        assert min(found["reference"], found["ours"], found["goal"]) > 0
        bare = "whole loop" in found["part"]
        other = "without" if "checkpoint" in found["part"] else "stand-in"
        assert found["source"] == ("bare model" if bare else other) and f"| {found['part']} |" in table
        assert found["ratio"] < 10 if bare else found["ratio"] > 0.2
    assert sum("whole loop" in r.part for r in rows) == 2
    assert any(r.part.startswith("validation in stage 2") and r.ours < 1 for r in rows)


def test_the_stand_ins_do_what_ours_does() -> None:
    p_C = torch.tensor([0.0, 0.5, 0.2, 0.3])
    draw = reference.partner(p_C)
    counts = np.bincount([draw()[0] for _ in range(2000)], minlength=4)
    assert counts[0] == 0 and stats.chisquare(counts[1:], 2000 * p_C[1:].double().numpy()).pvalue > 0.01
    rng = torch.Generator().manual_seed(0)
    logits_NC, label_N = torch.randn(300, 6, generator=rng), torch.randint(6, (300,), generator=rng)
    count_C = torch.tensor([500, 200, 50, 30, 10, 5])
    found = reference.accuracy(logits_NC, label_N, shot_group(count_C, ShotsConfig()))
    ours = accuracy(hits(logits_NC.argmax(dim=1), label_N, 6), count_C, ShotsConfig())
    assert {k: 100 * v for k, v in found.items()} == pytest.approx({k: ours[k] for k in found})
    assert set(found) == {"all", "many", "medium", "few"}


def test_the_authors_functions_are_timed_where_their_repository_is(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stand_in() -> None:
        raise AssertionError

    p_C = torch.tensor([0.1, 0.2, 0.7])
    draw, source = reference.way("partner", repository, stand_in, p_C)
    assert (draw(), source) == (2, "authors' code")
    logits_NC, label_N = torch.eye(3), torch.tensor([0, 1, 0])
    score, source = reference.way("accuracy", repository, stand_in, logits_NC, label_N, ["many", "medium", "few"])
    groups, share = score()
    assert groups == ["many", "med", "many"] and share.item() == pytest.approx(2 / 3) and source == "authors' code"
    half = np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), dtype=np.uint8)
    pixels = np.concatenate([half, half[:, :, ::-1]], axis=2)  # alike in the mirror: the stand-in flips
    pairs = [(0, 1, 0.5), (2, 3, 0.5)]
    mix, source = reference.way("input", repository, stand_in, pixels, pairs)
    x, y = mix()
    assert source == "authors' code" and y.tolist() == [1 + 2, 3 + 4]
    assert torch.allclose(x, inputs.reference_input(lambda i: Image.fromarray(pixels[i]), pairs), atol=1e-5)
    assert capsys.readouterr().out == ""


def test_a_repository_that_cannot_be_used_is_told_and_the_stand_in_timed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "mixups.py").unlink()
    (repository / "utils.py").write_text("import no_such_library\n")
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    assert reference.way("input", repository, print, pixels, [(0, 1, 0.5)]) == (print, "stand-in")
    assert reference.way("accuracy", repository, print, torch.eye(2), torch.arange(2), ["few"] * 2)[1] == "stand-in"
    told = capsys.readouterr().out
    assert "input:" in told and "No module named 'mixups'" in told
    assert "accuracy:" in told and "No module named 'no_such_library'" in told
    assert reference.way("partner", None, print, torch.ones(2)) == (print, "stand-in")
    with pytest.raises(SystemExit):
        speed.main(["--reference", str(repository / "nowhere")])
    assert "is no folder; give a clone" in capsys.readouterr().err


def test_utilisation_counts_a_product_and_knows_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.ones(30, 40), torch.ones(40, 50)
    assert measure.utilisation(lambda: a @ b, 1.0) is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert measure.utilisation(lambda: a @ b, 1e-9) == pytest.approx(100 * 2 * 30 * 40 * 50 / 1e-9 / peak)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert measure.utilisation(lambda: a @ b, 1.0) is None

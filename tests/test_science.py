"""The science benchmark in small: margins, not values; and that a stopped run goes on."""

import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import sampling, science


@pytest.mark.slow
def test_lfm_beats_cross_entropy_on_fashion_mnist_lt_and_most_of_all_on_few_shot_classes(
    fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LFM_HOME", str(fashion_folder.parent.parent))
    out = ["--quick", "--out", str(tmp_path / "science")]
    first = science.main(["--seeds", "1", "--arms", "CE", *out])
    assert capsys.readouterr().out.count("seed 0: ") == 1
    scores = science.main(["--seeds", "1", "--arms", "CE", "LFM + CE", *out])
    assert "seed 0: CE" not in capsys.readouterr().out  # kept from the first call
    assert scores["CE"] == {int(k): v for k, v in first["CE"].items()}
    ce, lfm = scores["CE"][0], scores["LFM + CE"][0]
    assert lfm["all"] > ce["all"] + 1.0
    assert lfm["few"] > ce["few"] + 5.0
    table = (tmp_path / "science.md").read_text()
    for arm, score in (("CE", ce), ("LFM + CE", lfm)):
        cells = " | ".join(f"{score[k]:.1f}" for k in ("many", "medium", "few", "all"))
        assert f"| {arm} | {cells} |" in table
    assert len(json.loads((tmp_path / "science.json").read_text())["results"]) == 2


def test_the_paired_interval_is_students() -> None:
    ours, base = [82.1, 81.0, 83.2, 82.0], [79.0, 79.9, 80.1, 78.0]
    mean, half = science.paired(ours, base)
    low, high = stats.ttest_rel(ours, base).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_every_arm_is_a_valid_configuration() -> None:
    configs = {arm: science.arm_config(values, 3, {}) for arm, values in science.ARMS.items()}
    assert {config.seed for config in configs.values()} == {3}
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)


@pytest.mark.slow
def test_the_sampling_benchmark_prints_a_row_for_each_measurement(tmp_path: Path) -> None:
    sampling.main(["--classes", "50", "5000", "--out", str(tmp_path / "sampling.md")])
    rows = [line for line in (tmp_path / "sampling.md").read_text().splitlines() if line.startswith("| 5")]
    assert len(rows) == 2
    for row, kept in zip(rows, (50 * 50 * 8, 5000 * 157 * 4), strict=True):
        cells = [float(cell.replace(",", "")) for cell in row.strip("| ").split("|")]
        _, slow, cold, every, warm, ratio, kept_mib, peak = cells
        assert min(slow, cold) > warm > 0 and every >= 0 and ratio > 1
        assert kept_mib == pytest.approx(kept / 2**20, abs=0.05) and kept_mib < peak < 1024

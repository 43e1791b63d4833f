"""Where a training task runs, and that it is not on the CPU where GPUs were asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lfm.errors import InputError
from lfm.jobs.launch import check_accelerators, launch, processes_per_node
from lfm.training.task import WorkerTask
from tests.small_task import Trained


def test_a_pod_without_its_gpus_stops_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = torch.cuda.device_count()
    monkeypatch.setenv("LFM_ACCELERATOR", "nvidia.com/gpu")
    with pytest.raises(InputError, match=rf"train on {seen + 1} nvidia.com/gpu, and PyTorch sees {seen}: see that"):
        check_accelerators(seen + 1, "auto")
    check_accelerators(seen, "auto")
    check_accelerators(seen + 1, "cpu")
    monkeypatch.delenv("LFM_ACCELERATOR")
    check_accelerators(seen + 1, "auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what the pod asked for")
def test_no_step_is_made_without_the_gpus(
    small_task: WorkerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_ACCELERATOR", "nvidia.com/gpu")
    trained = Trained(replace(small_task, work=tmp_path / "work", out=tmp_path / "out"))
    assert processes_per_node(small_task.config.train) == 1
    with pytest.raises(InputError, match=r"train on 1 nvidia.com/gpu, and PyTorch sees 0"):
        launch(trained.task, trained.curves)
    assert not (tmp_path / "work").exists()

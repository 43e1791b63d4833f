"""The jobs, called as plain functions: what the steps share that the pipeline's tests would be slow to look at."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from lfm.config.presets import PRESETS, load
from lfm.data.artifact import judge
from lfm.errors import InputError
from lfm.jobs.prepare import backbone_for, check, dataset_for, embeddings_for, table_for
from lfm.jobs.preview import inspect, preview
from lfm.jobs.step import step
from lfm.training.model_artifact import new_model

LOCAL = {
    "model.tower": "conv4", "model.weights": "random", "text.encoder": "minilm", "data.verify": False,
    "data.max_per_class": 40, "data.imbalance": 8, "data.val_per_class": 5,
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_its_own_check(preset: str) -> None:
    check(load(preset, {"data.source": "."} if preset.startswith("custom") else {}))


def test_own_data_without_a_source_are_refused_before_the_weights_are_asked_for() -> None:
    with pytest.raises(
        InputError, match=r"data.source is empty; set it to your images, as in --set data.source=photos"
    ):
        check(load("custom", {"model.weights": "no-such-tag"}))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_what_the_machine_refuses_is_one_line(number: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @step
    def job() -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    with pytest.raises(SystemExit) as end:
        job()
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert (f"the disk under {home} is full" if number == errno.ENOSPC else "/some/file: Read-only") in line

    @step
    def mistake() -> None:
        raise OSError(errno.EBADF, "our own mistake")

    with pytest.raises(OSError, match="our own mistake"):
        mistake()


def test_places_has_an_alpha_for_each_stage_and_training_uses_it(tmp_path: Path) -> None:
    """Table 6: 1.25 and 1.50."""
    config = load("places-lt")
    (tmp_path / "info.json").write_text(json.dumps({"classes": ["a", "b", "c"], "counts": [9, 3, 1]}))
    save_file({"text_CD": torch.eye(3)}, tmp_path / "text.safetensors")
    assert [preview(config, stage, str(tmp_path), str(tmp_path)) for stage in (1, 2)] == [1.25, 1.5]
    found = [inspect(config, stage, tmp_path, tmp_path)["own_label_mass"] for stage in (1, 2)]
    assert found[0] != found[1]
    auto = load("places-lt", {"stage1.alpha": "auto"})
    chosen = preview(auto, 1, str(tmp_path), str(tmp_path))
    assert 0 < chosen < 1.25 and preview(auto, 2, str(tmp_path), str(tmp_path)) == 1.5
    assert preview(load("places-lt", {"mixup.name": "none"}), 1, str(tmp_path), str(tmp_path)) == 0.0


@pytest.mark.slow
def test_a_command_waits_for_no_library_before_its_steps_do() -> None:
    """What `lfm run` does itself: PyTorch and MLflow would keep it for three seconds before the first step."""
    program = (
        "import sys; from lfm.cli import main; from lfm.jobs.prepare import check; "
        "from lfm.config.presets import load; "
        "from lfm.backbones.device import check_device; from lfm.report.tables import table; "
        "import lfm.pipelines.local_run; import lfm.tracking.uri; "
        "check(load('fashion-mnist-lt')); check_device('auto'); "
        "assert not {'torch', 'mlflow', 'open_clip', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("tables")
def test_data_are_prepared_once_and_shared(home: Path, small_fashion: Path) -> None:
    config = load("fashion-mnist-lt", {**LOCAL, "data.source": str(small_fashion)})
    folder, reused = dataset_for(config.data, config.model, 0)
    assert not reused and dataset_for(config.data, config.model, 0) == (folder, True)
    other, reused = dataset_for(config.data, config.model, 1)
    assert other != folder and not reused
    resized = load("fashion-mnist-lt", {**LOCAL, "data.source": str(small_fashion), "model.image_size": 14})
    small, reused = dataset_for(resized.data, resized.model, 0)
    assert not reused and json.loads((small / "info.json").read_text())["preprocess"]["size"] == 14
    arrow = [next((place / "train").glob("*.arrow")) for place in (folder, small, table_for(config.data, 0))]
    assert len({path.stat().st_ino for path in arrow}) == 1, "one file, linked three times"
    assert not list((home / "work").glob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_embeddings_are_shared_by_all_that_ask_for_the_same_sentences(home: Path, small_fashion: Path) -> None:
    config = load("fashion-mnist-lt", {**LOCAL, "data.source": str(small_fashion)})
    folders = [dataset_for(config.data, config.model, seed)[0] for seed in (0, 1)]
    backbone, _ = backbone_for(config.model, 0)
    text, reused = embeddings_for(config.text, folders[0], backbone)
    assert not reused and embeddings_for(config.text, folders[1], backbone) == (text, True)
    changed = config.text.model_copy(update={"prompt": ("a photo of a {}", "a sketch of a {}")})
    several, reused = embeddings_for(changed, folders[0], backbone)
    assert several != text and not reused
    assert json.loads((several / "info.json").read_text())["sentences"][9] == [
        "a photo of a Ankle boot", "a sketch of a Ankle boot"
    ]  # fmt: skip


@pytest.mark.usefixtures("tables")
def test_skipping_bad_images_needs_no_new_build(home: Path, tmp_path: Path) -> None:
    from tests.pictures import encoded, photo

    for k in range(12):
        folder = tmp_path / "raw" / ("train" if k < 8 else "test") / ("a" if k % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes(encoded(photo(k, 20, 20)) if k != 3 else b"oops")
    values = {"data.source": str(tmp_path / "raw"), "model.tower": "conv4", "model.weights": "random"}
    stop = load("custom", values)
    table = table_for(stop.data, 0)
    with pytest.raises(InputError, match=r"1 of 12 images cannot be used: \S*3.png is no image"):
        dataset_for(stop.data, stop.model, 0)
    skip = load("custom", values | {"data.on_bad_image": "skip", "data.max_bad": 0.1})
    assert table_for(skip.data, 0) == table
    judge(table, skip.data)
    folder, _ = dataset_for(skip.data, skip.model, 0)
    assert json.loads((folder / "info.json").read_text())["counts"] == [3, 4]


@pytest.mark.slow
def test_runs_that_begin_at_once_in_a_new_home_all_begin(home: Path) -> None:
    program = "from lfm.tracking import pipeline_run; pipeline_run.begin_pipeline_run('several', 'a run')"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, "LFM_PIPELINE_RUN": str(k)}, stderr=subprocess.PIPE
        )
        for k in range(4)
    ]
    assert [(process.wait(120), process.stderr) for process in processes if process.wait(120)] == []
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name("several").experiment_id])) == 4


def test_image_and_text_of_different_lengths_are_refused(home: Path, tmp_path: Path) -> None:
    tower = {"embed_dim": 8, "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8,
             "patch_size": 8}, "text_cfg": {"width": 8, "heads": 2, "layers": 1}}  # fmt: skip
    (tmp_path / "tower.json").write_text(json.dumps(tower))
    config = load("custom", {"model.tower": str(tmp_path / "tower.json"), "model.weights": "random"})
    backbone, _ = backbone_for(config.model, 0)
    save_file({"text_CD": torch.eye(3)}, tmp_path / "text.safetensors")
    with pytest.raises(InputError, match=r"embeds images in 8 dimensions, text.encoder backbone text in 3"):
        new_model(config, tmp_path, tmp_path, backbone)
    save_file({"text_CD": torch.eye(8)}, tmp_path / "text.safetensors")
    assert new_model(config, tmp_path, tmp_path, backbone)(torch.zeros(2, 3, 16, 16)).shape == (2, 8)

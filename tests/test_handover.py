"""What a step hands to the next: pointers where both see one store, whole folders where they do not."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.config.presets import load
from lfm.errors import InputError
from lfm.storage import s3 as storage
from lfm.storage.artifact import MANIFEST, verify
from lfm.storage.handover import LARGEST_FILE, POINTER, hand_over, resolve
from lfm.storage.store import build_once
from tests.photos import PHOTOS
from tests.s3 import S3
from tests.warm import program

BIG = 200_000
"""Bytes of the artifact of these tests."""
REMEDY = r"run the pipeline again: its step prepare makes it again \(Retry would keep the step that succeeded\)"


def build(aside: Path) -> None:
    (aside / "deep").mkdir()
    (aside / "deep" / "pixels.npy").write_bytes(bytes(range(250)) * (BIG // 250))


def made() -> Path:
    return build_once("dataset", {"x": 1}, build)[0]


def flip(folder: Path) -> None:
    """Change one byte; size and time of change stay what they were, as when a disk fails."""
    path = folder / "deep" / "pixels.npy"
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step begins knowing nothing."""
    monkeypatch.setattr("lfm.storage.handover._known", {})


@pytest.fixture
def shared_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume that all steps mount."""
    monkeypatch.setenv("LFM_SHARED_HOME", "1")
    monkeypatch.delenv("LFM_STORE", raising=False)
    return home


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """LFM_STORE on a real server."""
    s3.use(monkeypatch)
    if "handover" not in [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]]:
        s3.client().create_bucket(Bucket="handover")
    monkeypatch.setenv("LFM_STORE", "s3://handover/team")
    monkeypatch.delenv("LFM_SHARED_HOME", raising=False)
    yield "s3://handover/team"
    s3.use(monkeypatch)
    storage.delete("s3://handover")


def test_on_a_shared_home_a_pointer_of_some_bytes_is_handed_over(shared_home: Path, tmp_path: Path) -> None:
    folder, out = made(), tmp_path / "out"
    out.mkdir()
    (out / "stray").write_text("of an attempt before")
    hand_over(folder, out)
    assert [path.name for path in out.iterdir()] == [POINTER] and (out / POINTER).stat().st_size < 200
    assert json.loads((out / POINTER).read_text())["content"] == verify(folder)["content"]
    assert resolve(str(out), "prepare") == str(folder)


def test_without_a_shared_home_the_folder_itself_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LFM_STORE", raising=False)
    folder, out = made(), tmp_path / "out"
    hand_over(folder, out)
    assert {path.name for path in out.rglob("*") if path.is_file()} == {MANIFEST, "pixels.npy"}
    shutil.rmtree(home)
    assert resolve(str(out), "prepare") == str(out) and verify(out)


def test_a_file_that_kubeflow_cannot_upload_is_refused_at_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LFM_STORE", raising=False)

    def large(aside: Path) -> None:
        with (aside / "train_images.npy").open("wb") as file:
            file.truncate(LARGEST_FILE + 1)  # no block of the disk is taken

    with monkeypatch.context() as patch:  # the checksum of 52 GB of zeros would take a minute
        patch.setattr("lfm.storage.artifact.sha256_file", lambda path: "0" * 64)
        folder, _ = build_once("dataset", {"x": "large"}, large)
    monkeypatch.setenv("LFM_PIPELINE_RUN", "a run of KFP")
    with pytest.raises(InputError, match=r"train_images.npy has 52 GB.*one volume.*data.decode=each-time"):
        hand_over(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_refused_and_a_new_run_makes_it_again(
    shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = made(), str(tmp_path / "out")
    hand_over(folder, out)
    flip(folder)
    in_new_process(monkeypatch)
    with pytest.raises(InputError, match=rf"pixels.npy is missing or does not match its checksum; {REMEDY}$"):
        resolve(out, "prepare")
    assert build_once("dataset", {"x": 1}, build) == (folder, False)
    assert resolve(out, "prepare") == str(folder)


def test_bytes_that_were_written_again_are_read_again_by_the_same_process(shared_home: Path, tmp_path: Path) -> None:
    folder, out = made(), str(tmp_path / "out")
    hand_over(folder, out)
    (folder / "deep" / "pixels.npy").write_bytes(bytes(BIG))
    with pytest.raises(InputError, match="does not match its checksum"):
        resolve(out, "prepare")


def test_what_is_nowhere_any_more_is_named_with_the_step_that_makes_it(shared_home: Path, tmp_path: Path) -> None:
    folder, out = made(), tmp_path / "out"
    hand_over(folder, out)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=rf"the dataset {folder.name} is not .* there is no {folder}; {REMEDY}$"):
        resolve(str(out), "prepare")
    (out / POINTER).write_text("{")
    for _ in range(2):
        with pytest.raises(InputError, match=rf"nothing is left in {out}, was the pipeline root emptied\? {REMEDY}$"):
            resolve(str(out), "prepare")
        shutil.rmtree(out, ignore_errors=True)


def test_other_bytes_under_the_same_key_are_not_taken(
    shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a stage was trained again on another GPU while a run waited: its scores would be of another model."""
    folder, out = made(), str(tmp_path / "out")
    hand_over(folder, out)
    shutil.rmtree(folder)
    build_once("dataset", {"x": 1}, lambda aside: (aside / "other").touch())
    with pytest.raises(InputError, match=rf"{folder} was made again with other bytes .*; {REMEDY}$"):
        resolve(out, "prepare")
    assert (folder / "other").exists(), "another run may need it"


def test_by_way_of_the_store_another_machine_finds_it(
    bucket: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "one"))
    folder, out = made(), tmp_path / "out"
    s3.client().delete_object(
        Bucket="handover", Key=f"team/dataset/{folder.name}/{verify(folder)['content']}/{MANIFEST}"
    )
    hand_over(folder, out)  # sends what a lifecycle rule took there
    assert [path.name for path in out.iterdir()] == [POINTER]
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "two"))
    found = Path(resolve(str(out), "prepare"))
    assert found.is_relative_to(tmp_path / "two") and verify(found) == verify(folder)
    flip(found)
    in_new_process(monkeypatch)
    assert verify(Path(resolve(str(out), "prepare"))) == verify(folder), "what is damaged here comes from there"
    storage.delete(bucket)
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "three"))
    with pytest.raises(
        InputError, match=rf"neither \S+/{folder.name} nor {bucket}/dataset/{folder.name} has it; {REMEDY}$"
    ):
        resolve(str(out), "prepare")


def test_a_store_that_refuses_costs_a_copy(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "one"))
    folder = made()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    hand_over(folder, tmp_path / "out")
    assert "warning: handed over whole, since it is not in the shared store" in capsys.readouterr().out
    assert resolve(str(tmp_path / "out"), "prepare") == str(tmp_path / "out") and verify(tmp_path / "out")


@pytest.mark.slow
def test_with_pointers_and_the_store_alone_a_second_machine_trains_on(
    bucket: str, empty_database: Path, tmp_path: Path
) -> None:
    """Two processes, each with a disk of its own; what goes from one to the other is LFM_STORE and the pointers."""
    photos, outputs, database = tmp_path / "photos", tmp_path / "outputs", tmp_path / "mlflow.db"
    shutil.copyfile(empty_database, database)
    for (name, k), image in PHOTOS.items():
        (photos / name).mkdir(parents=True, exist_ok=True)
        (photos / name / f"{k}.jpg").write_bytes(image)
    config = load(
        "custom-scratch",
        {"data.source": str(photos), "model.image_size": 16, "stage1.epochs": 1, "stage1.batch_size": 8,
         "stage1.alpha": 0.5, "train.validate_every": 0},
    ).model_dump()  # fmt: skip
    dataset, text, backbone, model = (str(outputs / name) for name in ("dataset", "text", "backbone", "model"))

    def machine(name: str, *jobs: list[Any]) -> str:
        environment = {
            **os.environ, "LFM_HOME": str(tmp_path / name), "LFM_PIPELINE_RUN": "a1b2",
            "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        }  # fmt: skip
        done = subprocess.run(
            [*program("run_jobs.py"), json.dumps(jobs)], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        output = done.stdout.decode()  # as it was written: text=True would hide carriage returns
        assert done.returncode == 0, output
        return output

    machine(
        "one",
        ["lfm.tracking.pipeline_run", "begin_pipeline_run", ["handed-over", "a run"]],
        ["lfm.jobs.prepare", "prepare_data", [config["data"], config["model"], 0, dataset]],
        ["lfm.jobs.prepare", "fetch_backbone", [config["model"], 0, backbone]],
        ["lfm.jobs.prepare", "embed_text", [config["text"], dataset, backbone, text]],
    )
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(photos)
    output = machine("two", ["lfm.jobs.training", "train_stage", [1, config, dataset, text, backbone, "", model]])
    assert "stage 1: done" in output and "stage 1  100%" in output and "\r" not in output
    assert sum(path.stat().st_size for path in outputs.rglob("*") if path.is_file()) < 1000
    assert (
        Path(tmp_path / "two" / "store" / "model") / json.loads((outputs / "model" / POINTER).read_text())["key"]
    ).is_dir()

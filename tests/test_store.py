"""The store that machines share: a real S3 server, and machines that are folders with nothing in common."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.errors import InputError
from lfm.storage import s3 as storage
from lfm.storage import store
from lfm.storage.artifact import publishing, read_manifest, verify
from lfm.storage.store import Mirror, build_once, fetch_checkpoints, pull, push, shared
from tests.s3 import S3
from tests.warm import lfm

ROOT = "s3://shared/team"


@pytest.fixture
def root(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3.use(monkeypatch)
    names = [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]]
    if "shared" not in names:
        s3.client().create_bucket(Bucket="shared")
    monkeypatch.setenv("LFM_STORE", ROOT)
    yield ROOT
    s3.use(monkeypatch)  # a test may have spoilt the keys
    storage.delete("s3://shared")


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("LFM_HOME", str(folder))


def write(text: str) -> Any:
    return lambda aside: ((aside / "deep").mkdir(), (aside / "deep" / "text").write_text(text))


def never(aside: Path) -> None:
    pytest.fail("built again")


def test_what_one_machine_made_another_takes(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path / "one")
    made, reused = build_once("text", {"x": 1}, write("made"))
    assert not reused
    machine(monkeypatch, tmp_path / "two")
    taken, reused = build_once("text", {"x": 1}, never)
    assert reused and taken != made and (taken / "deep" / "text").read_text() == "made"
    assert verify(taken)["content"] == verify(made)["content"]
    other, reused = build_once("text", {"x": 2}, write("other"))
    assert not reused and (other / "deep" / "text").read_text() == "other"


def test_a_part_of_an_upload_and_a_changed_one_count_as_absent(
    root: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "one")
    made, _ = build_once("text", {"x": 1}, write("made"))
    remote = f"{root}/text/{made.name}"
    kept = {item.uri: storage.read(item.uri) for item in storage.listing(remote)}
    assert len(kept) == 3
    for k, uri in enumerate(kept):
        for lost in (True, False):
            machine(monkeypatch, tmp_path / f"{k}{lost}")
            if lost:
                s3.client().delete_object(Bucket="shared", Key=uri.removeprefix("s3://shared/"))
            else:
                storage.write(uri, kept[uri][:-2])
            found, reused = build_once("text", {"x": 1}, write("made"))
            assert not reused and (found / "deep" / "text").read_text() == "made"
            assert storage.read(uri) == kept[uri], "it is mended there"


def test_two_machines_that_make_the_same_leave_an_intact_artifact(root: str, tmp_path: Path) -> None:
    """The same inputs, other bytes (as two GPUs give): whoever is last, all files are of one of them."""
    folders = []
    for name in ("a", "b"):
        with publishing(tmp_path / name, "model", {}) as aside:
            for k in range(20):
                (aside / f"{k}").write_text(name * 1000)
        folders.append(tmp_path / name)
    threads = [threading.Thread(target=push, args=(folder, f"{root}/model/key")) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pull(f"{root}/model/key", tmp_path / "taken")
    assert len({path.read_text() for path in (tmp_path / "taken").glob("[0-9]*")}) == 1


def test_a_store_that_is_down_gives_a_warning_and_what_was_made_stays(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, tmp_path)

    def build(aside: Path) -> None:
        write("made")(aside)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")  # from now on the server refuses

    folder, _ = build_once("text", {"x": 1}, build)
    assert (folder / "deep" / "text").read_text() == "made"
    assert "warning: not in the shared store" in capsys.readouterr().out
    assert build_once("text", {"x": 1}, never) == (folder, True)
    with pytest.raises(InputError, match=r"secret key is wrong|access denied"):
        build_once("text", {"x": 2}, never)
    monkeypatch.setenv("LFM_STORE", "/a/folder")
    with pytest.raises(InputError, match="LFM_STORE=/a/folder is no S3 address"):
        shared("text")


def checkpoint(folder: Path, step: int) -> Path:
    with publishing(folder / f"step-{step:09d}", "checkpoint", {"step": step}) as aside:
        (aside / "state").write_bytes(bytes([step]) * 1000)
    return folder / f"step-{step:09d}"


def test_the_last_checkpoints_reach_the_store_and_a_machine_without_any(root: str, tmp_path: Path) -> None:
    remote, curves = f"{root}/work/key", tmp_path / "curves.jsonl"
    curves.write_text("[1, {}]\n")
    mirror = Mirror(remote, 2, [curves])
    for step in range(1, 6):
        mirror.send(checkpoint(tmp_path / "one", step))
    mirror.close()
    there = store._steps(remote)
    assert there[-1] == "step-000000005" and len(there) <= 2
    fetch_checkpoints(remote, tmp_path / "two", [tmp_path / "got.jsonl"])
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["step-000000005"]
    verify(tmp_path / "two" / "step-000000005")
    fetch_checkpoints(remote, tmp_path / "three", [tmp_path / "three" / "curves.jsonl"])
    assert (tmp_path / "three" / "curves.jsonl").read_text() == "[1, {}]\n"
    own = checkpoint(tmp_path / "four", 1)
    fetch_checkpoints(remote, tmp_path / "four")
    assert list((tmp_path / "four").iterdir()) == [own], "a machine that has its own goes on with it"


def test_a_server_that_refuses_does_not_stop_training(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    mirror = Mirror(f"{root}/work/key", 2)
    mirror.send(checkpoint(tmp_path, 1))
    mirror.close()
    assert "warning: step-000000001 is not in the shared store" in capsys.readouterr().out


@pytest.mark.slow
def test_a_machine_that_lost_its_disk_goes_on_and_a_third_has_nothing_to_do(
    root: str, fashion_folder: Path, tmp_path: Path
) -> None:
    """The whole pipeline: stopped in stage 1 on one machine, ended on a second, with nothing left to do on a third."""
    values = ["data.max_per_class=60", "data.imbalance=10", "stage1.epochs=25", "stage2.epochs=1"]
    sets = [part for value in (*values, "train.checkpoint_steps=4") for part in ("--set", value)]

    def start(name: str) -> subprocess.Popen[str]:
        home = tmp_path / name
        (home / "downloads").mkdir(parents=True)
        (home / "downloads" / "fashion-mnist").symlink_to(fashion_folder)
        command = [*lfm(), "run", "fashion-mnist-lt", "--home", str(home), *sets]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    one = start("one")
    deadline = time.monotonic() + 120
    while not any("/step-" in i.uri and i.uri.endswith("manifest.json") for i in storage.listing(f"{root}/work")):
        assert one.poll() is None and time.monotonic() < deadline, one.communicate(timeout=5)
        time.sleep(0.2)
    os.kill(one.pid, signal.SIGTERM)
    one.communicate(timeout=60)
    assert one.returncode == 143
    two = start("two")
    output, _ = two.communicate(timeout=300)
    assert two.returncode == 0, output
    assert "comes from the shared store" in output and "stage 1 resumes from step" in output
    curves = next((tmp_path / "two" / "store" / "model").rglob("curves.jsonl")).parents[2].rglob("curves.jsonl")
    assert sorted(len(path.read_text().splitlines()) for path in curves) == [1, 25], "each epoch once, the early too"
    assert not storage.listing(f"{root}/work"), "checkpoints of a finished stage go"
    three = start("three")
    output, _ = three.communicate(timeout=300)
    assert three.returncode == 0 and "goes on" not in output and " steps" not in output.partition("stage 1")[2], output


def test_a_misspelt_bucket_is_refused_before_any_work_and_is_not_made(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SeaweedFS makes a bucket of any name that is written to."""
    s3.use(monkeypatch)
    machine(monkeypatch, tmp_path)
    monkeypatch.setenv("LFM_STORE", "s3://shraed/team")
    missing = "there is no bucket 'shraed'; correct the address, or create it"
    with pytest.raises(InputError, match=missing):
        build_once("text", {"x": 1}, never)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match=missing):
        storage.write("s3://shraed/team/x", b"x")
    with pytest.raises(InputError, match=missing):
        storage.upload(tmp_path / "file", "s3://shraed/x")
    mirror = Mirror("s3://shraed/team/work/key", 2)
    mirror.send(checkpoint(tmp_path, 1))
    mirror.close()
    assert "warning: step-000000001 is not in the shared store: s3://shraed/team/work/key" in capsys.readouterr().out
    assert "shraed" not in [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]]


def test_what_is_repaired_by_its_checksums_is_said(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, tmp_path / "one")
    made, _ = build_once("text", {"x": 1}, write("made"))
    (made / "deep" / "text").write_text("edited")
    assert capsys.readouterr().out == ""
    again, reused = build_once("text", {"x": 1}, never)
    said = capsys.readouterr().out
    assert reused and again == made and (made / "deep" / "text").read_text() == "made"
    assert (
        f"warning: {made / 'deep' / 'text'} is missing or does not match its checksum; it is made or fetched again"
        in said
    )
    content = read_manifest(made)["content"]
    storage.write(f"{root}/text/{made.name}/{content}/deep/text", b"spoilt")
    machine(monkeypatch, tmp_path / "two")
    build_once("text", {"x": 1}, write("made"))
    said = capsys.readouterr().out
    assert f"{root}/text/{made.name}/{content}/deep/text is missing or does not match its checksum" in said
    assert "what the shared store has is not taken" in said

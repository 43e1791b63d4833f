"""What happens to a run on the model of a KFP backend, the same for each kind of pipeline: one test file a kind.

What has become of the run in MLflow is looked at. The tests of a kind share a cluster, so that what one run prepared
the next takes from KFP's cache or from LFM_HOME.
"""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfm.storage.handover import POINTER
from tests.backend.launcher import Accident
from tests.backend.site import VARIANTS, Trained, make_site, photos, preparing, ran


class Cases:
    """To be derived from, under a name that pytest collects."""

    kind: str
    """Of pipeline."""

    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return photos(tmp_path_factory.mktemp("photos"))

    @pytest.fixture
    def other(self, source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        """Other data than any test had: in a retraining, they are trained on."""
        folder = Path(shutil.copytree(source, tmp_path / "photos"))
        pixels = np.random.default_rng(list(request.node.name.encode())).integers(0, 255, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "red" / "0.png")
        return folder

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory: pytest.TempPathFactory, source: Path, empty_database: Path) -> Trained:
        site = make_site(tmp_path_factory.mktemp(self.kind), self.kind, empty_database)
        run = site.start(source)
        assert run.state == "SUCCEEDED", run.errors or list(run.logs.items())[-2:]
        return Trained(site, run)

    def test_a_run_that_went_well(self, trained: Trained) -> None:
        assert trained.run.told == ["COMPLETE"]
        assert trained.site.end(trained.run) == "FINISHED"

    def test_the_bucket_gets_pointers_and_the_logs_plain_lines(self, trained: Trained) -> None:
        """The volume has the data already; a carriage return would make one line of a whole training."""
        cluster = trained.site.cluster
        handed = ("dataset", "embeddings", "backbone", "model")
        files = [path for path in cluster.bucket.rglob("*") if path.is_file() and path.parent.name in handed]
        assert len(files) >= len(handed) and {path.name for path in files} == {POINTER}
        logs = {path.parent.name: path.read_bytes() for path in (cluster.folder / "pods").rglob("log.txt")}
        assert b"stage 1  100% " in b"".join(logs.values())
        assert not [name for name, log in logs.items() if b"\r" in log]

    def test_a_run_with_nothing_new(self, trained: Trained, source: Path) -> None:
        run = trained.site.start(source)
        assert run.state == "SUCCEEDED", run.logs
        assert ("train-stage1" in ran(run)) == (trained.site.kind != "retrain")
        assert trained.site.end(run) == "FINISHED"

    def test_images_that_came_to_the_same_place_are_trained_on(self, trained: Trained, other: Path) -> None:
        before = trained.site.start(other)
        shutil.copy(other / "green" / "1.png", other / "blue" / "90.png")
        run = trained.site.start(other)
        assert before.state == run.state == "SUCCEEDED", run.logs
        assert "stage 1: done" in run.log("train-stage1"), "not the result of the images that were there before"

    def test_a_bucket_that_was_emptied(self, trained: Trained, source: Path, other: Path) -> None:
        bucket = trained.site.cluster.bucket
        kept = bucket.rename(bucket.with_name("kept"))
        try:
            run = trained.site.start(other if trained.site.kind == "retrain" else source)
        finally:
            shutil.rmtree(bucket, ignore_errors=True)
            kept.rename(bucket)
        assert run.state == "SUCCEEDED", run.logs
        assert trained.site.end(run) == "FINISHED"

    def test_a_mistake_of_the_user(self, trained: Trained, other: Path) -> None:
        (other / "red" / "0.png").write_text("no picture")
        run = trained.site.start(other)
        assert (run.state, run.told) == ("FAILED", ["FAILED"])
        logs = preparing(run)
        # A sweep stops at the first configuration that fails: how many had begun by then depends on the order of pods.
        assert 1 <= len(logs) <= (len(VARIANTS) if trained.site.kind == "sweep" else 1)
        assert all("error: " in log and "0.png" in log for log in logs)
        assert trained.site.end(run) == "FAILED"

    def test_a_mistake_is_not_made_again_where_failures_are_retried(self, trained: Trained, other: Path) -> None:
        (other / "green" / "1.png").write_text("no picture")
        cluster = trained.site.cluster
        cluster.policy = "Always"
        try:
            run = trained.site.start(other)
        finally:
            cluster.policy = "OnError"
        logs = preparing(run)
        errors = [next(line for line in log.splitlines() if line.startswith("error: ")) for log in logs]
        begun = len(errors) // 3
        assert 1 <= begun <= (len(VARIANTS) if trained.site.kind == "sweep" else 1)
        assert len(errors) == 3 * begun and len(set(errors)) == 1
        assert sum("│" in log for log in logs) <= begun, "nothing was begun again"
        assert (run.state, trained.site.end(run)) == ("FAILED", "FAILED")

    def test_a_program_that_crashes(self, trained: Trained, other: Path) -> None:
        run = trained.site.start(other, Accident("evaluate", "killed", lambda log: True, signal.SIGSEGV))
        assert (run.state, run.told, ran(run)[-2:]) == ("FAILED", ["FAILED"], ["evaluate", "finish"])
        assert trained.site.end(run) == "FAILED"

    def test_no_memory_in_training_and_retry(self, trained: Trained, other: Path) -> None:
        site = trained.site
        out_of_memory = Accident("train-stage1", "killed", site.in_training())
        run = site.start(other, out_of_memory, stage1__epochs=30, train__checkpoint_steps=2)
        assert (run.state, run.told) == ("FAILED", ["FAILED"])
        assert site.end(run) == "FAILED"
        pods = len(run.pods)
        run.retry([Accident("train-stage1", "lost", site.in_training())])
        assert run.state == "SUCCEEDED", run.logs
        assert ran(run).count("train-stage1") >= 3, "a pod that was lost is tried again"
        assert "finish" not in str(run.pods[pods:]), "the exit handler keeps its first end"
        assert re.search("stage 1 .* from step [1-9]", run.log("train-stage1")), "from its checkpoint"
        assert site.end(run) == "FINISHED"

    def test_terminate_in_training(self, trained: Trained, other: Path) -> None:
        site = trained.site
        run = site.start(
            other,
            Accident("train-stage1", "terminated", site.in_training()),
            stage1__epochs=600,
            train__checkpoint_steps=5,
        )
        assert (run.state, run.told, ran(run)[-2:]) == ("FAILED", ["RUNNING"], ["train-stage1", "finish"])
        assert site.end(run) == "KILLED"

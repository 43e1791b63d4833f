"""Every pipeline on the model of a KFP backend (tests/backend): what has become of its run in MLflow is looked at."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from lfm.config.presets import load
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, write
from tests.backend.run import Cluster, Run
from tests.backend.spec import Spec
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PRESET = "custom-small"
TINY = {
    "stage1.epochs": 2, "stage2.epochs": 1, "stage1.batch_size": 8, "stage2.batch_size": 8, "stage1.alpha": 0.5,
    "stage2.alpha": 0.5, "model.image_size": 16, "train.validate_every": 0,
}  # fmt: skip
COUNTS = {"red": 12, "green": 8, "blue": 6}


def photos(folder: Path) -> Path:
    """A folder a class with pictures of 16 pixels in one colour, under noise."""
    for channel, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng([channel, k]).integers(0, 90, (16, 16, 3))
            pixels[..., channel] += 150
            out = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(out, "png")
            (folder / name / f"{k}.png").write_bytes(out.getvalue())
    return folder


class Site(NamedTuple):
    """A cluster with infra/cluster.yaml, its volume and its MLflow."""

    cluster: Cluster
    settings: ClusterSettings
    source: Path

    @property
    def database(self) -> str:
        return self.cluster.held["lfm-endpoints", "MLFLOW_TRACKING_URI"]

    def compiled(self, kind: str, **changes: Any) -> Spec:
        """The pipeline as `lfm compile --cluster infra/cluster.yaml` writes it."""
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        config = load(PRESET, {**TINY, "data.source": str(self.source), **changed})
        file = self.cluster.folder / f"{kind}.yaml"
        write(KINDS[kind](config, self.settings), file)
        return Spec.read(file)

    def ends(self) -> dict[str, str]:
        """Name of each run in MLflow that has no parent -> how it ended; a child that has no end is an error."""
        client = MlflowClient(self.database)
        experiment = client.get_experiment_by_name(PRESET)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        tops = {run.info.run_id: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
        ended = {run.info.run_id for run in tops.values() if run.info.status != "RUNNING"}
        left = [r for r in runs if r.info.status == "RUNNING" and r.data.tags.get("mlflow.parentRunId") in ended]
        assert not left, f"steps without an end in runs that ended: {[run.info.run_name for run in left]}"
        return {run.data.tags["lfm.pipeline_run"]: run.info.status for run in tops.values()}


def make_site(folder: Path, source: Path) -> Site:
    values = yaml.safe_load((REPOSITORY / "infra" / "cluster.yaml").read_text())
    values["home"]["path"] = str(folder / "volume")
    (folder / "volume").mkdir(parents=True, exist_ok=True)
    settings = ClusterSettings.model_validate(values | {"image": "lfm:test"})
    held = {(one.name, key): "unused" for one in (*settings.secrets, *settings.config_maps) for key in one.keys}
    held["lfm-endpoints", "MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    held["lfm-endpoints", "LFM_S3_ENDPOINT_URL"] = "http://127.0.0.1:9"
    return Site(Cluster(folder, held), settings, source)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, source: Path) -> tuple[Site, Run]:
    """A cluster on which one training went well."""
    site = make_site(tmp_path_factory.mktemp("cluster"), source)
    return site, site.cluster.start(site.compiled("train"))


def test_a_training_that_went_well(trained: tuple[Site, Run]) -> None:
    _, run = trained
    assert run.state == "SUCCEEDED", run.errors or run.logs
    assert run.told == ["COMPLETE"]


@pytest.mark.xfail(strict=True, reason="B1: finish knows SUCCEEDED alone")
def test_a_training_that_went_well_is_finished_in_mlflow(trained: tuple[Site, Run]) -> None:
    site, run = trained
    assert site.ends() == {run.id: "FINISHED"}

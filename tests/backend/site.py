"""A cluster on which the pipelines of a kind run, with tiny data: what the tests of all kinds share."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from mlflow import MlflowClient
from PIL import Image

from lfm.config.presets import load
from lfm.config.sweeps import variants_of
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compile import KINDS, write
from lfm.pipelines.compiled import Spec
from tests.backend.launcher import Accident
from tests.backend.run import Cluster, Run
from tests.conftest import REPOSITORY

PRESET = "custom-scratch"
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


VARIANTS = variants_of("alpha", (0.0, 0.5))
"""Of a sweep: with two, all that a loop can do wrong can happen."""


class Site(NamedTuple):
    """A cluster with infra/cluster.yaml, its volume and its MLflow, and the kind of pipeline that runs there."""

    cluster: Cluster
    settings: ClusterSettings
    kind: str

    @property
    def database(self) -> str:
        return self.cluster.held["lfm-endpoints", "MLFLOW_TRACKING_URI"]

    @property
    def volume(self) -> Path:
        """LFM_HOME of every step."""
        assert self.settings.home
        return Path(self.settings.home.path)

    def start(self, source: Path, *accidents: Accident, **changes: Any) -> Run:
        """Run the pipeline as `lfm compile --cluster infra/cluster.yaml` writes it.

        Args:
            source: The pictures.
            accidents: What befalls the steps.
            changes: Fields of the configuration, __ for the point.
        """
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        config = load(PRESET, {**TINY, "data.source": str(source), **changed})
        file = self.cluster.folder / "pipeline.yaml"
        write(KINDS[self.kind](config, self.settings), file)
        arguments = {"variants": VARIANTS} if self.kind == "sweep" else {}
        return self.cluster.start(Spec.read(file), arguments, accidents)

    def in_training(self) -> Callable[[str], bool]:
        """Whether a checkpoint was written since."""
        before = set(self.volume.glob("work/*/checkpoints/step-*"))
        return lambda log: bool(set(self.volume.glob("work/*/checkpoints/step-*")) - before)

    def end(self, run: Run) -> str:
        """How a run ended in MLflow; nothing below it may be without an end."""
        client = MlflowClient(self.database)
        experiment = client.get_experiment_by_name(PRESET)
        assert experiment
        runs = {one.info.run_id: one for one in client.search_runs([experiment.experiment_id])}
        (top,) = (one for one in runs.values() if one.data.tags.get("lfm.pipeline_run") == run.id)
        left = [
            one for one in runs.values() if self._below(one, top.info.run_id, runs) and one.info.status == "RUNNING"
        ]
        assert not left or top.info.status == "RUNNING", [one.info.run_name for one in left]
        return str(top.info.status)

    @staticmethod
    def _below(run: Any, top: str, runs: dict[str, Any]) -> bool:
        while above := run.data.tags.get("mlflow.parentRunId"):
            if above == top:
                return True
            run = runs[above]
        return False


def make_site(folder: Path, kind: str, tables: Path) -> Site:
    values = yaml.safe_load((REPOSITORY / "infra" / "cluster.yaml").read_text())
    values["home"]["path"] = str(folder / "volume")
    (folder / "volume").mkdir()
    shutil.copyfile(tables, folder / "mlflow.db")
    settings = ClusterSettings.model_validate(values | {"image": "lfm:test"})
    held = {(one.name, key): "unused" for one in (*settings.secrets, *settings.config_maps) for key in one.keys}
    held["lfm-endpoints", "MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    held["lfm-endpoints", "LFM_S3_ENDPOINT_URL"] = "http://127.0.0.1:9"
    return Site(Cluster(folder, held), settings, kind)


class Trained(NamedTuple):
    """A cluster on which one run went well."""

    site: Site
    run: Run


def ran(run: Run) -> list[str]:
    """The steps that had a program, in order."""
    return [pod.split("/")[-1] for pod in run.pods if not pod.startswith("driver")]


def preparing(run: Run) -> list[str]:
    """What each attempt of the step printed that reads the pictures."""
    return [log for path, log in run.logs.items() if path.split("/")[-1].startswith("prepare")]

"""MLflow: one parent run per pipeline run, a child per step, the registered model. The only file with mlflow.

Which pipeline run a step belongs to comes from the environment, so that it does not enter KFP's cache keys:
MLFLOW_RUN_ID (KFP's own plugin) names the parent itself, else LFM_PIPELINE_RUN is a key under which the first
step makes the parent and the others find it.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from lfm import __version__
from lfm.artifact import home
from lfm.config import InputError, RunConfig, flatten

KEY = "lfm.pipeline_run"
CONTENT = "lfm.content"
SERVING_PACKAGES = (
    "filelock", "mlflow", "numpy", "open-clip-torch", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml",
    "safetensors", "torch", "torchvision", "tqdm",
)  # fmt: skip


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in LFM_HOME."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def commit() -> str:
    """Git commit of the running code: LFM_COMMIT (set in the image), else git's word, else the version."""
    if os.environ.get("LFM_COMMIT"):
        return os.environ["LFM_COMMIT"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"lfm {__version__}"
    return done.stdout.strip()


class Tracker:
    """A run in MLflow that a step writes to: its child, and the pipeline run's parent above it.

    Args:
        client: of the tracking server.
        parent: run id of the pipeline run.
        child: run id of the step.
    """

    def __init__(self, client: MlflowClient, parent: str, child: str) -> None:
        self.client, self.parent, self.child = client, parent, child

    def params(self, values: Mapping[str, Any], on_parent: bool = False) -> None:
        """Log parameters; the same value again is fine, as after a retry."""
        params = [Param(k, str(v)) for k, v in values.items()]
        for run in [self.child, *([self.parent] if on_parent else [])]:
            self.client.log_batch(run, params=params)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Tag both the step and the pipeline run."""
        for run in (self.child, self.parent):
            self.client.log_batch(run, tags=[RunTag(k, str(v)) for k, v in values.items()])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a point of each curve on both the step and the pipeline run."""
        now = get_current_time_millis()
        points = [Metric(k, float(v), now, step) for k, v in values.items()]
        for run in (self.child, self.parent):
            self.client.log_batch(run, metrics=points)

    def text(self, content: str, name: str) -> None:
        """Keep a text file among the pipeline run's artifacts."""
        self.client.log_text(self.parent, content, name)

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a file among the pipeline run's artifacts."""
        self.client.log_artifact(self.parent, str(path), folder or None)

    def config(self, config: RunConfig) -> None:
        """The resolved configuration: a parameter a field, and a file that `lfm run` could repeat."""
        self.params(flatten(config), on_parent=True)
        self.text(yaml.safe_dump(config.model_dump(), sort_keys=False), "config.yaml")


def connect() -> MlflowClient:
    """A client of the tracking server, or of the SQLite file.

    Raises:
        InputError: the server does not answer.
    """
    uri = tracking_uri()
    if uri.startswith("sqlite"):
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / "mlflow.lock"):  # the first client makes the tables, which two at once cannot
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    # MLflow's own limits keep a client of a dead server waiting for minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        address = urlsplit(uri)  # its user and password stay out of the message
        raise InputError(
            f"the MLflow server at {address.hostname}:{address.port} does not answer or refuses; "
            f"start it, correct MLFLOW_TRACKING_URI, or unset it to log to a file"
        ) from error
    return client


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Beside the SQLite file artifacts go to a folder; a server decides by itself.
    location = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another step made it in between
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _find(client: MlflowClient, key: str) -> Run | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{KEY}` = '{key}'", max_results=1)
    return runs[0] if runs else None


def _parent(client: MlflowClient) -> str | None:
    """Run id of the pipeline run that this process belongs to, if it has begun."""
    if os.environ.get("MLFLOW_RUN_ID"):
        return os.environ["MLFLOW_RUN_ID"]
    found = _find(client, os.environ.get("LFM_PIPELINE_RUN", ""))
    return str(found.info.run_id) if found else None


def begin_pipeline_run(experiment: str, name: str) -> None:
    """Make the parent run, or rename the one that is there (KFP's own, or an earlier try's).

    Raises:
        InputError: nothing says which pipeline run this process belongs to.
    """
    client = connect()
    parent = _parent(client)
    if parent:
        client.update_run(parent, name=name)
        return
    key = os.environ.get("LFM_PIPELINE_RUN")
    if not key:
        raise InputError("LFM_PIPELINE_RUN is not set, so this step belongs to no pipeline run; start it with lfm run")
    client.create_run(_experiment(client, experiment), tags={KEY: key, "lfm.commit": commit()}, run_name=name)


def end_pipeline_run(ok: bool) -> None:
    """Give the parent run its final status, if it ever began. After a failure, as well as that goes."""
    with nullcontext() if ok else suppress(Exception):
        client = connect()
        parent = _parent(client)
        if parent:
            client.set_terminated(parent, "FINISHED" if ok else "FAILED")


@contextmanager
def step_run(step: str) -> Iterator[Tracker]:
    """A child run for a step; FAILED if the body raises.

    Raises:
        InputError: the pipeline run has not begun.
    """
    client = connect()
    parent = _parent(client)
    if parent is None:
        raise InputError(f"step {step!r} found no pipeline run to belong to; its configure step must run first")
    experiment = client.get_run(parent).info.experiment_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name=step).info.run_id
    try:
        yield Tracker(client, parent, child)
    except BaseException:
        with suppress(Exception):  # a store that is down or full takes no status; the step's own error is what matters
            client.set_terminated(child, "FAILED")
        raise
    client.set_terminated(child, "FINISHED")


def registered_version(tracker: Tracker, name: str, content: str) -> str | None:
    """`models:/NAME/VERSION` of the version with this content, if it was registered before."""
    found = tracker.client.search_model_versions(f"name = '{name}' and tags.`{CONTENT}` = '{content}'", max_results=1)
    return f"models:/{name}/{found[0].version}" if found else None


def register_model(
    tracker: Tracker, name: str, content: str, model: Path, example: Any, output: Any, any_size: bool
) -> str:
    """Log the model from code with its weights and register it.

    Args:
        tracker: of the register step.
        name: of the registered model.
        content: names the weights; a tag of the version.
        model: folder of the model artifact.
        example: an input, kept with the model.
        output: what the model says to it; the two make the signature that MLflow checks.
        any_size: whether images of another height and width may come.

    Returns:
        `models:/NAME/VERSION`.
    """
    import mlflow
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(tracking_uri())
    signature = infer_signature(example, output)
    if any_size:
        images = TensorSpec(example.dtype, (-1, -1, -1, *example.shape[3:]))
        signature = ModelSignature(Schema([images]), signature.outputs)
    # Inside the run: MLflow would otherwise keep the model in ./mlruns, linked to no run.
    with mlflow.start_run(run_id=tracker.parent):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"model": str(model)},
            # Our code travels with the model, so that it loads wherever these packages are.
            code_paths=[str(Path(__file__).parent)],
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
            signature=signature,
            input_example=example,
            registered_model_name=name,
        )
    tracker.client.update_run(tracker.parent, status="RUNNING")  # the pipeline says when it has ended
    tracker.client.set_model_version_tag(name, str(info.registered_model_version), CONTENT, content)
    return f"models:/{name}/{info.registered_model_version}"

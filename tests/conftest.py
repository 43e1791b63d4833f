"""Real data and real text for every test: Fashion-MNIST's own files and MiniLM's embeddings of its ten names."""

import atexit
import gc
import gzip
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lfm.backbones.text_encoders import embed
from lfm.config.presets import load
from lfm.config.schema import DataConfig, RunConfig, TextConfig
from lfm.data.sources.base import Source
from lfm.data.sources.fashion_mnist import CLASSES, SHA256, load_fashion_mnist, read_idx
from tests.s3 import S3, serve_s3

if TYPE_CHECKING:
    from lfm.training.task import WorkerTask
    from tests.kfp_server import Kfp
    from tests.small_task import Trained

pytest.register_assert_rewrite("tests.backend.cases")
REPOSITORY = Path(__file__).parents[1]
# The files that take longest, in that order: they begin first, so that no worker is left with one of them at the end.
LONGEST = (
    "infra_image", "backend_sweep", "team", "backend_train", "backend_retrain", "retraining_nights", "pipeline",
    "pipelines_retrain", "ranks", "nodes", "readme", "own_data", "server", "trainer", "infra_compose",
    "pipelines_sweep", "store", "report_page", "reporting", "train", "packaged_model", "docker", "speed", "science",
    "fork_server", "data", "serving_speed", "cli_errors",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all test files without collections of garbage: twenty of them would look through all that was imported."""
    gc.disable()
    yield
    gc.freeze()  # nor through that while tests run
    gc.enable()
    atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first. With xdist: `--dist loadfile --no-loadscope-reorder`, or it begins with the most tests."""
    place = {f"test_{name}": k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """An idx file by its specification: two zero bytes, 8 for unsigned bytes, the sizes, big-endian, the data."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + b"".join(struct.pack(">I", size) for size in array.shape)
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw, compresslevel=1, mtime=0) if path.suffix == ".gz" else raw)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh LFM_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LFM_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def fashion_folder() -> Path:
    """The four published files; fetched once by the project's own code, kept between test runs."""
    cache = Path(os.environ.get("LFM_TEST_DATA") or REPOSITORY / ".lfm").absolute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(cache))
        load_fashion_mnist(DataConfig(name="fashion-mnist"))
    return cache / "downloads" / "fashion-mnist"


class Fashion(NamedTuple):
    """The four arrays of Fashion-MNIST, whole or in part."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    def source(self, classes: tuple[str, ...] = CLASSES) -> Source:
        """As a loader gives it."""
        return Source.from_arrays(self[:2], self[2:], classes, "of the tests")


def read_fashion(folder: Path) -> Fashion:
    """The arrays of a folder of idx files."""
    a, b, c, d = (read_idx(folder / f"{name}.gz") for name in SHA256)
    return Fashion(a, b.astype(np.int64), c, d.astype(np.int64))


@pytest.fixture(scope="session")
def fashion(fashion_folder: Path) -> Fashion:
    """The whole data set in memory."""
    return read_fashion(fashion_folder)


def first_images(fashion: Fashion, train: int, test: int) -> Fashion:
    """The first images of each class."""

    def first(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        return np.sort(np.concatenate([np.flatnonzero(labels == k)[:n] for k in range(len(CLASSES))]))

    train_N, test_N = first(fashion.train_labels, train), first(fashion.test_labels, test)
    return Fashion(
        fashion.train_images[train_N], fashion.train_labels[train_N],
        fashion.test_images[test_N], fashion.test_labels[test_N],
    )  # fmt: skip


def write_files(folder: Path, fashion: Fashion) -> None:
    """The four files in the published format."""
    arrays = {
        "train-images-idx3-ubyte": fashion.train_images,
        "train-labels-idx1-ubyte": fashion.train_labels.astype(np.uint8),
        "t10k-images-idx3-ubyte": fashion.test_images,
        "t10k-labels-idx1-ubyte": fashion.test_labels.astype(np.uint8),
    }
    assert arrays.keys() == SHA256.keys()
    for name, array in arrays.items():
        write_idx(folder / f"{name}.gz", array)


@pytest.fixture
def small_fashion(fashion: Fashion, tmp_path: Path) -> Path:
    """A folder with four files in the real format: the first 60 training and 10 test images of each class."""
    folder = tmp_path / "small-fashion"
    folder.mkdir()
    write_files(folder, first_images(fashion, 60, 10))
    return folder


@pytest.fixture(scope="session")
def text_CD() -> Tensor:
    """Embeddings of the ten class names, (10, 384)."""
    return embed(CLASSES, TextConfig(encoder="minilm"))


@pytest.fixture
def tiny_config() -> RunConfig:
    """The preset, small enough to train in seconds."""
    return load(
        "fashion-mnist-lt",
        {"data.max_per_class": 60, "data.imbalance": 10, "stage1.epochs": 2, "stage2.epochs": 1},
    )


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server on loopback; `s3.use(monkeypatch)` points the environment at it."""
    yield from serve_s3(tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="module")
def home_with_data(fashion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be LFM_HOME of a file's tests, with Fashion-MNIST as if it had been fetched."""
    folder = tmp_path_factory.mktemp("home")
    raw = folder / "downloads" / "fashion-mnist"
    raw.parent.mkdir()
    shutil.copytree(fashion_folder, raw)
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in an SQLite file, to be copied: making them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tables(home: Path, empty_database: Path) -> None:
    """MLflow's tables in LFM_HOME, as every run but the first finds them there."""
    home.mkdir(exist_ok=True)
    shutil.copyfile(empty_database, home / "mlflow.db")


@pytest.fixture(scope="session")
def small_task(tmp_path_factory: pytest.TempPathFactory) -> "WorkerTask":
    """A training task of 61 photos, as one process gets it."""
    from tests.small_task import make_task

    return make_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def trained_alone(small_task: "WorkerTask", tmp_path_factory: pytest.TempPathFactory) -> "Trained":
    """That task, trained in one process."""
    from tests.small_task import train

    return train(small_task, tmp_path_factory.mktemp("alone"))


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[Kfp]":
    """A recording KFP on loopback, and nothing on this machine that names another."""
    from lfm.pipelines import kfp_client
    from tests.kfp_server import serve_kfp

    for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", "KUBECONFIG", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no kubectl, no cookie of the developer's
    monkeypatch.setattr(kfp_client, "POLL", 0.01)
    with serve_kfp() as server:
        yield server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: on tensors this small threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Any]:
    """Docker's client; a test that asks for it is skipped without a daemon, or fails in CI."""
    from tests.containers import connect

    yield from connect()

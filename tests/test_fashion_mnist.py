"""Fashion-MNIST's files: read and refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from lfm.data.sources.fashion_mnist import CLASSES, SHA256, read_idx
from lfm.errors import InputError
from tests.conftest import Fashion, write_idx
from tests.idx_files import DAMAGE, LABELS, load, pixels

# --- idx files ---


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 28, 28), (0, 28, 28)])
def test_read_idx_gives_back_what_was_written(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"a-file{suffix}"
    write_idx(path, array)
    found = read_idx(path)
    assert found.dtype == np.uint8 and found.shape == shape
    assert np.array_equal(found, array)


def test_the_published_files_are_read_as_torchvision_reads_them(
    fashion: Fashion, fashion_folder: Path, tmp_path: Path
) -> None:
    for name in (LABELS, "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((fashion_folder / f"{name}.gz").read_bytes()))
    assert np.array_equal(fashion.test_images, read_image_file(str(tmp_path / "t10k-images-idx3-ubyte")).numpy())
    assert np.array_equal(fashion.test_labels, read_label_file(str(tmp_path / LABELS)).numpy())
    assert np.array_equal(fashion.train_labels, read_label_file(str(tmp_path / "train-labels-idx1-ubyte")).numpy())
    assert fashion.train_images.shape == (60_000, 28, 28)
    assert np.bincount(fashion.train_labels).tolist() == [6000] * 10
    assert list(CLASSES) == ["T-shirt/top", *FashionMNIST.classes[1:]]
    fashion.source().check()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_with_its_name_what_is_wrong_and_the_fix(
    damage: str, fashion_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"{LABELS}.gz"
    intact = (fashion_folder / path.name).read_bytes()
    path.write_bytes(intact)
    read_idx(path, SHA256[LABELS])
    change, rule = DAMAGE[damage]
    path.write_bytes(change(intact))
    with pytest.raises(InputError, match=rule) as refusal:
        read_idx(path, SHA256[LABELS])
    assert str(path) in str(refusal.value) and "run again" in str(refusal.value)


@pytest.mark.parametrize("name", SHA256)
def test_a_missing_file_is_named_with_the_fix(name: str, fashion_folder: Path, tmp_path: Path) -> None:
    for other in SHA256.keys() - {name}:
        (tmp_path / f"{other}.gz").symlink_to(fashion_folder / f"{other}.gz")
    with pytest.raises(InputError, match=rf"{tmp_path} has no {name}.gz; put the four files .* data.source"):
        load(tmp_path)


@pytest.mark.slow
def test_a_folder_with_unpacked_files_will_do(fashion_folder: Path, tmp_path: Path, fashion: Fashion) -> None:
    for name in SHA256:
        (tmp_path / name).write_bytes(gzip.decompress((fashion_folder / f"{name}.gz").read_bytes()))
    found = load(tmp_path)
    assert np.array_equal(pixels(found), fashion.train_images)
    assert found.checksum == load(fashion_folder).checksum

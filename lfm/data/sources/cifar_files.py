"""What CIFAR-10 and CIFAR-100 consist of, in each of the two forms in which they are published."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One published form of a data set.

    Args:
        archive: file name of the archive.
        md5: checksum of the archive.
        folder: folder inside the archive.
        train: files of the training set.
        test: file of the test set.
        names: file with the names of the classes.
    """

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        return (*self.train, self.test, self.names)


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Args:
        name: key in `DATASETS` (lfm/data/sources/registry.py).
        title: name for people; without the hyphen, torchvision's name.
        python: the pickled form.
        binary: the form of binary records.
        labels_key: where the pickled dictionaries hold the labels.
        names_key: where they hold the names of the classes.
        label_bytes: bytes before the pixels of a binary record; the last of them is the label.
        train_count: training images of each class.
        test_count: test images of each class.
    """

    name: str
    title: str
    python: Layout
    binary: Layout
    labels_key: str
    names_key: str
    label_bytes: int
    train_count: int
    test_count: int


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    python=Layout(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test="test_batch",
        names="batches.meta",
    ),
    binary=Layout(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
    ),
    labels_key="labels",
    names_key="label_names",
    label_bytes=1,
    train_count=5000,
    test_count=1000,
)
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    python=Layout(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
    ),
    binary=Layout(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
    ),
    labels_key="fine_labels",
    names_key="fine_label_names",
    label_bytes=2,
    train_count=500,
    test_count=100,
)

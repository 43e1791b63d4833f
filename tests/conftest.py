"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

from lfm.data import DATASETS
from lfm.data.fashion_mnist import SHA256


@pytest.fixture(scope="session")
def fashion_folder() -> Path:
    """The real Fashion-MNIST files, brought once by the project's own fetch: LFM_TEST_DATA, else the repository's .lfm."""
    cache = Path(os.environ.get("LFM_TEST_DATA") or Path(__file__).parent.parent / ".lfm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(cache))
        DATASETS["fashion-mnist"]("")
    folder = cache / "downloads" / "fashion-mnist"
    assert len(list(folder.glob("*.gz"))) == len(SHA256)
    return folder

"""The training pipeline on the model of a KFP backend (tests/backend)."""

import pytest

from tests.backend.cases import Cases
from tests.backend.site import Trained

pytestmark = pytest.mark.slow


class TestTraining(Cases):
    kind = "train"

    def test_few_pods(self, trained: Trained) -> None:
        assert len(trained.run.pods) <= 15, trained.run.pods

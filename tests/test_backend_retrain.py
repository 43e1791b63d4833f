"""The retraining pipeline on the model of a KFP backend (tests/backend)."""

from pathlib import Path

import pytest

from tests.backend.cases import Cases
from tests.backend.launcher import Accident
from tests.backend.site import Trained, ran

pytestmark = pytest.mark.slow


class TestRetraining(Cases):
    kind = "retrain"

    def test_terminate_between_register_and_decide(self, trained: Trained, other: Path) -> None:
        """Seen on KFP 2.17.0: between the two the run was FINISHED, and another retraining did not see it."""
        site = trained.site
        run = site.start(other, Accident("decide", "terminated", lambda log: True))
        assert ran(run)[-3:] == ["register", "decide", "finish"]
        assert site.end(run) == "KILLED"

    def test_few_pods_where_nothing_is_new(self, trained: Trained, source: Path) -> None:
        pods = trained.site.start(source).pods
        assert len(pods) <= 8, pods

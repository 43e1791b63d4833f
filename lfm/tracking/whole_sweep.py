"""MLflow: the run of a sweep that is too large for one pipeline run, above the runs of its parts.

    sweep of 60 (key: its name)  ->  sweep of 20 (key: the pipeline run)  ->  configuration  ->  step

Each part leaves its scores among the artifacts of the sweep's run, so that whichever ends last compares them all.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from lfm.config.sweeps import Part
from lfm.revision import commit
from lfm.tracking.client import connect, find_run
from lfm.tracking.membership import KEY, PARENT, Membership

FOLDER = "parts"
COMPARED = "lfm.compared"


def begin(part: Part) -> None:
    """Put this pipeline run below that of the whole sweep, which the first part makes."""
    client, membership = connect(), Membership.here()
    own = membership.parent(client)
    assert own, "the pipeline run has begun"
    found = find_run(client, KEY, part.sweep)
    if found:
        sweep = found.info.run_id
        client.update_run(sweep, status="RUNNING")
    else:
        where = client.get_run(own).info.experiment_id
        tags = {KEY: part.sweep, "lfm.commit": commit()}
        made = client.create_run(where, tags=tags, run_name=f"sweep of {part.configurations}")
        sweep = made.info.run_id
    client.set_tag(own, PARENT, sweep)


class WholeSweep:
    """The run of the whole sweep, for a part that has its scores.

    Args:
        client: Connected client.
        part: Which part.
        own: Id of this part's run.
    """

    def __init__(self, client: MlflowClient, part: Part, own: str) -> None:
        self.client, self.part = client, part
        self.run_id = client.get_run(own).data.tags[PARENT]

    def add(self, scored: list[dict[str, Any]]) -> None:
        """Leave this part's configurations with their scores."""
        self.client.log_text(self.run_id, json.dumps(scored), f"{FOLDER}/{self.part.number}.json")

    def there(self) -> list[int]:
        """Numbers of the parts that have left theirs."""
        return sorted(int(Path(item.path).stem) for item in self.client.list_artifacts(self.run_id, FOLDER))

    def scored(self, parts: Iterable[int]) -> list[dict[str, Any]]:
        """The configurations of these parts, in order."""
        found: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for number in parts:
                path = self.client.download_artifacts(self.run_id, f"{FOLDER}/{number}.json", folder)
                found += json.loads(Path(path).read_text())
        return found

    def show(self, files: Iterable[Path], page: str, compared: int) -> None:
        """Keep the comparison of so many configurations, its table, figure and page, in place of the one before."""
        for path in files:
            self.client.log_artifact(self.run_id, str(path), "sweep")
        self.client.log_text(self.run_id, page, "sweep/report.html")
        self.client.set_tag(self.run_id, COMPARED, f"{compared} of {self.part.configurations}")

"""The sweep pipeline on the model of a KFP backend (tests/backend), and a sweep in several parts."""

import json
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lfm.config.presets import load
from lfm.config.sweeps import variants_of
from lfm.pipelines.compile import KINDS, write
from lfm.pipelines.compiled import Spec
from lfm.pipelines.sweep import parts
from tests.backend.cases import Cases
from tests.backend.launcher import Accident
from tests.backend.run import Run
from tests.backend.site import PRESET, TINY, Site, make_site, photos

pytestmark = pytest.mark.slow

CRASH = Accident("evaluate", "killed", lambda log: True, signal.SIGSEGV)


class TestSweep(Cases):
    kind = "sweep"


def test_the_parts_of_a_large_sweep_are_compared_as_one_by_whichever_ends_last(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part fails and is retried after the second has ended: then all three seeds of a label are compared."""
    monkeypatch.setattr("lfm.pipelines.sweep.MOST", 2)
    site = make_site(tmp_path, "sweep", empty_database)
    config = load(PRESET, {**TINY, "data.source": str(photos(tmp_path / "photos"))})
    lists = parts(variants_of("alpha", (0.5,), seeds=3))
    assert [len(one) for _, one in lists] == [1, 2]
    runs: list[Run] = []
    for (part, listed), accidents in zip(lists, ([CRASH], []), strict=True):
        file = tmp_path / "sweep.yaml"
        write(KINDS["sweep"](config, site.settings, listed, part), file)
        runs.append(site.cluster.start(Spec.read(file), {}, accidents))
        assert part
        status, compared, rows = whole_sweep(site, part.sweep, runs)
        assert (status, compared) == ("FAILED", "" if len(runs) == 1 else "2 of 3")
    assert [run.state for run in runs] == ["FAILED", "SUCCEEDED"], runs[1].logs
    assert rows == [("alpha 0.5", 2)]
    runs[0].retry()
    assert runs[0].state == "SUCCEEDED", runs[0].logs
    assert part and whole_sweep(site, part.sweep, runs) == ("FINISHED", "3 of 3", [("alpha 0.5", 3)])
    assert "3 of 3 configurations of the sweep are compared" in runs[0].log("compare")


def whole_sweep(site: Site, name: str, parts: list[Run]) -> tuple[str, str, list[tuple[str, int]]]:
    """Of the run over all parts in MLflow: status, what is compared, and label and seeds of each row."""
    client = MlflowClient(site.database)
    experiment = client.get_experiment_by_name(PRESET)
    assert experiment
    (whole,) = client.search_runs([experiment.experiment_id], f"tags.`lfm.pipeline_run` = '{name}'")
    assert whole.info.run_name == "sweep of 3"
    of = f"tags.`mlflow.parentRunId` = '{whole.info.run_id}'"
    below = client.search_runs([experiment.experiment_id], of)
    assert {one.data.tags["lfm.pipeline_run"] for one in below} == {run.id for run in parts}
    files = {one.path for one in client.list_artifacts(whole.info.run_id, "sweep")}
    if not files:
        return whole.info.status, "", []
    assert {"sweep/report.html", "sweep/figure.svg", "sweep/table.csv"} <= files
    rows = json.loads(Path(client.download_artifacts(whole.info.run_id, "sweep/table.json")).read_text())
    return whole.info.status, whole.data.tags["lfm.compared"], [(row["label"], row["seeds"]) for row in rows]

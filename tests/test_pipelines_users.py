"""A KFP with several users: everything is done in a namespace."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings, read_settings
from lfm.pipelines.kfp_client import Cluster
from tests.kfp_server import serve_kfp

PLACE = ("--namespace", "team-a", "--set", "data.source=s3://bucket/photos")
SETTINGS = ClusterSettings(image="lfm:test")


@pytest.mark.slow
def test_everything_is_looked_for_and_made_in_the_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve_kfp() as kfp:
        kfp.multi_user = True
        with pytest.raises(InputError, match=r"has several users: name your namespace with --namespace"):
            Cluster(kfp.host)
        kfp.asked.clear()
        cluster = Cluster(kfp.host, "team-a")
        cluster.submit(load("custom-scratch"), SETTINGS)
        cluster.upload("train", load("custom-scratch"), SETTINGS)
        cluster.schedule(load("custom-scratch"), "0 0 3 * * *", SETTINGS)
        for kind in ("run", "sweep"):
            done = CliRunner().invoke(app, [kind, "custom-scratch", "--runner", "kfp", "--host", kfp.host, *PLACE])
            assert done.exit_code == 0, done.exception
        looked = [
            one for one in kfp.asked if one.method == "GET" and one.path.endswith(("/pipelines", "/recurringruns"))
        ]
        assert looked and {one.query.get("namespace") for one in looked} == {"team-a"}
        assert {run["experiment_id"] for run in kfp.runs} == {kfp.experiments[0]["experiment_id"]} and len(
            kfp.runs
        ) == 3
        assert {one.body["namespace"] for one in kfp.of("POST", "/experiments")} == {"team-a"}
        assert {one.query["namespace"] for one in kfp.of("POST", "/pipelines/upload")} == {"team-a"}


def test_the_file_for_kfps_mlflow_plugin_names_none_of_its_variables() -> None:
    assert read_settings(Path("infra/cluster-mlflow-plugin.yaml")).mlflow_plugin

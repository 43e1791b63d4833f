"""What is posted to KFP to start a run or a schedule: the bodies of its API, sent by the SDK's own client.

The SDK's functions (kfp 2.17.0) have no argument for `plugins_input`, which the API and the models of kfp-server-api
have (backend/api/v2beta1/run.proto, field 19). So the bodies are made here, of the SDK's public models.
"""

from pathlib import Path
from typing import Any

from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.compiled import Spec
from lfm.pipelines.kfp_internals import model


def plugins_input(settings: ClusterSettings, experiment: str) -> dict[str, Any] | None:
    """What KFP's plugins are told about a run; None where none of them is on.

    The MLflow plugin takes a run into the experiment that is named here, else into "KFP-Default" (KFP 2.17.0,
    backend/src/apiserver/plugins/mlflow/config.go:116, 357); it refuses other keys.

    Args:
        settings: Settings of the cluster.
        experiment: Experiment in MLflow.
    """
    return {"mlflow": {"experiment_name": experiment}} if settings.mlflow_plugin else None


def start_run(client: Any, package: Path, **fields: Any) -> str:
    """Start a run of a compiled pipeline: the run's id.

    Args:
        client: The SDK's client.
        package: Compiled pipeline.
        fields: Further fields of a run, as `display_name`; `parameters` are those of the pipeline.
    """
    spec = Spec.read(package)
    body = model(
        "V2beta1Run",
        pipeline_spec={"pipeline_spec": spec.pipeline, "platform_spec": spec.platform},
        runtime_config=model("V2beta1RuntimeConfig", parameters=fields.pop("parameters")),
        **fields,
    )
    return str(client.runs.run_service_create_run(run=body).run_id)


def start_schedule(client: Any, pipeline: str, version: str, cron: str, **fields: Any) -> Any:
    """Make a recurring run of an uploaded pipeline, one run at a time.

    With `plugins_input`, KFP (2.17.0) starts each run through its API, where its plugins act, and drops the parameters
    (backend/src/apiserver/resource/resource_manager.go:1301, 1314): the version's defaults have to be the wanted ones.
    Without, it keeps a workflow that is compiled now and knows no plugin.

    Args:
        client: The SDK's client.
        pipeline: Id of the pipeline.
        version: Id of its version.
        cron: Cron expression with six fields.
        fields: Further fields of a recurring run; `parameters` are those of the pipeline.
    """
    body = model(
        "V2beta1RecurringRun",
        pipeline_version_reference=model(
            "V2beta1PipelineVersionReference", pipeline_id=pipeline, pipeline_version_id=version
        ),
        runtime_config=model("V2beta1RuntimeConfig", parameters=fields.pop("parameters")),
        trigger=model("V2beta1Trigger", cron_schedule=model("V2beta1CronSchedule", cron=cron)),
        mode="ENABLE",
        max_concurrency="1",
        # Unset, every run that was missed while the schedule was paused would be started.
        no_catchup=True,
        **fields,
    )
    return client.recurring_runs.recurring_run_service_create_recurring_run(recurring_run=body)

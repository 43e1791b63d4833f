"""How a component becomes a task: on a cluster with its image, resources, retries and pod settings."""

from collections.abc import Sequence
from typing import Any

from lfm.components.resources import GIB, STEPS, Request, Step, request
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.pipelines.capacity import quantity
from lfm.pipelines.cluster_settings import ClusterSettings, StepResources

HOUR = 3600
RUN_ID = "metadata.labels['pipeline/runid']"
"""Label of each pod in which KFP writes the id of the run."""


class TaskFactory:
    """Makes the tasks of a pipeline from components.

    Args:
        settings: Settings of a cluster; None: a local run, which ignores resources and retries.
        gpus: Parameter of the pipeline with the number of GPUs of a training step, as text.
        configs: Configuration of the pipeline; of a sweep all its configurations.
    """

    def __init__(self, settings: ClusterSettings | None, gpus: Any, configs: Sequence[RunConfig]) -> None:
        self.settings, self.gpus, self.configs = settings, gpus, configs

    def add(self, component: Any, **inputs: Any) -> Any:
        """Add a task to the pipeline that is being defined.

        KFP's cache is off: its key has the parameters, not the images or checkpoints at the addresses in them, and a
        cached step writes nothing to MLflow. What is unchanged is taken from `lfm.storage.store`, by content.

        Args:
            component: Component of `lfm.components`.
            inputs: Inputs of the component.
        """
        task, step = component(**inputs), STEPS[component.name]
        task.set_caching_options(False)
        if self.settings:
            starts_others = step.trains and self.configs[0].train.nodes > 1
            gpu = step.gpu and not starts_others
            shared_memory = quantity(self.settings.shared_memory) / GIB if gpu and self.settings.shared_memory else 0.0
            asked = request(component.name, self.configs, bool(self.settings.accelerator), shared_memory)
            changes = self.settings.steps.get(component.name, StepResources())
            seconds = _set_resources(task, step, asked, changes, self.settings)
            _set_pod(task, self.settings)
            if gpu:
                _set_gpu_pod(task, self.gpus, self.settings)
            elif starts_others:
                task.set_env_variable("LFM_IMAGE", self.settings.image)  # image of the machines that it starts
                task.set_env_variable("LFM_STEP_SECONDS", str(seconds))  # and their time limit
        return task


def _set_resources(task: Any, step: Step, asked: Request, changes: StepResources, settings: ClusterSettings) -> int:
    """Set what the step requests and when it is tried again; its time limit in seconds."""
    memory = changes.memory or asked.memory
    retries = step.retries if changes.retries is None else changes.retries
    task.set_container_image(settings.image)
    task.set_cpu_request(changes.cpu or asked.cpu).set_memory_request(memory).set_memory_limit(memory)
    seconds = round((changes.hours or step.hours) * HOUR)
    if retries:
        # The longest duration counts from the first attempt's beginning, and ends a retried pod (Argo 4.0.5,
        # operator.go:1028): it has to hold every attempt and every wait.
        waits = settings.backoff_seconds * (2**retries - 1)
        task.set_retry(retries, f"{settings.backoff_seconds}s", 2.0, f"{(retries + 1) * seconds + waits}s")
    kubernetes().set_timeout(task, seconds=seconds)
    return seconds


def _set_pod(task: Any, settings: ClusterSettings) -> None:
    k8s = kubernetes()
    # Pod Security "restricted" asks for it; KFP itself sets the rest (KFP 2.17.0, driver/security_context.go).
    k8s.set_security_context(task, run_as_non_root=True)
    # An environment variable is not part of KFP's cache key, a parameter would be.
    k8s.use_field_path_as_env(task, env_name="LFM_PIPELINE_RUN", field_path=RUN_ID)
    for name, value in settings.environment.items():
        task.set_env_variable(name, value)
    for secret in settings.secrets:
        k8s.use_secret_as_env(task, secret.name, dict(secret.keys), optional=secret.optional)
    for config_map in settings.config_maps:
        k8s.use_config_map_as_env(task, config_map.name, dict(config_map.keys), optional=config_map.optional)
    if settings.home:
        k8s.mount_pvc(task, pvc_name=settings.home.name, mount_path=settings.home.path)
        task.set_env_variable("LFM_HOME", settings.home.path)
        task.set_env_variable("LFM_SHARED_HOME", "1")  # steps hand over pointers, not whole data sets
    k8s.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        k8s.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    for name, value in settings.labels.items():
        k8s.add_pod_label(task, name, value)


def _set_gpu_pod(task: Any, gpus: Any, settings: ClusterSettings) -> None:
    k8s = kubernetes()
    if settings.accelerator:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(gpus)
        # The SDK (2.17.0) hands to a group of tasks only what is registered: without it no condition or loop would
        # have the parameter that the limit of a task inside it names, and the backend refuses such a run.
        task.register_pipeline_channels([gpus])
        task.set_env_variable("LFM_ACCELERATOR", settings.accelerator)
    if settings.shared_memory:
        k8s.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=settings.shared_memory  # noqa: S108
        )  # fmt: skip
    for name, value in settings.node_selector.items():
        k8s.add_node_selector(task, name, value)
    for toleration in settings.tolerations:
        k8s.add_toleration(task, **toleration.model_dump())


def kubernetes() -> Any:
    """The kfp-kubernetes package.

    Raises:
        InputError: it is not installed.
    """
    try:
        from kfp import kubernetes
    except ImportError as error:
        raise InputError("kfp-kubernetes is not installed; in LFM's folder run: pip install '.[cluster]'") from error
    return kubernetes

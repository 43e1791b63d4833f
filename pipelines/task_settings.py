"""How a component becomes a task: caching, and on a cluster the image, resources, retries and pod settings."""

from typing import Any

from lfm.components.resources import RESOURCES, Resources
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings, StepResources

HOUR = 3600
RUN_ID = "metadata.labels['pipeline/runid']"
"""Label of each pod in which KFP writes the id of the run."""


class TaskFactory:
    """Makes the tasks of a pipeline from components.

    Args:
        settings: Settings of a cluster; None: a local run, which ignores resources and retries.
        gpus: Parameter of the pipeline with the number of GPUs of a training step.
    """

    def __init__(self, settings: ClusterSettings | None, gpus: Any = None) -> None:
        self.settings, self.gpus = settings, gpus

    def add(self, component: Any, use_cache: bool = True, **inputs: Any) -> Any:
        """Add a task to the pipeline that is being defined.

        Args:
            component: Component of `lfm.components`.
            use_cache: Whether KFP may take the result of a pure component from its cache.
            inputs: Inputs of the component.
        """
        task, resources = component(**inputs), RESOURCES[component.name]
        task.set_caching_options(resources.cached and use_cache)
        if self.settings:
            changes = self.settings.steps.get(component.name, StepResources())
            _set_resources(task, resources, changes, self.settings)
            _set_pod(task, self.settings)
            if resources.gpu:
                _set_gpu_pod(task, self.gpus, self.settings)
        return task


def _set_resources(task: Any, resources: Resources, changes: StepResources, settings: ClusterSettings) -> None:
    memory = changes.memory or resources.memory
    retries = resources.retries if changes.retries is None else changes.retries
    task.set_container_image(settings.image)
    task.set_cpu_request(changes.cpu or resources.cpu).set_memory_request(memory).set_memory_limit(memory)
    if retries:
        task.set_retry(retries, f"{settings.backoff_seconds}s", 2.0, f"{HOUR}s")
    kubernetes().set_timeout(task, seconds=round((changes.hours or resources.hours) * HOUR))


def _set_pod(task: Any, settings: ClusterSettings) -> None:
    k8s = kubernetes()
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
    task.set_env_variable("LFM_IMAGE", settings.image)  # image of the other nodes, if training takes several
    if settings.accelerator:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(gpus)
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
        raise InputError("kfp-kubernetes is not installed; install lfm with its extra: lfm[cluster]") from error
    return kubernetes

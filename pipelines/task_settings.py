"""How a component becomes a task: caching everywhere; on a cluster also image, resources, retries and pod settings."""

from typing import Any

from lfm.components.resources import NEEDS, Needs
from lfm.errors import InputError
from lfm.pipelines.cluster_settings import ClusterSettings, StepSize

HOURLY = 3600
RUN_ID = "metadata.labels['pipeline/runid']"
"""Where KFP writes the id of the run on each pod."""


class Placement:
    """Makes the tasks of a pipeline.

    Args:
        settings: of a cluster; None: a local run, which takes the machine as it is.
        gpus: the pipeline's parameter, which the training steps ask for.
    """

    def __init__(self, settings: ClusterSettings | None, gpus: Any = None) -> None:
        self.settings, self.gpus = settings, gpus

    def __call__(self, component: Any, fresh: bool = False, **inputs: Any) -> Any:
        """A task of the component.

        Args:
            component: of `components`.
            fresh: never from KFP's cache, though the step is pure: what it reads may have changed.
            inputs: of the component.
        """
        task, needs = component(**inputs), NEEDS[component.name]
        task.set_caching_options(needs.cached and not fresh)
        if self.settings:
            _size(task, needs, self.settings.steps.get(component.name, StepSize()), self.settings)
            _pod(task, self.settings)
            if needs.gpu:
                _train_on(task, self.gpus, self.settings)
        return task


def _size(task: Any, needs: Needs, own: StepSize, settings: ClusterSettings) -> None:
    memory = own.memory or needs.memory
    retries = needs.retries if own.retries is None else own.retries
    task.set_container_image(settings.image)
    task.set_cpu_request(own.cpu or needs.cpu).set_memory_request(memory).set_memory_limit(memory)
    if retries:
        task.set_retry(retries, f"{settings.backoff_seconds}s", 2.0, f"{HOURLY}s")
    kubernetes().set_timeout(task, seconds=round((own.hours or needs.hours) * HOURLY))


def _pod(task: Any, settings: ClusterSettings) -> None:
    k8s = kubernetes()
    # In the environment, where it does not enter the cache keys of pure steps.
    k8s.use_field_path_as_env(task, env_name="LFM_PIPELINE_RUN", field_path=RUN_ID)
    for name, value in settings.environment.items():
        task.set_env_variable(name, value)
    for secret in settings.secrets:
        k8s.use_secret_as_env(task, secret.name, dict(secret.keys), optional=secret.optional)
    for known in settings.config_maps:
        k8s.use_config_map_as_env(task, known.name, dict(known.keys), optional=known.optional)
    if settings.home:
        k8s.mount_pvc(task, pvc_name=settings.home.name, mount_path=settings.home.path)
        task.set_env_variable("LFM_HOME", settings.home.path)
    k8s.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        k8s.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    for name, value in settings.labels.items():
        k8s.add_pod_label(task, name, value)


def _train_on(task: Any, gpus: Any, settings: ClusterSettings) -> None:
    k8s = kubernetes()
    task.set_env_variable("LFM_IMAGE", settings.image)  # what other machines run, if training takes several
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

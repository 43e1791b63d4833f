"""Pod Security "restricted", as Kubernetes 1.34 enforces it on a namespace.

Every control of https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline and restricted) for pods
of Linux. No checker on PyPI has this profile: checkov has rules of its own, and asks a server of its maker for advice.
"""

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SECCOMP = {"RuntimeDefault", "Localhost"}

Spec = dict[str, Any]


def violations(pod: Spec) -> list[str]:
    """What of this pod's spec the namespace would refuse, a line each; empty: nothing."""
    return [*_of_pod(pod), *(f"{c['name']}: {why}" for c in _containers(pod) for why in _of_container(c, pod))]


def _containers(pod: Spec) -> list[Spec]:
    return [c for kind in ("initContainers", "containers", "ephemeralContainers") for c in pod.get(kind) or ()]


def _of_pod(pod: Spec) -> Iterator[str]:
    context = pod.get("securityContext") or {}
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes") or ():
        if kinds := volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is {min(kinds)}"
    for sysctl in context.get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_any(context)


def _of_container(container: Spec, pod: Spec) -> Iterator[str]:
    context, shared = container.get("securityContext") or {}, pod.get("securityContext") or {}
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield "capabilities: ALL is not dropped"
    yield from (f"capability {name}" for name in capabilities.get("add") or () if name != "NET_BIND_SERVICE")
    if context.get("procMount") not in (None, "Default"):
        yield "procMount"
    if context.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if (context.get("seccompProfile") or shared.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield "seccompProfile is neither RuntimeDefault nor Localhost"
    yield from (f"hostPort {port['hostPort']}" for port in container.get("ports") or () if port.get("hostPort"))
    for probe in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
        yield from (f"{probe} asks another host" for host in _hosts(container.get(probe)) if host)
    yield from _of_any(context)


def _of_any(context: Spec) -> Iterator[str]:
    """What stands in the context of a pod and of a container alike."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "appArmorProfile is Unconfined"
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield "seccompProfile is Unconfined"


def _hosts(value: Any) -> Iterator[str]:
    """`host` of an httpGet or tcpSocket, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("httpGet", "tcpSocket"):
                yield inner.get("host", "")
            yield from _hosts(inner)

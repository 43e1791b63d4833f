"""Namespaces that enforce Pod Security "restricted" take every pod of ours; each control is looked at."""

from typing import Any

import pytest
import yaml

from tests.manifests import Documents, base, local, overlay, pods, serving
from tests.pod_security import violations

__all__ = ["base", "local", "overlay", "serving"]  # fixtures


def test_namespaces_that_enforce_restricted_take_every_pod(local: Documents, serving: dict[str, Any]) -> None:
    found = pods([*local, serving])
    assert len(found) == 6
    assert {name: violations(pod) for name, pod in found.items() if violations(pod)} == {}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hostNetwork", True), ("hostPID", True), ("hostIPC", True),
        ("volumes", [{"name": "x", "hostPath": {"path": "/"}}]), ("volumes", [{"name": "x", "nfs": {}}]),
        ("securityContext.runAsUser", 0), ("securityContext.runAsNonRoot", None),
        ("securityContext.seccompProfile", None), ("securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("securityContext.seLinuxOptions", {"type": "spc_t"}), ("securityContext.seLinuxOptions", {"user": "root"}),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("securityContext.windowsOptions", {"hostProcess": True}),
        ("containers.0.securityContext", None), ("containers.0.securityContext.privileged", True),
        ("containers.0.securityContext.allowPrivilegeEscalation", None),
        ("containers.0.securityContext.runAsNonRoot", False), ("containers.0.securityContext.runAsUser", 0),
        ("containers.0.securityContext.capabilities", {"add": ["NET_BIND_SERVICE"]}),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["CHOWN"]}),
        ("containers.0.securityContext.procMount", "Unmasked"),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("containers.0.ports", [{"containerPort": 1, "hostPort": 1}]),
        ("containers.0.livenessProbe", {"httpGet": {"host": "elsewhere", "port": 1}}),
        ("containers.0.lifecycle", {"postStart": {"tcpSocket": {"host": "elsewhere", "port": 1}}}),
        ("initContainers", [{"name": "x", "image": "x"}]),
    ],
)  # fmt: skip
def test_each_control_of_restricted_is_checked(base: Documents, place: str, value: Any) -> None:
    pod = yaml.safe_load(yaml.safe_dump(pods(base)["Job/lfm-volume"]))
    assert not violations(pod)
    *path, last = place.split(".")
    inner: Any = pod
    for key in path:
        inner = inner[int(key)] if key.isdecimal() else inner[key]
    inner[last] = value
    assert violations(pod)

"""What a cluster need not have, or has otherwise: no Trainer, profiles, its own retries; S3 with least rights."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.manifests import ROOT, Documents, check, find, local, of, overlay, render, with_components
from tests.s3 import free_ports, wait_for

__all__ = ["local", "overlay"]  # fixtures
KUSTOMIZE = ROOT / "infra/kustomize"
CUSTOM = {"TrainingRuntime", "InferenceService", "ClusterStorageContainer"}


def test_the_base_is_for_every_cluster() -> None:
    """`kubectl apply` ends with 1 at the first kind that a cluster does not know."""
    for folder in (KUSTOMIZE / "base", KUSTOMIZE / "retries"):
        for document in render(folder):
            assert document["kind"] not in CUSTOM
            check(document)


def test_the_local_overlay_needs_no_trainer_either(overlay: Path) -> None:
    assert not {document["kind"] for document in render(overlay)} & CUSTOM


def test_the_runtime_s_name_and_gpus_are_said_once(overlay: Path) -> None:
    documents = with_components(overlay, "lfm-h100", 8)
    runtime = of("TrainingRuntime", documents)["lfm-h100"]
    (resources,) = find(runtime, "resources")
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 8
    assert {"cpu", "memory"} < resources["limits"].keys()
    rules = of("Role", documents)["lfm-trainer"]["rules"]
    assert [rule["resourceNames"] for rule in rules if rule["resources"] == ["trainingruntimes"]] == [["lfm-h100"]]
    assert of("ConfigMap", documents)["lfm-endpoints"]["data"]["LFM_TRAINING_RUNTIME"] == "lfm-h100"


def test_steps_in_a_profile_reach_the_servers_of_another_namespace(overlay: Path, local: Documents) -> None:
    label = {"namespaceSelector": {"matchLabels": {"app.kubernetes.io/part-of": "kubeflow-profile"}}}
    policies = of("NetworkPolicy", local)
    for server in ("lfm-mlflow", "lfm-seaweedfs"):
        (rule,) = policies[server]["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {}}, label]
    unwanted = [policies["lfm-postgres"], of("NetworkPolicy", render(overlay))["lfm-mlflow"]]
    assert not [rule for rule in find(unwanted, "from") if label in rule]

    profile = overlay.parent / "profile"
    (profile / "secrets").mkdir(exist_ok=True)
    for name in ("clients.env", "s3.env"):
        (profile / "secrets" / name).write_text((overlay / "secrets" / name).read_text())
    documents = render(profile)
    assert {document["metadata"]["namespace"] for document in documents} == {"write-yours"}
    hosts = re.findall(r"http://([\w.-]+):(\d+)", str(of("ConfigMap", documents)["lfm-endpoints"]["data"]))
    services = of("Service", local)
    for host, port in hosts:
        name, namespace = host.split(".")
        assert services[name]["metadata"]["namespace"] == namespace
        assert int(port) in {each["port"] for each in services[name]["spec"]["ports"]}
    allowed = [e["value"] for e in find_env(local) if e["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert "lfm-mlflow.*" in allowed[0].split(",")


def find_env(documents: Documents) -> list[dict[str, str]]:
    return [variable for env in find(documents, "env") for variable in env]


# --- retries ---

STOCK = {"limit": "2", "retryPolicy": "OnError"}
"""templateDefaults of KFP 2.17: manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml."""
GROUPS = 3
"""Around the pod of a task in no group: its executor, the root, the whole."""


def tries(defaults: dict[str, str], retries: int | None, end: str) -> int:
    """How often the pod of a step is tried that always ends so, as Argo 4.0.5 decides.

    A template gets what it lacks of `defaults` (operator.go, mergedTemplateDefaultsInto); set_retry gives it a limit.
    Tried again is what the policy takes and the expression says (processNodeRetries), by the end of the last try: a
    pod's has a message, a group's is marked without one (dag.go:334), with the phase of what is in it.
    """

    def again(message: str) -> bool:
        policy = {"Always": ("Failed", "Error"), "OnError": ("Error",), "OnFailure": ("Failed",)}
        said = defaults.get("expression", "true").replace("lastRetry.message", repr(message))
        assert re.fullmatch(r"true|'[\w ]*' != ''", said)
        return end in policy[defaults["retryPolicy"]] and said != "'' != ''"

    pod = (int(defaults["limit"]) if retries is None else retries) if again("Error") else 0
    group = int(defaults["limit"]) if again("") else 0
    return int((pod + 1) * (group + 1) ** GROUPS)


def test_the_patch_tries_again_what_set_retry_asks_for_and_groups_never() -> None:
    (patch,) = render(KUSTOMIZE / "retries")
    assert (patch["metadata"]["name"], patch["metadata"]["namespace"]) == ("workflow-controller-configmap", "kubeflow")
    assert patch["data"].keys() == {"workflowDefaults"}, "the other keys stay KFP's"
    spec = yaml.safe_load(patch["data"]["workflowDefaults"])["spec"]
    assert set(spec["ttlStrategy"].values()) == {3600}
    ours = spec["templateDefaults"]["retryStrategy"]
    ends = ("Failed", "Error")  # an exception, memory, a deadline; a lost pod, a pod that is refused
    assert [tries(STOCK, 5, end) for end in ends] == [1, 6 * 27]
    assert [tries(STOCK, None, end) for end in ends] == [1, 81]
    assert [tries(ours, 5, end) for end in ends] == [6, 6]
    assert [tries(ours, None, end) for end in ends] == [3, 3]


# --- S3 ---


@pytest.fixture(scope="module")
def s3(local: Documents, overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """The server of the manifests, its flags, keys and hook, on this machine; a client for each file of keys."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    (folder / "data").mkdir()
    (container,) = of("StatefulSet", local)["lfm-seaweedfs"]["spec"]["template"]["spec"]["containers"]
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc"]  # fmt: skip
    port = dict(zip(names, free_ports(len(names)), strict=True))
    moved = {
        "dir": folder / "data", "ip.bind": "127.0.0.1", "s3.config": overlay / "secrets/s3.json",
        "master.volumeSizeLimitMB": 64, "volume.max": 1000, **port,
    }  # fmt: skip
    flags = dict(flag[1:].split("=", 1) if "=" in flag else (flag[1:], "true") for flag in container["args"][1:])
    weed = Path(sys.executable).with_name("weed")
    command = [str(weed), "server", *(f"-{name}={value}" for name, value in {**flags, **moved}.items())]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    endpoint = f"http://127.0.0.1:{port['s3.port']}"
    try:
        wait_for(f"{endpoint}/healthz", process, folder / "log.txt")
        hook = container["lifecycle"]["postStart"]["exec"]["command"]
        master = f"127.0.0.1:{port['master.port']}.{port['master.port.grpc']}"
        here = [("/usr/bin/weed", str(weed)), ("127.0.0.1:9333", master), (":8333", f":{port['s3.port']}")]
        for old, new in here:
            assert old in hook[-1]
            hook = [part.replace(old, new) for part in hook]
        hook = [part.replace("wget -q -O /dev/null", "curl -sf -o /dev/null") for part in hook]
        for _ in range(2):  # a pod that comes back finds its buckets
            subprocess.run(hook, check=True, timeout=120)

        def client(file: str) -> Any:
            keys = [line.split("=", 1)[1] for line in (overlay / "secrets" / file).read_text().split()]
            quick = Config(retries={"total_max_attempts": 1})
            session = boto3.session.Session(*keys, region_name="us-east-1")
            return session.client("s3", endpoint_url=endpoint, config=quick)

        yield client
    finally:
        process.kill()
        process.wait()
        for number in port.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                left.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("file", "own", "other"), [("s3.env", "lfm", "mlflow"), ("mlflow-s3.env", "mlflow", "lfm")])
def test_each_identity_has_its_buckets_alone(s3: Callable[[str], Any], file: str, own: str, other: str) -> None:
    client = s3(file)
    client.put_object(Bucket=own, Key="a/x", Body=b"1")
    assert client.get_object(Bucket=own, Key="a/x")["Body"].read() == b"1"
    assert [e["Key"] for e in client.list_objects_v2(Bucket=own)["Contents"]] == ["a/x"]
    refused: list[tuple[str, dict[str, Any]]] = [
        ("get_object", {"Bucket": other, "Key": "a/x"}),
        ("put_object", {"Bucket": other, "Key": "a/x", "Body": b"2"}),
        ("list_objects_v2", {"Bucket": other}),
        ("delete_object", {"Bucket": other, "Key": "a/x"}),
        ("create_bucket", {"Bucket": "one-more"}),
        ("put_object", {"Bucket": f"{own}-misspelt", "Key": "x", "Body": b"3"}),
        ("delete_bucket", {"Bucket": own}),
        ("put_bucket_policy", {"Bucket": own, "Policy": "{}"}),
    ]
    for call, arguments in refused:
        with pytest.raises(ClientError, match=r"AccessDenied|403"):
            getattr(client, call)(**arguments)
    assert other not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    client.delete_object(Bucket=own, Key="a/x")


def test_compose_and_cluster_start_the_same_server(local: Documents) -> None:
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
    (container,) = of("StatefulSet", local)["lfm-seaweedfs"]["spec"]["template"]["spec"]["containers"]
    differ = ("-ip=", "-s3.config=")
    flags = [
        {flag for flag in each if not flag.startswith(differ)}
        for each in (container["args"], compose["seaweedfs"]["command"])
    ]
    assert flags[0] == flags[1]
    assert {"-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false"} < flags[0]
    made = [
        re.findall(r"for bucket in (.+);", text)
        for text in (container["lifecycle"]["postStart"]["exec"]["command"][-1], compose["buckets"]["command"][0])
    ]
    assert made[0] == made[1] == ["mlflow lfm data"]

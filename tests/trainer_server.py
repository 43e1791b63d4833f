"""A small stand-in for a cluster with Kubeflow Trainer: it speaks the Kubernetes API and runs a TrainJob's nodes here.

It does as the controller does (`torch` policy): every node gets the job's command and where to meet in PET_ variables.
Logs are as kubelet's: each line has a time, of which several may share one; `cut_after` cuts the streams.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import yaml

from tests.containers import ROOT

NAMESPACE = "lfm-team"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
RUNTIMES = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainingruntimes"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
THEN = "2026-01-01T00:00:00Z"


class Trainer(ThreadingHTTPServer):
    """One job at a time.

    Args:
        folder: for logs and the client's configuration.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.job: dict[str, Any] | None = None
        self.body: dict[str, Any] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.refuse = False
        self.cut_after: int | None = None
        """Bytes after which a stream that follows a log is cut; None: none is."""
        self.cuts = 0
        self.stamped: dict[int, list[tuple[int, bytes]]] = {}
        self.turn = threading.Lock()
        runtime = yaml.safe_load((ROOT / "infra/kustomize/trainer/training-runtime.yaml").read_text())
        self.runtimes = {runtime["metadata"]["name"]: runtime}
        place = {"cluster": {"server": f"http://127.0.0.1:{self.server_port}"}, "name": "here"}
        context = {"context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}, "name": "here"}
        settings = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [place],
            "contexts": [context], "users": [{"name": "me", "user": {"token": "secret"}}],
        }  # fmt: skip
        (folder / ".kube").mkdir(parents=True)
        (folder / ".kube" / "config").write_text(yaml.safe_dump(settings))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run every node of the job as a process."""
        body["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": THEN}
        self.job = self.body = body
        trainer = body["spec"]["trainer"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(trainer["numNodes"]):
            meeting = {"PET_NNODES": trainer["numNodes"], "PET_NODE_RANK": rank, "PET_NPROC_PER_NODE": "auto",
                       "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}  # fmt: skip
            environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                           "PYTHONPATH": str(ROOT), **{k: str(v) for k, v in meeting.items()}}  # fmt: skip
            with self.log(rank).open("wb") as log:
                node = subprocess.Popen(trainer["command"], env=environment, stdout=log, stderr=subprocess.STDOUT)
            self.nodes.append(node)
        return body

    def end(self) -> None:
        """Remove the job."""
        for node in self.nodes:
            node.terminate()
            node.wait(60)
        self.job, self.nodes, self.stamped = None, [], {}

    def log(self, rank: int) -> Path:
        return self.folder / f"node-{rank}.log"

    def lines(self, rank: int) -> list[tuple[int, bytes]]:
        """The whole lines of a log with their times in nanoseconds, which come in steps of a tenth of a second."""
        now = time.time_ns() // 10**8 * 10**8
        with self.turn:
            known = self.stamped.setdefault(rank, [])
            whole = self.log(rank).read_bytes().splitlines(keepends=True)
            over = self.nodes[rank].poll() is not None
            known += [(now, line) for line in whole[len(known) :] if over or line.endswith(b"\n")]
            return list(known)

    def names(self) -> list[str]:
        """Names of the jobs."""
        return [self.job["metadata"]["name"]] if self.job else []

    def state(self) -> dict[str, Any]:
        """The job with its condition."""
        assert self.job
        codes = [node.poll() for node in self.nodes]
        over = {"Complete"} if all(code == 0 for code in codes) else {"Failed"} if any(codes) else set()
        conditions = [{"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": THEN}
                      for kind in over]  # fmt: skip
        return {**self.job, **({"status": {"conditions": conditions}} if over else {})}

    def pods(self) -> list[dict[str, Any]]:
        """A pod for each node."""
        phases = {None: "Running", 0: "Succeeded"}
        return [
            {
                "metadata": {
                    "name": f"pod-{rank}", "creationTimestamp": THEN,
                    "labels": {"jobset.sigs.k8s.io/replicatedjob-name": "node",
                               "batch.kubernetes.io/job-completion-index": str(rank)},
                },
                "spec": {"containers": [{"name": "node"}]},
                "status": {"phase": phases.get(node.poll(), "Failed")},
            }
            for rank, node in enumerate(self.nodes)
        ]  # fmt: skip


def stamp(at: int) -> str:
    """A time as kubelet writes it: nine digits, always."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 10**9)) + f".{at % 10**9:09d}Z"


class Handler(BaseHTTPRequestHandler):
    """What the SDK asks for."""

    server: Trainer

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append(f"GET {path}")
        kind, name = path.rsplit("/", 1)
        if kind == RUNTIMES and name in self.server.runtimes:
            self.answer(200, self.server.runtimes[name])
        elif path == JOBS:
            self.answer(200, {"items": [job for job in [self.server.job] if job and self.has(job, query)]})
        elif kind == JOBS and self.server.job and name == self.server.job["metadata"]["name"]:
            self.answer(200, self.server.state())
        elif path == PODS:
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.server.pods()})
        elif name == "log":
            self.send_log(int(kind.rpartition("-")[2]), {k: v[0] for k, v in parse_qs(query).items()})
        else:
            self.answer(404, {"kind": "Status", "message": f"{path} not found"})

    def has(self, job: dict[str, Any], query: str) -> bool:
        key, _, value = parse_qs(query).get("labelSelector", [""])[0].partition("=")
        return not key or job["metadata"].get("labels", {}).get(key) == value

    def send_log(self, rank: int, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        sent, follow = 0, query.get("follow") == "True"
        since = (time.time() - float(query["sinceSeconds"])) // 1 * 10**9 if "sinceSeconds" in query else 0
        room = self.server.cut_after if follow else None
        while True:
            over = not follow or self.server.nodes[rank].poll() is not None
            lines = self.server.lines(rank)
            for at, line in lines[sent:]:
                if at < since:
                    continue
                text = f"{stamp(at)} ".encode() + line if query.get("timestamps") == "True" else line
                self.wfile.write(text[:room])
                if room is not None:
                    room -= len(text)
                    if room < 0:  # in the middle of a line
                        self.server.cuts += 1
                        return
            self.wfile.flush()
            sent = len(lines)
            if over:
                return
            time.sleep(0.02)

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuse:
            self.answer(403, {"kind": "Status", "message": "trainjobs is forbidden"})
        else:
            self.answer(201, self.server.start(body))

    def do_DELETE(self) -> None:
        self.server.asked.append(f"DELETE {self.path}")
        if self.server.job is None or self.server.job["metadata"]["name"] != self.path.rpartition("/")[2]:
            self.answer(404, {"kind": "Status", "message": "not found"})
        else:
            self.server.end()
            self.answer(200, {"kind": "Status", "status": "Success"})

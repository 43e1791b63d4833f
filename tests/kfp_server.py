"""A server that answers as KFP's API does (v2beta1 JSON) and records what it is asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Kfp:
    """What the server holds, in KFP's own JSON."""

    host: str = ""
    asked: list[Asked] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    recurring: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    states: list[str] = field(default_factory=lambda: ["PENDING", "RUNNING", "SUCCEEDED"])
    """Of a run, each time it is asked for."""
    multi_user: bool = False
    refuse: tuple[int, Any] | None = None
    """Status and body of every answer instead."""

    def of(self, method: str, path: str) -> list[Asked]:
        """The requests of this method whose path ends so."""
        return [one for one in self.asked if one.method == method and one.path.endswith(path)]


def answer(kfp: Kfp, asked: Asked) -> tuple[int, Any]:  # noqa: C901  one branch a kind of request
    """As KFP's REST gateway."""
    if kfp.refuse:
        return kfp.refuse
    what = asked.path.removeprefix("/apis/v2beta1/")
    if what == "healthz":
        return 200, {"multi_user": kfp.multi_user, "pipeline_store": "database"}
    if what == "pipelines/upload":
        pipeline = {"pipeline_id": f"p{len(kfp.pipelines)}", "display_name": asked.query["name"]}
        kfp.pipelines.append(pipeline)
        kfp.versions.append({"pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": f"v{len(kfp.versions)}"})
        return 200, pipeline
    if what == "pipelines/upload_version":
        version = {"pipeline_id": asked.query["pipelineid"], "pipeline_version_id": f"v{len(kfp.versions)}"}
        kfp.versions.append(version)
        return 200, version
    kind, _, rest = what.partition("/")
    held: dict[str, tuple[list[dict[str, Any]], str]] = {
        "experiments": (kfp.experiments, "experiment_id"),
        "pipelines": (kfp.pipelines, "pipeline_id"),
        "recurringruns": (kfp.recurring, "recurring_run_id"),
        "runs": (kfp.runs, "run_id"),
    }
    if kind not in held:
        return 404, {"error": "Not Found", "code": 5, "message": "Not Found"}
    things, key = held[kind]
    if asked.method == "POST" and not rest:
        if why := _refused(asked.body):
            return 400, {"code": 3, "message": f"Invalid input error: {why}"}
        made = {**asked.body, key: f"{kind[0]}{len(things)}", "status": "ENABLED"}
        things.append(made)
        return 200, made
    if rest.endswith("/versions"):
        mine = [v for v in kfp.versions if v["pipeline_id"] == rest.split("/")[0]]
        return 200, {"pipeline_versions": mine[::-1]}
    if not rest:
        wanted = [p["string_value" if "string_value" in p else "stringValue"] for p in _predicates(asked)]
        names = [t for t in things if not wanted or t["display_name"] in wanted]
        start = int(asked.query.get("page_token") or 0)
        page = {{"recurringruns": "recurringRuns"}.get(kind, kind): names[start : start + 1]}
        return 200, page | ({"next_page_token": str(start + 1)} if start + 1 < len(names) else {})
    name, _, action = rest.partition(":")
    (thing,) = [t for t in things if t[key] == name] or [{}]
    if not thing:
        return 404, {"code": 5, "message": f"{name} not found"}
    if asked.method == "DELETE":
        things.remove(thing)
    elif action:
        thing["status"] = {"disable": "DISABLED", "enable": "ENABLED"}[action]
        return 200, {}
    if kind == "runs":
        thing["state"] = kfp.states.pop(0) if kfp.states else thing.get("state")
    return 200, thing


def _refused(body: dict[str, Any]) -> str:
    """Why the API server would not take a run (KFP 2.17.0, backend/src/apiserver).

    plugins/mlflow/config.go:339 decodes with DisallowUnknownFields; template/v2_template.go:513 looks at the literals.
    """
    unknown = set(body.get("plugins_input", {}).get("mlflow", {})) - {"experiment_name", "experiment_id", "disabled"}
    if unknown:
        return f"plugins_input.mlflow must follow schema, not {unknown}"
    root = body.get("pipeline_spec", {}).get("pipeline_spec", {}).get("root", {})
    parameters = root.get("inputDefinitions", {}).get("parameters", {})
    for name, value in body.get("runtime_config", {}).get("parameters", {}).items():
        if name not in (parameters or {name: ""}):
            return f"parameter(s) provided are not required by pipeline: {name}"
        literals = parameters[name].get("literals", []) if parameters else []
        if literals and value not in literals:
            return f"input parameter {name} value {value} does not match any of the allowed literal values"
    return ""


def _predicates(asked: Asked) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(asked.query.get("filter") or "{}").get("predicates", [])
    return found


@contextmanager
def serve_kfp() -> Iterator[Kfp]:
    """Serve on a free port of loopback."""
    kfp = Kfp()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            where = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = "json" in (self.headers.get("Content-Type") or "")
            body = json.loads(raw) if raw and is_json else raw
            query = {k: v[0] for k, v in parse_qs(where.query).items()}
            asked = Asked(self.command, where.path, query, body, dict(self.headers))
            kfp.asked.append(asked)
            status, told = answer(kfp, asked)
            data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(told, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _any

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kfp.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

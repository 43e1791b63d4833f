"""Changes an InferenceService for a rollout: read from standard input as JSON, written to standard output.

kubectl get isvc lfm -o json | python infra/kserve/rollout.py canary 4 --percent 10 | kubectl replace -f -
kubectl get isvc lfm -o json | python infra/kserve/rollout.py promote | kubectl replace -f -
kubectl get isvc lfm -o json | python infra/kserve/rollout.py cancel | kubectl replace -f -

`canary` puts version 4 of the same registered model next to the one that serves, as the Deployment lfm-v4-predictor.
`promote` makes it the one that serves; its pods go on. `cancel` takes it away. The rules are those of KServe 0.20
(pkg/apis/serving/v1beta1/inference_service_validation.go): a canary has a name, whole containers, no autoscaling, and
another STORAGE_URI.
"""

import argparse
import copy
import json
import sys
from typing import Any

SCALING = ("maxReplicas", "scaleMetric", "scaleTarget", "autoScaling")


def canary(service: dict[str, Any], version: str, percent: int) -> dict[str, Any]:
    """The service with this version of its model as its one canary."""
    changed = copy.deepcopy(service)
    predictor = changed["spec"]["predictor"]
    containers = copy.deepcopy(predictor["containers"])
    uri = next(e for e in containers[0]["env"] if e["name"] == "STORAGE_URI")
    new = f"{uri['value'].rpartition('@' if '@' in uri['value'] else '/')[0]}/{version}"
    if new == uri["value"]:
        sys.exit(f"error: {new} is what serves already; name another version")
    uri["value"] = new
    challenger = {"name": f"v{version}", "minReplicas": 1, "containers": containers}
    changed["spec"]["canary"] = [{"trafficPercent": percent, "predictor": challenger}]
    return changed


def promote(service: dict[str, Any]) -> dict[str, Any]:
    """The service with its canary as what serves, scaled as what served before."""
    changed = cancel(service)
    challenger = the_canary(service)
    kept = {k: v for k, v in changed["spec"]["predictor"].items() if k in (*SCALING, "minReplicas")}
    changed["spec"]["predictor"] |= {**challenger["predictor"], **kept}
    return changed


def cancel(service: dict[str, Any]) -> dict[str, Any]:
    """The service without its canary."""
    the_canary(service)
    changed = copy.deepcopy(service)
    del changed["spec"]["canary"]
    return changed


def the_canary(service: dict[str, Any]) -> dict[str, Any]:
    """The canary that there is."""
    if not service["spec"].get("canary"):
        sys.exit("error: this service has no canary; start one with `rollout.py canary VERSION`")
    return dict(service["spec"]["canary"][0])


def main() -> None:
    """Read, change, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("canary")
    start.add_argument("version", help="number of the registered version, as `lfm models` shows it")
    start.add_argument("--percent", type=int, default=10, choices=range(101), metavar="0..100")
    commands.add_parser("promote")
    commands.add_parser("cancel")
    asked = parser.parse_args()
    service = json.load(sys.stdin)
    changed = {
        "canary": lambda: canary(service, asked.version, asked.percent),
        "promote": lambda: promote(service),
        "cancel": lambda: cancel(service),
    }[asked.command]()
    json.dump(changed, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

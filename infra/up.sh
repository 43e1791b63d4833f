#!/usr/bin/env bash
# The team's servers on this machine: passwords if there are none yet, the MLflow image of this commit, then compose.
# Arguments go to `docker compose`; without any it is `up --detach --wait`.
set -euo pipefail
cd "$(dirname "$0")"
./secrets.sh secrets
if [[ $# -eq 0 ]]; then
  MLFLOW_IMAGE=${MLFLOW_IMAGE:-$(docker/build.sh mlflow | tail -n 1)}
  set -- up --detach --wait
fi
export MLFLOW_IMAGE=${MLFLOW_IMAGE:-unused}
docker compose --file compose.yaml "$@"
echo "MLflow is at http://127.0.0.1:${MLFLOW_PORT:-5000}; user and password are in infra/secrets/clients.env" >&2

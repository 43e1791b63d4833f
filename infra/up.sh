#!/usr/bin/env bash
# The team's servers on this machine: makes passwords if there are none yet and the MLflow image of this commit, starts
# what infra/compose.yaml says, and waits until MLflow answers. With arguments it is compose itself: infra/up.sh down
set -euo pipefail
cd "$(dirname "$0")"

compose() {
  local command=(docker compose)
  docker compose version >/dev/null 2>&1 || command=(docker-compose)
  "${command[@]}" --project-name "${COMPOSE_PROJECT_NAME:-lfm}" --file compose.yaml "$@"
}

./secrets.sh "$PWD/secrets"
if [[ $# -gt 0 ]]; then
  MLFLOW_IMAGE=${MLFLOW_IMAGE:-not-built} compose "$@"
  exit
fi
MLFLOW_IMAGE=${MLFLOW_IMAGE:-$(docker/build.sh mlflow | tee /dev/stderr | tail -n 1)}
export MLFLOW_IMAGE
compose up --detach
server=$(compose ps --quiet mlflow)
for _ in $(seq 180); do
  if [[ $(docker inspect --format '{{.State.Health.Status}}' "$server") == healthy ]]; then
    echo "MLflow answers at http://$(docker port "$server" 5000/tcp); user and password: infra/secrets/clients.env"
    exit 0
  fi
  sleep 1
done
compose logs --tail 30 mlflow >&2
echo "error: MLflow did not answer within three minutes; its last words are above" >&2
exit 1

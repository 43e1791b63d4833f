#!/usr/bin/env bash
# Build an image of this commit and print its name last: lfm:COMMIT, or with an argument `serve` lfm-serve:COMMIT, with
# `mlflow` lfm-mlflow:COMMIT.
#
# BASE_IMAGE   what it stands on; default: the Dockerfile's
# LFM_COMMIT   the commit, where git cannot tell
# SSL_CERT_FILE and the index variables of pip and uv are used inside the build as they are here, as secrets: nothing of
# them is in the image or in its history.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
  echo "error: $*" >&2
  exit 2
}

# A docker command that builds with BuildKit: one with buildx, or one from before it was a part of its own.
with_buildkit() {
  local candidate help
  while read -r candidate; do
    help=$(DOCKER_BUILDKIT=1 "$candidate" build --help 2>&1) || true
    if [[ $help == *--secret* ]]; then
      echo "$candidate"
      return
    fi
  done < <(type -ap docker)
  fail "no docker command here has BuildKit; install docker and its buildx plugin"
}

registry_settings() {
  local name index
  for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL; do
    [[ -z ${!name:-} ]] || printf "%s='%s'\n" "$name" "${!name}"
  done
  index=$(python3 -m pip config get global.index-url 2>/dev/null) || return 0
  printf "PIP_INDEX_URL='%s'\nUV_DEFAULT_INDEX='%s'\n" "$index" "$index"
}

target=${1:-lfm}
case $target in
  lfm) name=lfm ;;
  serve | mlflow) name=lfm-$target ;;
  *) fail "no such image: $target; there are lfm, serve and mlflow" ;;
esac
commit=${LFM_COMMIT:-$(git describe --always --dirty --abbrev=12 --exclude='*')}
docker=$(with_buildkit)
"$docker" info >/dev/null 2>&1 || fail "no Docker daemon answers; start it, or ask for its group: usermod -aG docker $USER"

settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
registry_settings >"$settings"
options=(--secret "id=registry,src=$settings" --build-arg "COMMIT=$commit" --target "$target" --tag "$name:$commit")
[[ -z ${SSL_CERT_FILE:-} ]] || options+=(--secret "id=ca,src=$SSL_CERT_FILE")
[[ -z ${BASE_IMAGE:-} ]] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")

SECONDS=0
DOCKER_BUILDKIT=1 "$docker" build --progress=plain --file infra/docker/Dockerfile "${options[@]}" .
size=$("$docker" image inspect --format '{{.Size}}' "$name:$commit")
echo "built in $SECONDS s, $((size / 1000000)) MB:"
echo "$name:$commit"

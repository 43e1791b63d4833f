#!/usr/bin/env bash
# A base image without a registry: Debian's own packages through debootstrap. For CI and machines that reach no image
# registry; elsewhere the Dockerfile's default is better. Needs root, debootstrap and docker. Prints the image's name.
set -euo pipefail
image=lfm-base:bookworm

if ! docker image inspect "$image" >/dev/null 2>&1; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder" >&2
  rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/*
  tar -C "$folder" -c . | docker import - "$image" >&2
fi
echo "$image"

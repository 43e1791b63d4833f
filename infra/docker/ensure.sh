#!/usr/bin/env bash
# A Docker daemon that answers, compose and debootstrap: installed from Debian and started where that needs doing. For
# CI, as root. Prints the process id of a daemon that it started: whoever called it ends it.
set -euo pipefail
log=/var/log/lfm-dockerd.log
networks=/var/lib/docker/network/files

answers() { docker info >/dev/null 2>&1; }

start() {
  setsid nohup dockerd >"$log" 2>&1 </dev/null &
  local daemon=$!
  for _ in $(seq 120); do
    if answers; then
      echo "$daemon"
      return
    fi
    kill -0 "$daemon" 2>/dev/null || return 1
    sleep 0.5
  done
  kill "$daemon"
  return 1
}

if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null || ! command -v docker-compose >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install --no-install-recommends --yes debootstrap docker-compose docker.io iptables >&2
fi
answers && exit 0
start && exit 0
# A daemon that was ended while it removed a network cannot start again from its own list of networks.
if grep -q 'libnetwork.*reservePools' "$log"; then
  rm -rf "$networks"
  start && exit 0
fi
echo "error: dockerd does not start here; its last words:" >&2
tail -n 20 "$log" >&2
exit 1

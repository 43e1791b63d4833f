#!/usr/bin/env bash
# A Docker daemon that answers, and debootstrap: installed from Debian and started where that needs doing. For CI, as
# root. Prints the process id of a daemon that it started: whoever called it ends it.
set -euo pipefail
log=/var/log/lfm-dockerd.log

answers() { docker info >/dev/null 2>&1; }

if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install --no-install-recommends --yes debootstrap docker.io iptables >&2
fi
answers && exit 0

setsid nohup dockerd >"$log" 2>&1 </dev/null &
daemon=$!
for _ in $(seq 120); do
  if answers; then
    echo "$daemon"
    exit 0
  fi
  kill -0 "$daemon" 2>/dev/null || break
  sleep 0.5
done
kill "$daemon" 2>/dev/null || true
echo "error: dockerd does not start here; its last words:" >&2
tail -n 20 "$log" >&2
exit 1

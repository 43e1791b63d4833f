#!/bin/sh
# Used inside the build: install a lock file, and nothing else, into /opt/lfm.
set -eu
if [ -f /run/secrets/registry ]; then
  set -a
  # shellcheck source=/dev/null
  . /run/secrets/registry
  set +a
fi
if [ -f /run/secrets/ca ]; then
  export SSL_CERT_FILE=/run/secrets/ca
fi
# No dependencies: the lock has them all, but for those that it leaves out on purpose.
exec /mnt/bin/uv pip install --python /opt/lfm/bin/python --no-cache --compile-bytecode \
  --require-hashes --no-deps -r "$1"

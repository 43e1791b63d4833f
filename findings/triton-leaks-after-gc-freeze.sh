#!/usr/bin/env bash
# triton 3.9.0: a process that has called gc.freeze() ends with pages of "nanobind: leaked ..." on stderr.
#
# gc.freeze() before a fork is what Python's documentation recommends: what was imported is then neither collected nor
# copied in the children. triton's compiled part is bound by nanobind, which looks at exit for objects that are still
# alive and reports each as a leak; frozen objects are not collected at exit, so all of its types and functions are.
# `import torch._dynamo` (PyTorch 2.15.0) loads it, so that a service which forks workers from a warm process shows this to
# its users. The exit code is 0.
#
# Seen: "as imported: 0 lines, after gc.freeze(): 24 or more, after gc.unfreeze() at exit: 0".
# What helps: atexit.register(gc.unfreeze) next to gc.freeze().
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0
leaks() {
  "$place/env/bin/python" -c "import atexit, gc; import triton._C.libtriton; $1" 2>&1 | grep -c "leaked" || true
}
plain=$(leaks "pass")
frozen=$(leaks "gc.freeze()")
given_back=$(leaks "gc.freeze(); atexit.register(gc.unfreeze)")
echo "as imported: $plain lines, after gc.freeze(): $frozen, after gc.unfreeze() at exit: $given_back"
[[ $plain == 0 && $frozen -ge 24 && $given_back == 0 ]] || { echo "triton behaves otherwise now" >&2; exit 1; }

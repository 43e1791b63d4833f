#!/usr/bin/env bash
# kfp 2.17.0: kfp.local never takes a dsl.If on a named output, and reports success.
#
# A component that returns one value has the output "Output"; one that returns a NamedTuple has outputs by name. A condition
# on either compiles to the same kind of expression, and a backend takes both. The local runner takes the branch on
# "Output" only: on a named output the branch is left out without a word, and the pipeline ends as SUCCESS.
#
# Seen: "branch on a named output ran: False, on the only output: True".
# What helps: give the value that a condition reads as the component's only return value.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --disable-pip-version-check kfp==2.17.0
cat > "$place/see.py" <<'PYTHON'
import sys
from pathlib import Path
from typing import NamedTuple

from kfp import dsl, local


@dsl.component(install_kfp_package=False)
def named() -> NamedTuple("Found", news=str, more=str):
    return "changed", ""


@dsl.component(install_kfp_package=False)
def single() -> str:
    return "changed"


@dsl.component(install_kfp_package=False)
def leave(path: str):
    open(path, "w").close()


@dsl.pipeline(name="p")
def pipeline(first: str, second: str):
    with dsl.If(named().outputs["news"] == "changed"):
        leave(path=first)
    with dsl.If(single().output == "changed"):
        leave(path=second)


root = Path(sys.argv[1])
root.mkdir()
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
pipeline(first=str(root / "first"), second=str(root / "second"))
ran = (root / "first").exists(), (root / "second").exists()
print(f"branch on a named output ran: {ran[0]}, on the only output: {ran[1]}")
assert ran == (False, True), "kfp behaves otherwise now"
PYTHON
PATH="$place/env/bin:$PATH" "$place/env/bin/python" -W ignore "$place/see.py" "$place/root" 2>&1 | tail -n 1

#!/usr/bin/env bash
# kfp 2.17.0: a pipeline parameter that is used only as an accelerator limit is not handed into a group.
#
# `task.set_accelerator_limit(number)` with a pipeline parameter makes the task read the parameter. At the top level of a
# pipeline that works. Inside dsl.If (or dsl.ParallelFor) the compiler gives the task its input and forgets the group
# around it: the task reads an input that its group does not declare. Nothing is said when compiling; a backend's driver
# then has nothing to resolve. A parameter that a component takes as an ordinary input is handed in as it should be.
#
# Seen: the group declares ['pipelinechannel--take'], its task reads ['pipelinechannel--number', 'pipelinechannel--take'].
# What helps: task.register_pipeline_channels([number]), or an ordinary input with the same value.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --disable-pip-version-check kfp==2.17.0
cat > "$place/see.py" <<'PYTHON'
import sys

import yaml
from kfp import compiler, dsl


@dsl.component
def train(take: str) -> str:
    return take


@dsl.pipeline(name="p")
def pipeline(take: str = "yes", number: str = "1"):
    with dsl.If(take == "yes"):
        train(take=take).set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(number)


compiler.Compiler().compile(pipeline, sys.argv[1])
spec = next(yaml.safe_load_all(open(sys.argv[1])))
group = spec["components"]["comp-condition-1"]
declared = sorted(group["inputDefinitions"]["parameters"])
read = sorted(
    value["componentInputParameter"]
    for value in group["dag"]["tasks"]["train"]["inputs"]["parameters"].values()
    if "componentInputParameter" in value
)
print("the group declares", declared, "and its task reads", read)
assert "pipelinechannel--number" in read and "pipelinechannel--number" not in declared, "kfp behaves otherwise now"
PYTHON
"$place/env/bin/python" -W ignore "$place/see.py" "$place/p.yaml"

"""The first step of each pipeline, whose parameters are those of `lfm.config.run_parameters`.

KFP reads a component's parameters from the signature of its function and ships the function's source to the step. So
the source is written here from the table, and put where `inspect.getsource` finds it, as attrs does for the methods
that it makes. A step costs a cluster two pods and some twenty seconds besides its work, so what always goes together is
one: the configuration is resolved where the data are prepared.
"""

import linecache
import textwrap
import typing
from typing import Any, NamedTuple

from kfp import dsl

from lfm.components import IMAGE
from lfm.config.run_parameters import OVERRIDES, RUN_PARAMETERS

TEMPLATE = '''\
def {name}(
    preset: str,
{parameters}
    overrides: dict,
{more}
) -> {returns}:
    """{about}

    Args:
        preset: Name of a preset; see `lfm presets`.
{descriptions}

    Returns:
{returned}
    """
{imports}

    values = {{
{values}
    }}
    {configured} = configure(preset, values, overrides)
{body}
'''


class First(NamedTuple):
    """What is written into the template for one component."""

    about: str
    """First line of its docstring."""
    more: str
    """Parameters after the run parameters."""
    described: dict[str, str]
    """Those of them that are inputs -> description."""
    returns: str
    """Annotation of the result."""
    returned: dict[str, str]
    """Output -> description."""
    jobs: str
    """Import of the jobs that it calls, besides `configure`."""
    body: str
    """Lines after `configure`."""
    configured: str = "config, run"


ARTIFACTS = "dataset: Output[Dataset], embeddings: Output[Model], backbone: Output[Model],"
PATHS = "dataset.path, embeddings.path, backbone.path"
RESOLVED = {"config": "The complete configuration.", "run": "Key by which later steps find the MLflow run."}
DATA = "Training, validation and test images as Arrow files, and their pixels as memory-mapped arrays."
TOWERS = "Both towers as safetensors, their architecture, tokenizer and preprocessing."
EMBEDDINGS = "Class embeddings of unit length, as safetensors."
PART = "Which part of a larger sweep it is, as lfm sweep writes it; empty: a whole one."
VARIANTS = "Name of each configuration and the fields that it changes."
FIRST = {
    "prepare": First(
        "Check the configuration, prepare the data, fetch the backbone and embed the class names.",
        ARTIFACTS, {}, 'NamedTuple("Begun", config=dict, run=str)',
        {"dataset": DATA, "embeddings": EMBEDDINGS, "backbone": TOWERS, **RESOLVED},
        "from lfm.jobs.training_inputs import prepare_inputs",
        f"prepare_inputs(config, {PATHS})\nreturn config, run",
    ),
    "prepare_retraining": First(
        "Check the configuration and prepare the data; if they are new to the champion, all else that training needs.",
        ARTIFACTS, {}, 'NamedTuple("Begun", config=dict, run=str, Output=str)',
        {
            "dataset": DATA,
            "embeddings": f"{EMBEDDINGS[:-1]}; empty where the data are unchanged.",
            "backbone": f"{TOWERS[:-1]}; empty where the data are unchanged.",
            **RESOLVED, "Output": "changed, or unchanged.",
        },
        "from lfm.jobs.training_inputs import prepare_retraining",
        f"return config, run, prepare_retraining(config, {PATHS})",
    ),
    "plan_sweep": First(
        "Check every configuration of a sweep before any of them is trained.",
        "variants: List[dict],\npart: str,", {"variants": VARIANTS, "part": PART}, "List[dict]",
        {"Output": "The same list, each entry with its complete configuration."},
        "from lfm.jobs.sweep import plan_sweep",
        "return plan_sweep(config, variants, part)",
        "config, _",
    ),
}  # fmt: skip


def source(name: str) -> str:
    """The source of the function of a component."""
    first = FIRST[name]
    described = {key: parameter.description for key, parameter in RUN_PARAMETERS.items()} | {"overrides": OVERRIDES}
    return TEMPLATE.format(
        name=name,
        parameters="\n".join(f"    {key}: {parameter.type.__name__}," for key, parameter in RUN_PARAMETERS.items()),
        more=textwrap.indent(first.more, "    "),
        returns=first.returns,
        about=first.about,
        descriptions=_list(described | first.described),
        returned=_list(first.returned),
        imports=textwrap.indent(f"from lfm.jobs.pipeline_run import configure\n{first.jobs}", "    "),
        values="\n".join(f'        "{key}": {key},' for key in RUN_PARAMETERS),
        configured=first.configured,
        body=textwrap.indent(first.body, "    "),
    )


def _list(described: dict[str, str]) -> str:
    return "\n".join(
        textwrap.fill(f"{key}: {text}", 119, initial_indent=" " * 8, subsequent_indent=" " * 12)
        for key, text in described.items()
    )


def _component(name: str) -> Any:
    text, file = source(name), f"<lfm.components.begin.{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": __name__} | {key: getattr(dsl, key) for key in ("Dataset", "Model", "Output")}
    names |= {key: getattr(typing, key) for key in ("List", "NamedTuple")}
    exec(compile(text, file, "exec"), names)  # noqa: S102  our own text, made of our own table
    return dsl.component(names[name], base_image=IMAGE, install_kfp_package=False)


prepare, prepare_retraining, plan_sweep = (_component(name) for name in FIRST)

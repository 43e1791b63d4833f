"""The first step of a pipeline, `configure`: its parameters are those of `lfm.config.run_parameters`.

KFP reads a component's parameters from the signature of its function and ships the function's source to the step. So
the source is written here from the table, and put where `inspect.getsource` finds it, as attrs does for the methods
that it makes.
"""

import linecache
import textwrap
import typing
from typing import Any

from kfp import dsl

from lfm.components import IMAGE
from lfm.config.run_parameters import OVERRIDES, RUN_PARAMETERS

TEMPLATE = '''\
def configure(
    preset: str,
{parameters}
    overrides: dict,
) -> NamedTuple("Resolved", config=dict, run=str):
    """Resolve and check the configuration and begin the MLflow run.

    Args:
        preset: Name of a preset; see `lfm presets`.
{descriptions}

    Returns:
        config: The complete configuration.
        run: Key by which later steps find the MLflow run.
    """
    from lfm.jobs.pipeline_run import configure

    values = {{
{values}
    }}
    return configure(preset, values, overrides)
'''


def source() -> str:
    """The source of the component's function."""
    described = {name: parameter.description for name, parameter in RUN_PARAMETERS.items()} | {"overrides": OVERRIDES}
    return TEMPLATE.format(
        parameters="\n".join(f"    {name}: {parameter.type.__name__}," for name, parameter in RUN_PARAMETERS.items()),
        descriptions="\n".join(
            textwrap.fill(f"{name}: {text}", 119, initial_indent=" " * 8, subsequent_indent=" " * 12)
            for name, text in described.items()
        ),
        values="\n".join(f'        "{name}": {name},' for name in RUN_PARAMETERS),
    )


def _component() -> Any:
    text, file = source(), "<lfm.components.configure>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"NamedTuple": typing.NamedTuple, "__name__": __name__}
    exec(compile(text, file, "exec"), names)  # noqa: S102  our own text, made of our own table
    return dsl.component(names["configure"], base_image=IMAGE, install_kfp_package=False)


configure = _component()

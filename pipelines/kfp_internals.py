"""All private parts of KFP that LFM relies on, each checked before it is used.

`kfp.local.init` takes a SubprocessRunner or a DockerRunner and no other runner; each ends in one private function that
starts the step. Both are replaced while a pipeline runs: nothing public lets a step be forked from a process that has
its imports (docs/adr/0005), or keeps the exit code of a container that ends fast. pyproject.toml pins KFP.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lfm.errors import InputError


class Internal(NamedTuple):
    """A private function of KFP, as LFM knows it."""

    module: str
    caller: str
    """Class whose method `run` calls the function by its name in the module."""
    function: str
    parameters: tuple[str, ...]


SUBPROCESS = Internal(
    "kfp.local.subprocess_task_handler", "SubprocessTaskHandler", "run_local_subprocess", ("full_command", "env_vars")
)
DOCKER = Internal(
    "kfp.local.docker_task_handler",
    "DockerTaskHandler",
    "run_docker_container",
    ("client", "image", "command", "volumes", "container_run_args"),
)
COMMAND = ("_KFP_RUNTIME=true", "-m kfp.dsl.executor_main", '"$program_path/ephemeral_component.py"', '"$@"')
"""Parts of the shell script that runs a component: its source and the executor's arguments follow the script."""


@contextmanager
def replaced(internal: Internal, function: Callable[..., int]) -> Iterator[None]:
    """Replace a private function of KFP by one with the same parameters.

    Raises:
        InputError: The installed KFP does not have the function, or does not use it as LFM expects.
    """
    check(internal)
    module = importlib.import_module(internal.module)
    original = getattr(module, internal.function)
    setattr(module, internal.function, function)
    try:
        yield
    finally:
        setattr(module, internal.function, original)


def check(internal: Internal) -> None:
    """Check that the installed KFP has this function, with these parameters, and calls it.

    Raises:
        InputError: It does not.
    """
    try:
        module: Any = importlib.import_module(internal.module)
        found = tuple(inspect.signature(getattr(module, internal.function)).parameters)
        called = internal.function in getattr(module, internal.caller).run.__code__.co_names
    except (ImportError, AttributeError) as error:
        raise _changed(f"{internal.module}.{internal.function}", str(error)) from error
    if found != internal.parameters:
        raise _changed(
            f"{internal.module}.{internal.function}",
            f"its parameters are {', '.join(found)}, not {', '.join(internal.parameters)}",
        )
    if not called:
        raise _changed(f"{internal.module}.{internal.caller}.run", f"it does not call {internal.function}")


def model(name: str, **fields: Any) -> Any:
    """A model of KFP's API, of the package kfp-server-api.

    Args:
        name: Name of the model.
        fields: Its fields; those that are None are left out of the request.

    Raises:
        InputError: The installed package has no such model, or the model no such field.
    """
    import kfp_server_api

    kind = getattr(kfp_server_api, name, None)
    known = getattr(kind, "openapi_types", {})
    if kind is None or (missing := fields.keys() - known.keys()):
        lost = f"it has no field {min(missing)}" if kind else "it is gone"
        raise _changed(f"kfp_server_api.{name}", lost)
    return kind(**fields)


def split_command(full_command: Sequence[str]) -> tuple[str, list[str]]:
    """The component's source and the executor's arguments, from KFP's `sh -ec SCRIPT SOURCE ARGUMENTS`.

    Raises:
        InputError: The command is not built as LFM expects.
    """
    for place, part in enumerate(full_command):
        if all(piece in part for piece in COMMAND):
            return full_command[place + 1], list(full_command[place + 2 :])
    raise _changed("the command of a component", f"no part of it has {' and '.join(COMMAND)}")


def _changed(what: str, difference: str) -> InputError:
    from kfp import __version__

    return InputError(
        f"kfp {__version__} differs from the kfp that LFM was written for: {what}: {difference}; install the version "
        "that LFM's pyproject.toml pins, or adapt pipelines/kfp_internals.py"
    )

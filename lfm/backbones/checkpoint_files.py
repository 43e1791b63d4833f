"""The tensors of a checkpoint file under the model's own names, however it was saved; nothing in the file is run."""

import argparse
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lfm.errors import InputError
from lfm.progress import say

HOLDERS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Keys under which programs keep the weights next to epoch, optimizer and the like (Lightning, DeepSpeed, MAE ...)."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth; "module" of DataParallel too."""
PLAIN: list[Any] = [argparse.Namespace, *((dict, f"{package}.AttributeDict") for package in (
    "lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "lightning.pytorch.utilities.parsing",
    "pytorch_lightning.utilities.parsing",
))]  # fmt: skip
"""Settings that programs keep next to the weights; read as plain values, which runs nothing."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""OpenAI's files carry these as tensors."""
NEARLY = 0.9
"""Another part of a file that holds this share of the model's names is a second model."""


def read_state(path: Path, own: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without what wraps them.

    Understood, in any combination: a state dict under one of `HOLDERS`, names with `WRAPPERS` or "module" inside, names
    that all begin with the attribute that held the model ("model.", "clip." of a LightningModule), other tensors
    next to it.

    Args:
        path: of the file.
        own: names of the model's tensors.

    Raises:
        InputError: TorchScript, pickled objects, a broken file, no tensors, or two models.
    """
    convert = "from safetensors.torch import save_file; save_file({{k: v.contiguous() for k, v in {}.items()}}, {!r})"
    target = str(path.with_suffix(".safetensors"))
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        elif _is_torchscript(path):
            script = convert.format(f"torch.jit.load({str(path)!r}, 'cpu').state_dict()", target)
            raise InputError(
                f"{path} is a TorchScript program, as OpenAI's own files are, and may run code; where you trust it, "
                f'turn it into plain weights: python -c "import torch; {script}"'
            )
        else:
            with torch.serialization.safe_globals(PLAIN):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file can come to anything
        script = convert.format("model.state_dict()", target)
        raise InputError(
            f"{path} is damaged or holds pickled objects besides plain tensors ({type(error).__name__}); it was not "
            f"loaded, as that could run code. Where you trust it, save its weights alone: {script}"
        ) from error
    state = _held(state)
    if not _is_state(state):
        raise InputError(f"{path} is no state dict (name -> tensor); save one: {convert.format('model', target)}")
    state = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    return _of_the_model(_unwrapped(state, own, path), own, path)


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are NaN or infinite: nothing can be trained from them.

    Args:
        state: name -> tensor.
        what: the file and the model, for the error.

    Raises:
        InputError: names the first such tensor, and how many there are.
    """
    broken = {name: value for name, value in state.items() if not torch.isfinite(value).all()}
    for name, value in broken.items():
        count = int((~torch.isfinite(value)).sum())
        more = f", and {len(broken) - 1:,} more tensors" if len(broken) > 1 else ""
        raise InputError(
            f"{what}: {count:,} of the {value.numel():,} values of {name} are NaN or infinite{more}; the training that "
            "wrote it had failed: take an earlier checkpoint"
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _is_state(found: Any) -> bool:
    return isinstance(found, Mapping) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _held(found: Any) -> Any:
    """The state dict inside what a program saved."""
    while isinstance(found, Mapping) and not _is_state(found):
        inside = [key for key in HOLDERS if isinstance(found.get(key), Mapping)]
        if not inside:
            return found
        found = found[inside[0]]
    return found


def _unwrapped(state: Mapping[str, Tensor], own: Collection[str], path: Path) -> dict[str, Tensor]:
    """Without the parts of names that wrappers put there, and without a first part that all share."""
    wrappers = {*WRAPPERS} if any("module" in name.split(".") for name in own) else {*WRAPPERS, "module"}
    parts = {name: [part for part in name.split(".") if part not in wrappers] for name in state}
    first_own = {name.partition(".")[0] for name in own}
    while True:
        first = {part[0] if len(part) > 1 else "" for part in parts.values()}
        if len(first) > 1 or first & {"", *first_own}:
            break
        parts = {name: part[1:] for name, part in parts.items()}
    found = {".".join(part): state[name] for name, part in parts.items()}
    if len(found) < len(state):
        raise InputError(f"{path} holds two models, one in a wrapper ({', '.join(sorted(wrappers))}); save one alone")
    return found


def _of_the_model(state: dict[str, Tensor], own: Collection[str], path: Path) -> dict[str, Tensor]:
    """Only what is under the attribute that held the model, where that is not the top."""
    known = {*own, *(name.removeprefix("text.") for name in own)}  # a CLIP file may fill a model of another layout

    def place(name: str) -> str | None:
        parts = name.split(".")
        return next((".".join(parts[:k]) for k in range(len(parts)) if ".".join(parts[k:]) in known), None)

    places = Counter(where for where in map(place, state) if where is not None)
    if not places or (best := places.most_common(1)[0])[0] == "":
        return state
    where, count = best
    others = [f"{other}." for other, of in places.items() if other != where and of >= NEARLY * count]
    if others:
        raise InputError(
            f"{path} holds several models, under {where}. and {', '.join(others)}; save the one that is meant alone"
        )
    inside = {name.removeprefix(f"{where}."): value for name, value in state.items() if name.startswith(f"{where}.")}
    if left := sorted(name for name in state if not name.startswith(f"{where}.")):
        say(f"{path.name}: the model is under {where}; {len(left):,} other tensors are unused: {', '.join(left[:3])}")
    return inside

"""The parts that a tower repeats, and what is in them."""

from collections.abc import Iterator

from torch import nn

from lfm.errors import InputError

BLOCK_WEIGHTS = 10_000
"""Members of a tower's lists with fewer weights are no blocks."""


def transformer_blocks(tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Blocks of attention and MLP, in their order: (name, block)."""
    for name, module in tower.named_modules():
        if hasattr(module, "attn") and isinstance(getattr(module, "mlp", None), nn.Module) and _linears(module.mlp):
            yield name, module


def width_of(block: nn.Module) -> int:
    """D: what the MLP of a block takes."""
    mlp = block.mlp
    assert isinstance(mlp, nn.Module)
    return _linears(mlp)[0].in_features


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def matrices_of(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The weight matrices of a block: (module, name of its parameter)."""
    for module in block.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield module, "in_proj_weight"
        elif isinstance(module, nn.Linear):
            yield module, "weight"


def blocks(tower: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The repeated parts of any tower: the largest members of its lists that hold enough weights. (name, part)."""
    for name, child in tower.named_children():
        place = f"{path}.{name}" if path else name
        if isinstance(tower, nn.ModuleList | nn.Sequential) and _weights(child) >= BLOCK_WEIGHTS:
            yield place, child
        else:
            yield from blocks(child, place)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def last_blocks(tower: nn.Module, count: int) -> list[str]:
    """Parameters of the last blocks, and of what comes after them: the last norm, the projection."""
    found = [name for name, _ in blocks(tower)]
    if not 0 < count <= len(found):
        raise InputError(
            f"stage1.tune=last:{count}: this tower has {len(found)} blocks; set last:1 to last:{len(found)}"
        )
    names = [name for name, _ in tower.named_parameters()]
    chosen = [name for name in names if name.startswith(tuple(f"{place}." for place in found[-count:]))]
    after = names[max(map(names.index, chosen)) + 1 :]
    # open_clip's VisionTransformer declares its projection before its blocks.
    return list(dict.fromkeys([*chosen, *after, *(name for name in names if name == "proj")]))

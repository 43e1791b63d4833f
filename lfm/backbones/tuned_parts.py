"""The small parts that tuning adds to a tower: zero at the start, but for prompts.

Letters in the names give shapes: B images, T tokens, D width of the tower, R width of a bottleneck.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class AdaptFormer(nn.Module):
    """LayerNorm, down, ReLU, up, times a learnt scale (Chen et al. 2022; as LIFT has it, Shi et al. 2024).

    Args:
        width: D.
        size: R.
        rng: draws the matrix down; up is zero.
        init: of the matrix down.
    """

    def __init__(self, width: int, size: int, rng: torch.Generator, init: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.utils.skip_init(nn.Linear, width, size)
        self.up = nn.utils.skip_init(nn.Linear, size, width)
        _kaiming(self.down.weight, rng, init)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        added: Tensor = self.up(self.down(self.norm(x)).relu()) * self.scale
        return added

    @staticmethod
    def weights(width: int, size: int) -> int:
        """Number of weights: 2 D of the norm, R (2 D + 1) + D of the matrices, the scale."""
        return 2 * width + size * (2 * width + 1) + width + 1


class Beside(nn.Module):
    """A part of a block, and a small one that is added to it.

    Args:
        inner: the part.
        added: takes the same input.
    """

    def __init__(self, inner: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.inner, self.added = inner, added

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        out: Tensor = self.inner(x) + self.added(x)
        return out

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """What blocks read of their part, as `mlp.c_fc`, is the part's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found: Tensor | nn.Module = getattr(super().__getattr__("inner"), name)
            return found


class LowRank(nn.Module):
    """W + U D for some rows of a matrix W (LoRA, Hu et al. 2022; its alpha / r is 1).

    Args:
        weight: W.
        rows: of one part of W.
        parts: numbers of the parts that change.
        size: rank.
        rng: draws D; U is zero.
        init: of D.
    """

    def __init__(
        self, weight: Tensor, rows: int, parts: tuple[int, ...], size: int, rng: torch.Generator, init: str
    ) -> None:
        super().__init__()
        self.rows, self.parts, self.count = rows, parts, len(weight) // rows
        self.up = nn.Parameter(torch.zeros(len(parts), rows, size))
        down = torch.empty(len(parts), size, weight.shape[1])
        for matrix in down:
            _kaiming(matrix, rng, init)
        self.down = nn.Parameter(down)

    def forward(self, weight: Tensor) -> Tensor:
        """W + U D, of the shape and type of W."""
        with torch.autocast(weight.device.type, enabled=False):  # the same, to the last bit, as where it is merged
            change = (self.up @ self.down).to(weight.dtype)
        pieces = list(weight.split(self.rows))
        for part, added in zip(self.parts, change, strict=True):
            pieces[part] = pieces[part] + added
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class Entries(nn.Module):
    """W with some entries changed, which are chosen at random and stay the same.

    Args:
        weight: W.
        size: number of entries.
        rng: chooses them.
    """

    index: Tensor

    def __init__(self, weight: Tensor, size: int, rng: torch.Generator) -> None:
        super().__init__()
        # Drawn again from the seed where a model is loaded; with replacement would train one entry twice.
        order = torch.randperm(weight.numel(), generator=rng)[:size]
        self.register_buffer("index", order.sort().values, persistent=False)
        self.change = nn.Parameter(torch.zeros(size))

    def forward(self, weight: Tensor) -> Tensor:
        """W + the change, of the shape and type of W."""
        flat = weight.flatten()
        return flat.scatter_add(0, self.index, self.change.to(flat.dtype)).view_as(weight)


def merge(tower: nn.Module) -> None:
    """Write LoRA and changed entries into the matrices they change, in place: answers stay, and come faster."""
    for module in list(tower.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _kaiming(weight: Tensor, rng: torch.Generator, init: str) -> None:
    draw = {"kaiming-uniform": nn.init.kaiming_uniform_, "kaiming-normal": nn.init.kaiming_normal_}[init]
    draw(weight, a=math.sqrt(5), generator=rng)


def add_prompts(block: nn.Module, tokens_TD: Tensor) -> None:
    """Give a block tokens of its own, which attention sees and which leave with it (VPT, Jia et al. 2022)."""
    block.prompt = nn.Parameter(tokens_TD)
    block.register_forward_pre_hook(_with_prompts)
    block.register_forward_hook(_without_prompts)


def _tokens_axis(block: nn.Module) -> int:
    """1 for (B, T, D), 0 for (T, B, D), which open_clip's blocks take at times."""
    return 1 if getattr(block.attn, "batch_first", True) else 0


def _with_prompts(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = inputs
    axis, prompt = _tokens_axis(block), block.prompt
    assert isinstance(prompt, nn.Parameter)
    tokens = prompt.to(x.dtype).unsqueeze(1 - axis)
    return torch.cat([x, tokens.expand(*(x.shape[0], -1, -1) if axis else (-1, x.shape[1], -1))], dim=axis), *rest


def _without_prompts(block: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> Tensor:
    prompt = block.prompt
    assert isinstance(prompt, nn.Parameter)
    return out.narrow(axis := _tokens_axis(block), 0, out.shape[axis] - len(prompt))

"""Stage 1 that tunes little: what of the image tower trains, and what small parts are added to it.

Everything added is zero at the start, so that the first answers are those of the untouched tower to the last bit;
only the prompts of VPT cannot be: attention shares its weights among tokens, and a further token takes some.

Letters in the names give shapes: B images, T tokens, D width of the tower, R width of a bottleneck.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lfm.backbones.blocks import last_blocks, matrices_of, transformer_blocks, width_of
from lfm.errors import InputError
from lfm.method.draws import generator

PROMPTS = 10
"""Prompt tokens of each block where none are asked for."""


@dataclass(frozen=True)
class Tuning:
    """What stage 1 trains of the image tower, as resolved.

    Args:
        kind: full, adaptformer, lora, vpt, bias, norm, mask or last:N (`lfm.config.schema.TowerStageConfig.tune`).
        size: width of a bottleneck, rank, prompt tokens, or entries of a matrix; 0 by `size_of`.
        init: how the first matrix of a bottleneck is drawn, kaiming-uniform or kaiming-normal.
        classes: number of classes, from which `size_of` takes the width.
        seed: of the run.
    """

    kind: str
    size: int
    init: str
    classes: int
    seed: int

    def add_to(self, tower: nn.Module) -> list[str]:
        """Change a tower in place.

        Returns:
            Names of the parameters that stage 1 trains.

        Raises:
            InputError: the tower has no parts of this kind; names kinds that it has.
        """
        before = dict(tower.named_parameters())
        if self.kind == "full":
            return sorted(before)
        if self.kind in ("bias", "norm") or self.kind.startswith("last:"):
            return self._chosen(tower)
        found = list(transformer_blocks(tower))
        if not found:
            raise InputError(
                f"stage1.tune={self.kind} is for towers of transformer blocks, which {type(tower).__name__} has none of"
                "; set it to full, bias, norm or last:1"
            )
        for name, block in found:
            {"adaptformer": self._adapt, "lora": self._low_rank, "vpt": self._prompt, "mask": self._entries}[self.kind](
                name, block, size_of(self, found)
            )
        own = {id(parameter) for parameter in before.values()}  # by now under other names, some of them
        return sorted(name for name, parameter in tower.named_parameters() if id(parameter) not in own)

    def _chosen(self, tower: nn.Module) -> list[str]:
        """Parameters of the tower itself that train: biases, norms, or the last blocks and what follows them."""
        if self.kind == "bias":
            names = [name for name, _ in tower.named_parameters() if name.rpartition(".")[2].endswith("bias")]
        elif self.kind == "norm":
            names = [
                f"{place}.{name}" if place else name
                for place, module in tower.named_modules()
                if "norm" in type(module).__name__.lower()
                for name, _ in module.named_parameters(recurse=False)
            ]
        else:
            names = last_blocks(tower, int(self.kind.removeprefix("last:")))
        if not names:
            raise InputError(f"stage1.tune={self.kind}: {type(tower).__name__} has nothing of the kind; set it to full")
        return sorted(names)

    def _adapt(self, name: str, block: nn.Module, size: int) -> None:
        assert isinstance(block.mlp, nn.Module)
        block.mlp = Beside(block.mlp, AdaptFormer(width_of(block), size, self._rng(name), self.init))

    def _prompt(self, name: str, block: nn.Module, size: int) -> None:
        if "rope" in inspect.signature(block.forward).parameters:
            raise InputError(
                "stage1.tune=vpt: this tower's rotary positions leave no place for prompts; set it to adaptformer"
            )
        bound = math.sqrt(3 / width_of(block))
        tokens_TD = torch.empty(size, width_of(block)).uniform_(-bound, bound, generator=self._rng(name))
        block.prompt = nn.Parameter(tokens_TD)
        block.register_forward_pre_hook(_with_prompts)
        block.register_forward_hook(_without_prompts)

    def _low_rank(self, name: str, block: nn.Module, size: int) -> None:
        """Query and value of attention, in one matrix with the key or by themselves (Hu et al. 2022)."""
        for place, matrix, rows, parts in list(_attention_inputs(block)):
            weight = getattr(matrix, place)
            rng = self._rng(f"{name}.{place}.{parts}.{rows}")
            parametrize.register_parametrization(matrix, place, LowRank(weight, rows, parts, size, rng, self.init))

    def _entries(self, name: str, block: nn.Module, size: int) -> None:
        for number, (matrix, place) in enumerate(list(matrices_of(block))):
            weight = getattr(matrix, place)
            entries = Entries(weight, min(size, weight.numel()), self._rng(f"{name}.{number}"))
            parametrize.register_parametrization(matrix, place, entries)

    def _rng(self, name: str) -> torch.Generator:
        return generator(self.seed, "tune", name)


def size_of(tuning: Tuning, blocks: list[tuple[str, nn.Module]]) -> int:
    """The size that was asked for, or else one by rule.

    adaptformer and lora: 2^floor(log2(C / (2 blocks))), at least 1 (Shi et al. 2024, LIFT). vpt: `PROMPTS`. mask: so
    many entries of each matrix that they are as many as adaptformer's weights.
    """
    if tuning.size:
        return tuning.size
    if tuning.kind == "vpt":
        return PROMPTS
    width = 1 << max(0, math.floor(math.log2(max(1.0, tuning.classes / (2 * len(blocks))))))
    if tuning.kind != "mask":
        return width
    weights = sum(AdaptFormer.weights(width_of(block), width) for _, block in blocks)
    return -(-weights // sum(len(list(matrices_of(block))) for _, block in blocks))


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


def _attention_inputs(block: nn.Module) -> Iterator[tuple[str, nn.Module, int, tuple[int, ...]]]:
    """Matrices with the query's and value's rows: (parameter's name, module, rows of a part, parts)."""
    attention = block.attn
    assert isinstance(attention, nn.Module)
    fused = getattr(attention, "qkv", None)
    if isinstance(attention, nn.MultiheadAttention):
        yield "in_proj_weight", attention, attention.embed_dim, (0, 2)
    elif isinstance(fused, nn.Linear):
        yield "weight", fused, fused.out_features // 3, (0, 2)
    elif isinstance(getattr(attention, "in_proj_weight", None), nn.Parameter):
        assert isinstance(attention.in_proj_weight, nn.Parameter)
        yield "in_proj_weight", attention, len(attention.in_proj_weight) // 3, (0, 2)
    else:
        for name in ("q_proj", "v_proj"):
            linear = getattr(attention, name, None)
            if not isinstance(linear, nn.Linear):
                raise InputError(
                    f"stage1.tune=lora: {type(attention).__name__} keeps its query and value in a way that is not "
                    "known; set it to adaptformer"
                )
            yield "weight", linear, linear.out_features, (0,)


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

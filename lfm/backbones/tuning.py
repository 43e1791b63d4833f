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
from torch import nn
from torch.nn.utils import parametrize

from lfm.backbones.blocks import last_blocks, matrices_of, transformer_blocks, width_of
from lfm.backbones.tuned_parts import AdaptFormer, Beside, Entries, LowRank, add_prompts
from lfm.errors import InputError
from lfm.method.draws import generator

IN_BLOCKS = ("adaptformer", "lora", "vpt", "mask")
"""Kinds that add something to each transformer block."""
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
        self.check(tower)
        before = dict(tower.named_parameters())
        if self.kind == "full":
            return sorted(before)
        if self.kind not in IN_BLOCKS:
            return self._chosen(tower)
        found = list(transformer_blocks(tower))
        add = {"adaptformer": self._adapt, "lora": self._low_rank, "vpt": self._prompt, "mask": self._entries}[
            self.kind
        ]
        size = size_of(self, found)  # before anything is added, which would be counted
        for name, block in found:
            add(name, block, size)
        own = {id(parameter) for parameter in before.values()}  # by now under other names, some of them
        return sorted(name for name, parameter in tower.named_parameters() if id(parameter) not in own)

    def check(self, tower: nn.Module) -> None:
        """Refuse a tower without parts of this kind; its weights are not looked at, and may be on the meta device.

        Raises:
            InputError: names what the tower lacks, and a kind that it has.
        """
        if self.kind not in ("full", *IN_BLOCKS):
            self._chosen(tower)
            return
        found = [block for _, block in transformer_blocks(tower)]
        if self.kind in IN_BLOCKS and not found:
            raise InputError(
                f"stage1.tune={self.kind} is for towers of transformer blocks, of which this tower has none; set it to "
                "full, bias, norm or last:1"
            )
        if self.kind == "vpt" and any("rope" in inspect.signature(block.forward).parameters for block in found):
            raise InputError(
                "stage1.tune=vpt: this tower's rotary positions leave no place for prompts; set it to adaptformer"
            )
        for block in found if self.kind == "lora" else ():
            list(_attention_inputs(block))

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
            raise InputError(f"stage1.tune={self.kind}: this tower has nothing of the kind; set it to full")
        return sorted(names)

    def _adapt(self, name: str, block: nn.Module, size: int) -> None:
        assert isinstance(block.mlp, nn.Module)
        block.mlp = Beside(block.mlp, AdaptFormer(width_of(block), size, self._rng(name), self.init))

    def _prompt(self, name: str, block: nn.Module, size: int) -> None:
        bound = math.sqrt(3 / width_of(block))
        tokens_TD = torch.empty(size, width_of(block)).uniform_(-bound, bound, generator=self._rng(name))
        add_prompts(block, tokens_TD)

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

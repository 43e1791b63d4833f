"""WiSE-FT (Wortsman et al. 2022): weights on the line from the untouched tower to the tuned one.

theta = (1 - w) theta_start + w theta_end. Tuning pulls a pre-trained tower towards the classes that it sees most; part
of the way back may cost the frequent classes little and give the rare ones much.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lfm.errors import InputError

TRIED = tuple(k / 10 for k in range(11))


def check_line(model: nn.Module) -> None:
    """Refuse a tower whose weights have no line.

    Raises:
        InputError: it has batch norms, whose running statistics belong to the tuned end alone.
    """
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise InputError(
            "stage1.wise: this tower has batch norms, whose statistics fit the tuned weights alone; set it to 1"
        )


class Line:
    """The line between where a stage begins and where it ends; free where the end is what is wanted.

    Args:
        model: whose parameters are about to be trained, as they are before any training.
        trained: those that will change.
        share: w, or "auto" for the one of `TRIED` with the highest score.
        scored: number of images that give a score.

    Raises:
        InputError: a tower with batch norms, whose running statistics belong to its end alone, or auto without images.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter], share: float | str, scored: int) -> None:
        self.share, self.trained = share, list(trained) if share != 1 else []
        self.start: list[Tensor] = [parameter.detach().clone() for parameter in self.trained]
        if not self.start:
            return
        check_line(model)
        if share == "auto" and not scored:
            raise InputError(
                "stage1.wise=auto chooses on validation images, and there are none; set data.val_per_class"
            )

    def settle(self, score: Callable[[], float]) -> dict[str, float]:
        """Give the model its place on the line.

        Args:
            score: of the model as it is, higher is better.

        Returns:
            By name the share, and where it was chosen the score of each of `TRIED`; empty for the end of the line.
        """
        if not self.start:
            return {}
        end = [parameter.detach().clone() for parameter in self.trained]
        share, found = self.share, dict[float, float]()
        if isinstance(share, str):
            for tried in TRIED:
                self._place(end, tried)
                found[tried] = score()
            share = max(TRIED, key=lambda tried: (found[tried], tried))  # of equals the most tuned one
        self._place(end, share)
        return {"share": share, **{f"val {tried:g}": value for tried, value in found.items()}}

    @torch.no_grad()
    def _place(self, end: Sequence[Tensor], share: float) -> None:
        for parameter, start, last in zip(self.trained, self.start, end, strict=True):
            parameter.copy_(start + share * (last - start) if share < 1 else last)

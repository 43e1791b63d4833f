"""Losses and weights that became infinite or NaN: when, and for which images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lfm.errors import InputError
from lfm.method.mixup import PairSampler
from lfm.training.processes import Processes

LOOK_EVERY = 20
"""Steps between looks at the losses: each look waits for the device."""


class NonFiniteLossError(InputError):
    """The loss became NaN or infinite.

    Args:
        message: text for the user.
        index_K2: the pairs with such a loss, as positions in the training split.
    """

    def __init__(self, message: str, index_K2: Tensor | None = None) -> None:
        super().__init__(message)
        self.index_K2 = index_K2


class LossWatch:
    """The losses of the last steps, kept on the device and looked at now and then.

    Args:
        stage: 1 or 2.
        sampler: makes the batches, so that a pair can be named afterwards.
        processes: the processes that train together; each keeps the losses of its own rows.
    """

    def __init__(self, stage: int, sampler: PairSampler, processes: Processes) -> None:
        self.stage, self.sampler, self.processes = stage, sampler, processes
        most_rows = sampler.batch_size // processes.count + 1
        self.recent = torch.zeros(LOOK_EVERY, most_rows, device=processes.device)

    def record(self, step: int, loss_B: Tensor) -> None:
        """Keep the loss of each of this process's rows in a step."""
        self.recent[step % LOOK_EVERY, : len(loss_B)] = loss_B
        self.recent[step % LOOK_EVERY, len(loss_B) :] = 0

    def check(self, step: int) -> None:
        """Look at the losses of the last steps before this one.

        Raises:
            NonFiniteLossError: some loss of this process is not finite; names the first such step and its pairs.
        """
        steps = torch.arange(max(0, step - LOOK_EVERY), step)
        bad = ~self.recent.isfinite().cpu()[steps % LOOK_EVERY]
        own_first = torch.tensor(
            int(steps[bad.any(dim=1)][0]) if bool(bad.any()) else step, device=self.processes.device
        )
        first = int(self.processes.reduce(own_first, "min"))
        rows_K = bad[steps == first].flatten().nonzero().flatten()
        if not len(rows_K):
            return  # all is well, or the loss was another process's: the error there ends this one too
        epoch, step_of_epoch = divmod(first, self.sampler.steps_per_epoch)
        batch = self.sampler.batch(epoch, step_of_epoch)
        rows, _ = self.processes.rows(len(batch.index_B2))
        raise NonFiniteLossError(
            f"the loss of stage {self.stage} is not finite in step {step_of_epoch + 1} of epoch {epoch + 1}; "
            f"lower stage{self.stage}.lr, set stage{self.stage}.clip=1 or train.precision=fp32, then run again: "
            "with changed values the stage starts over",
            batch.index_B2[rows][rows_K],
        )


def check_weights(stage: int, parameters: Iterable[nn.Parameter]) -> None:
    """Look at the trained weights.

    Raises:
        NonFiniteLossError: some are not finite.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise NonFiniteLossError(
            f"weights of stage {stage} became infinite or NaN; lower stage{stage}.lr, then run again"
        )

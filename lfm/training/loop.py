"""Stage 1 trains the image tower F_I, stage 2 the matrix W_I: one loop for both (Franklin et al. 2024).

The loop knows neither MLflow nor Kubeflow: it takes a `log(metrics, epoch)` callable and a folder for checkpoints.

Letters in the names give shapes: B images of a step that this process computes; C classes; D embedding dimensions;
N training images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from lfm.backbones.device import bf16_warning, use_bf16
from lfm.backbones.model import LFM, load_changing
from lfm.config.schema import RunConfig
from lfm.data.images import Images
from lfm.method.losses import Classes, make_loss, soft
from lfm.method.mixup import PairBatch
from lfm.progress import bar, say
from lfm.training.averaging import Average
from lfm.training.batch_size import search_batch_size
from lfm.training.batches import label_shares, pair_sampler
from lfm.training.checkpoint_writer import CheckpointWriter
from lfm.training.checkpoints import Checkpoints, Position, Snapshot, made_with
from lfm.training.dropout import seeded
from lfm.training.memory import FrozenWeights, lay_out
from lfm.training.network_inputs import MixedFeatures, MixedPixels
from lfm.training.nonfinite import LOOK_EVERY, LossWatch, check_weights
from lfm.training.preemption import CheckpointTimer, PreemptedError
from lfm.training.processes import Processes, new_accelerator, prepare, unwrap
from lfm.training.schedule import learning_rate, optimizer_of
from lfm.training.validation import Validation
from lfm.training.wise import Line


class Stage:
    """One training stage, ready to `run` from the newest intact checkpoint, or from the start.

    A process has one at a time: Accelerate's state is the process's.

    Args:
        number: 1 or 2.
        config: the run's configuration.
        model: trained in place.
        train: training split, on the model's device.
        val: validation split; may be empty.
        folder: folder for the checkpoints of this configuration and stage alone.
        log: takes metrics and the epoch they belong to, counted from 1.
        alpha: strength of the label shift, a number even where the configuration says "auto".
        written: takes the folder of each new checkpoint.
        classes: names of the classes, where `mixup.exclude` speaks of some.

    Raises:
        InputError: the checkpoint to resume from was made with other values; they are named.
    """

    def __init__(
        self, number: int, config: RunConfig, model: LFM, train: Images, val: Images, folder: Path,
        log: Callable[[Mapping[str, float], int], None], alpha: float, written: Callable[[Path], None] | None = None,
        classes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.number, self.config, self.model, self.train, self.log = number, config, model, train, log
        self.values, device = config.stage(number), train.device
        self.dtype = torch.bfloat16 if use_bf16(config.train.precision, device) else torch.float32
        self.checkpoints = Checkpoints(folder, config.train.keep_checkpoints, made_with(config, number, alpha), written)
        self.line = Line(model, model.train_stage(1), config.stage1.wise, len(val)) if number == 1 else None
        start = Snapshot(Position(0, 0, torch.zeros((), device=device)), self.values.batch_size, {}, ())
        if resumed := self.checkpoints.newest(device):
            load_changing(model, resumed.model, number)
            start = resumed

        self.accelerator = new_accelerator(device, self.dtype)
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes, device)
        if self.processes.first and (slow := bf16_warning(config.train.precision, device)):
            say(slow)
        self.layout = lay_out(model, config.train.recompute and number == 1, self.processes)
        self.trained = model.train_stage(number)
        self.frozen = FrozenWeights(model.image, cast=self.dtype == torch.bfloat16)
        self.optimizer = optimizer_of(self.values, self.trained)
        start.restore_optimizer(self.optimizer, self.trained)
        self.average = Average(self.trained, self.values.ema, start.average)
        label_N, text_CD = train.label_N.cpu(), model.text_CD
        count_C = label_N.bincount(minlength=len(text_CD))
        # A step takes as long whatever shares the loss adjusts by; those of Remix depend on the batch size.
        self.loss = make_loss(config.loss, Classes(count_C.to(device), text_CD, (count_C / len(label_N)).to(device)))
        self.batch_size = start.batch_size if start.batch_size != "auto" else self._searched_batch_size()
        self.shares = label_shares(config, number, count_C, text_CD.cpu(), alpha, self.batch_size, classes)
        if (adjusting_C := self.shares.adjusting(config.loss)) is not None:
            self.loss = make_loss(config.loss, Classes(count_C.to(device), text_CD, adjusting_C.to(device)))
        self.sampler = pair_sampler(config, number, label_N, text_CD.cpu(), alpha, self.batch_size, classes)
        self.steps = self.values.epochs * self.sampler.steps_per_epoch
        self.inputs = self._inputs()
        self.net, self.prepared_optimizer = prepare(
            self.accelerator, self.inputs.net, self.optimizer, config.train.compile, self.steps
        )
        loss_sum = start.position.loss_sum if self.processes.first else torch.zeros_like(start.position.loss_sum)
        self.position = Position(start.position.step, start.position.images, loss_sum)
        self.losses = LossWatch(number, self.sampler, self.processes)
        self.validation = Validation(number, config, model, train, val)
        self.timer = CheckpointTimer(config.train, self.processes)
        self.writer = CheckpointWriter(self.checkpoints, self.position.step)
        if self.processes.first:
            self.checkpoints.remove_left_behind()
        if self.processes.first and (slow := self.average.too_slow(self.steps)):
            say(f"warning: stage{number}.ema: {slow}")
        if resumed and self.processes.first:
            say(f"stage {number} resumes from step {self.position.step}")

    def run(self) -> None:
        """Train to the end; the model is then in evaluation mode.

        Raises:
            NonFiniteLossError: the loss is infinite or NaN; names the epoch and the pairs.
            PreemptedError: SIGTERM or Ctrl-C came; a checkpoint that takes no time is written.
            OSError: a checkpoint could not be written.
        """
        position, per_epoch = self.position, self.sampler.steps_per_epoch
        batches = (self.sampler.batch(*divmod(step, per_epoch)) for step in range(position.step, self.steps))
        began, images_before = time.perf_counter(), position.images
        with (
            self.timer.catching_signals(),
            self.writer,
            bar(self.steps, f"stage {self.number}", "steps", position.step, not self.processes.first) as progress,
        ):
            for batch, pixels in self.inputs.ahead(batches, lambda b: self.processes.rows(len(b.index_B2))[0]):
                position.add(self.step(batch, pixels, position.step), len(batch.index_B2))
                progress.update()
                epoch_ends = position.step % per_epoch == 0
                if epoch_ends or position.step % LOOK_EVERY == 0:
                    self.losses.check(position.step)
                if epoch_ends:
                    speed = (position.images - images_before) / (time.perf_counter() - began)
                    shown = self._log_epoch(speed)
                    progress.set_postfix_str(shown, refresh=False)
                    position.end_epoch()
                    began, images_before = time.perf_counter(), 0
                # After the epoch was logged: a run resumed from this checkpoint does not log it again.
                if self.timer.due(position.step, self.writer.busy()) and position.step < self.steps:
                    self._save()
        unwrap(self.accelerator, self.net, self.inputs.net)
        self.average.finish()
        self.frozen.restore()
        if self.line:
            self._settle(self.line)
        check_weights(self.number, self.trained)
        self.model.eval()

    def step(self, batch: PairBatch, pixels: Tensor | None, step: int) -> Tensor:
        """Train one step on the mean loss over all images of the batch.

        Args:
            batch: pairs of all processes.
            pixels: of this process's rows, if they were fetched ahead.
            step: number of the step, from 0.

        Returns:
            The sum of the losses of this process's images.
        """
        rows, fraction = self.processes.rows(len(batch.index_B2))
        x = self.inputs.mixed(batch, pixels, step / self.steps, rows)
        label_B2, weight_B2 = batch.label_B2[rows].to(x.device), batch.weight_B2[rows].to(x.device)
        if self.config.mixup.name == "none":
            label_B2, weight_B2 = label_B2[:, :1], weight_B2[:, :1]
        with seeded(x.device, self.config.seed, self.number, "dropout", step, self.processes.rank):
            loss_B = self._backward(x, label_B2, weight_B2, fraction)
        if self.values.clip:
            self.accelerator.clip_grad_norm_(self.trained, self.values.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.values, step, self.steps)
        self.prepared_optimizer.step()
        self.average.update()
        self.prepared_optimizer.zero_grad()
        loss_B = loss_B * (fraction > 0)
        self.losses.record(step, loss_B)
        return loss_B.sum()

    def _backward(self, x: Tensor, label_B2: Tensor, weight_B2: Tensor, fraction: float) -> Tensor:
        """Add up the gradients of this process's part of a step, micro-batch by micro-batch.

        Args:
            x: mixed images, (B, channels, height, width), or mixed features, (B, D).
            label_B2: classes of each pair.
            weight_B2: label weights of these classes.
            fraction: part of the whole batch that this process computes.

        Returns:
            The loss of each image, (B,).
        """
        size = self.values.micro_batch or len(x)
        losses = []
        for begin in range(0, len(x), size):
            piece = slice(begin, min(begin + size, len(x)))
            # Processes exchange gradients once a step, with the last piece.
            with nullcontext() if piece.stop == len(x) else self.accelerator.no_sync(self.net):
                loss_B = soft(self.loss, self.net(x[piece]), label_B2[piece], weight_B2[piece])
                # Gradients are averaged over the processes, so each is weighted by its number of images.
                self.accelerator.backward(loss_B.sum() * (fraction * self.processes.count / len(x)))
            losses.append(loss_B.detach())
        return torch.cat(losses)

    def _log_epoch(self, images_per_second: float) -> str:
        """Log the metrics of the epoch that ends; the loss and the speed in words."""
        position, epochs = self.position, self.position.step // self.sampler.steps_per_epoch
        loss = float(self.processes.reduce(position.loss_sum, "sum")) / position.images
        rate = learning_rate(self.values, position.step - 1, self.steps)
        self.processes.synchronise_statistics(self.model)
        with self.average.in_place():
            scores = self.validation.scores(epochs)
        metrics = {"loss": loss, "lr": rate, "images_per_second": images_per_second, **scores}
        self._log({f"stage{self.number}/{name}": value for name, value in metrics.items()}, epochs)
        return f"loss {loss:.3f} · {images_per_second:,.0f} images/s"

    def _settle(self, line: Line) -> None:
        """Put the weights where `stage1.wise` says, and log what was tried."""
        if found := line.settle(self.validation.mean_accuracy):
            self._log({f"stage1/wise/{name}": value for name, value in found.items()}, self.values.epochs + 1)
            if self.processes.first:
                say(f"stage 1 ends {found['share']:g} of the way from the untouched tower to the tuned one")

    def _log(self, metrics: Mapping[str, float], epoch: int) -> None:
        if self.processes.first:
            self.log(metrics, epoch)

    def _save(self) -> None:
        """Begin to write a checkpoint, or write the last one and stop if some process was asked to."""
        self.processes.synchronise_statistics(self.model)
        self.losses.check(self.position.step)
        check_weights(self.number, self.trained)  # resuming from broken weights would fail again and again
        loss_sum = self.processes.reduce(self.position.loss_sum, "sum")
        if self.processes.first:
            position = Position(self.position.step, self.position.images, loss_sum)
            state = self.model.changing(self.number)
            average = self.average.mean
            snapshot = Snapshot.take(position, self.batch_size, state, self.optimizer, self.trained, average)
            (self.writer.write_last if self.timer.stopping else self.writer.write)(snapshot)
        self.timer.restart()
        if self.timer.stopping:
            newest = int(self.processes.reduce(torch.tensor(self.writer.newest, device=self.train.device), "max"))
            where = f"it resumes from step {newest}" if newest else "it starts over"
            raise PreemptedError(f"stage {self.number} was asked to stop at step {self.position.step}; {where}")

    def _inputs(self) -> MixedPixels | MixedFeatures:
        train = self.config.train
        if self.number == 2 and self.config.stage2.features == "cached":
            return MixedFeatures(self.model, self.train, train, self.dtype, self.processes)
        return MixedPixels(self.model, self.train, train, self.dtype, self.layout)

    def _searched_batch_size(self) -> int:
        shape = (self.train.shape[0], self.train.side, self.train.side)
        size = search_batch_size(
            self.model, self.trained, self.loss, shape, len(self.train), self.values.micro_batch, self.dtype,
            self.processes,
        )  # fmt: skip
        if self.processes.first:
            say(f"stage {self.number}: a batch of {size} images is the largest that fits and gains speed")
        return size

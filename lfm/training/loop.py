"""Two stages, one loop (Franklin et al. 2024, decoupled training).

The loop knows neither MLflow nor Kubeflow: it takes a `log(metrics, step)` callable and a folder for checkpoints.
"""

import math
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn

from lfm.backbones.model import LFM
from lfm.config.overrides import flatten
from lfm.config.schema import RunConfig
from lfm.data.images import Images
from lfm.data.prefetch import fetched_ahead, mixed_images
from lfm.errors import InputError
from lfm.evaluation.inference import image_features, score_split, summed, use_bf16
from lfm.method.losses import Classes, make_loss, soft
from lfm.method.mixup import PairBatch
from lfm.progress import bar, say
from lfm.training.batches import pair_sampler
from lfm.training.checkpoints import Checkpoints, like, whole
from lfm.training.memory import cast_once, find_batch_size, recompute_activations, seconds_or_nothing, share
from lfm.training.schedule import learning_rate

LOOK_EVERY = 20
"""Steps between looks at what only a wait for the device, or for other processes, can tell."""
COMPILE_STEPS = 1000
"""Fewer steps on a GPU do not pay for the minutes of compiling."""
Log = Callable[[Mapping[str, float], int], None]


class NonFiniteLossError(InputError):
    """The loss became NaN or infinite.

    Args:
        message: for the user.
        index_K2: the pairs whose loss it was, as positions in the training split.
    """

    def __init__(self, message: str, index_K2: Tensor | None = None) -> None:
        super().__init__(message)
        self.index_K2 = index_K2


class PreemptedError(InputError):
    """Training was asked to end, and can go on from its checkpoint."""

    exit_code = 143  # as of a process that SIGTERM ended


@dataclass
class Stage:
    """One training stage: `run` trains it to the end, from the newest intact checkpoint if there is one.

    Args:
        number: 1 or 2.
        config: of the run; `alpha` is resolved to a number here by the caller.
        model: trained in place.
        train: training split, on the model's device.
        val: validation split, or an empty one.
        folder: for checkpoints; belongs to this configuration alone.
        log: takes metrics and the step they belong to.
        alpha: strength of the label shift.
        written: takes the folder of each new checkpoint.
    """

    number: int
    config: RunConfig
    model: LFM
    train: Images
    val: Images
    folder: Path
    log: Log
    alpha: float
    written: Callable[[Path], None] | None = None
    full: dict[str, Tensor] = field(default_factory=dict, init=False)
    """The frozen tower's weights in float32, where the model has them in bf16."""
    features: Tensor | None = field(default=None, init=False)
    """Of the validation images, in stage 2."""
    asked: bool = field(default=False, init=False)
    """Whether SIGTERM came to this process."""
    ending: bool = field(default=False, init=False)
    """Whether all processes end at the checkpoint that is due."""

    def __post_init__(self) -> None:
        self.values, self.device = self.config.stage(self.number), self.train.device
        of_train = ("train.flip", "train.precision", "train.resize")
        fields = ("seed", "model.", "text.", "mixup.", "loss.", f"stage{self.number}.", *of_train)
        made_with = {k: v for k, v in flatten(self.config).items() if k.startswith(fields)} | {"alpha": self.alpha}
        self.checkpoints = Checkpoints(self.folder, self.config.train.keep_checkpoints, made_with, self.written)

    def run(self) -> None:
        """Train.

        Raises:
            NonFiniteLossError: the loss is no number any more; names the epoch and the pairs.
            PreemptedError: SIGTERM came; a checkpoint is written.
            InputError: the checkpoint to go on from was made under other values; they are named.
        """
        step, images = self._begin()
        sampler, total = self.sampler, self.total
        saved = time.monotonic()
        with (
            self._ended_by_sigterm(),
            bar(self.steps, f"stage {self.number}", "steps", initial=step, hidden=self.rank > 0) as progress,
        ):
            epoch_began, counted = time.perf_counter(), images
            todo = (sampler.batch(*divmod(k, sampler.steps_per_epoch)) for k in range(step, self.steps))
            for batch, pixels in fetched_ahead(self.train, todo, lambda batch: self._share(len(batch.index_B2))[0]):
                epoch = step // sampler.steps_per_epoch
                total += self._step(batch, pixels, step)
                images += len(batch.index_B2)
                step += 1
                progress.update()
                if step % LOOK_EVERY == 0:
                    self._check_losses(step)
                if step % sampler.steps_per_epoch == 0:
                    self._check_losses(step)
                    speed = (images - counted) / (time.perf_counter() - epoch_began)
                    self._epoch_done(epoch, step, float(summed(total)) / images, speed, progress)
                    total, images, counted = torch.zeros_like(total), 0, 0
                    epoch_began = time.perf_counter()
                # After the epoch's point was logged: a run resumed from here will not come by it again.
                if self._due(step, saved) and step < self.steps:
                    self._save(step, summed(total), images)
                    saved = time.monotonic()
                    if self.ending:
                        raise PreemptedError(f"stage {self.number} was asked to end; it goes on from step {step}")
        self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)  # takes its autocast off the model again
        self.model.__dict__.pop("_is_accelerate_prepared", None)  # so that the next stage gets one
        for name, weights in self.full.items():
            self.model.get_parameter(name).data = weights
        self._check_weights()
        self.model.eval()

    def state(self) -> dict[str, Tensor]:
        """The model's tensors. Every process must ask: they may share them."""
        return {name: whole(self.full.get(name, value)) for name, value in self.model.state_dict().items()}

    def _begin(self) -> tuple[int, int]:
        """Make everything ready; the step to go on with, and the images of its epoch seen so far."""
        train = self.config.train
        AcceleratorState._reset_state()  # another stage of this process may have had another precision
        self.dtype = torch.bfloat16 if use_bf16(train.precision, self.device) else torch.float32
        found = self.checkpoints.newest(self.device)
        facts, tensors = found or ({"step": 0, "images": 0, "batch_size": self.values.batch_size}, {})
        if found:
            self.model.load_state_dict(_under("model.", tensors))
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no" if self.dtype == torch.float32 else "bf16",
            # Buffers are the text and running statistics: the first never changes, the second is agreed on when needed.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        # Accelerate that does not find the other processes trains alone, and says nothing.
        assert self.world == int(os.environ.get("WORLD_SIZE", "1")), f"{self.world} processes take part"
        self._lay_out()
        self.trained = self.model.train_stage(self.number)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.values.optimizer]
        self.optimizer = kind(self.trained, lr=self.values.lr, weight_decay=self.values.weight_decay, fused=True)
        for k, parameter in enumerate(self.trained if found else []):
            state = _under(f"optimizer.{k}.", tensors)
            self.optimizer.state[parameter] = {name: like(value, parameter) for name, value in state.items()}
        label_N = self.train.label_N.cpu()
        text_CD = self.model.text_CD
        count_C = label_N.bincount(minlength=len(text_CD)).to(self.device)
        self.label_loss = make_loss(self.config.loss, Classes(count_C, text_CD))
        size = facts["batch_size"]
        self.batch_size = self._found_batch_size() if size == "auto" else int(size)
        self.sampler = pair_sampler(self.config, self.number, label_N, text_CD.cpu(), self.alpha, self.batch_size)
        self.steps = self.values.epochs * self.sampler.steps_per_epoch
        self.net, self.prepared = self._prepared()
        self.recent = torch.zeros(LOOK_EVERY, self.batch_size // self.world + 1, device=self.device)
        total = tensors.get("epoch.total", torch.zeros((), device=self.device))
        self.total = total if self.rank == 0 else torch.zeros_like(total)
        if found and self.rank == 0:
            say(f"stage {self.number} goes on from step {facts['step']}")
        return facts["step"], facts["images"]

    def _lay_out(self) -> None:
        """Lay the model out in memory as it trains fastest, or as it fits."""
        train, tower = self.config.train, self.model.image
        if self.world > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(tower)
        if train.recompute and self.number == 1:
            recompute_activations(tower)
        self.sharded = train.shard and self.world > 1 and self.number == 1  # stage 2 trains one small matrix
        if self.sharded:
            share(tower, self.device, self.world)  # which knows no channels_last
        else:
            self.model.to(memory_format=torch.channels_last)
        if self.number == 2 and self.dtype == torch.bfloat16:
            self.full = {f"image.{name}": weights for name, weights in cast_once(tower).items()}

    def _prepared(self) -> tuple[Any, Any]:
        train = self.config.train
        worth = self.device.type == "cuda" and self.steps >= COMPILE_STEPS and shutil.which("cc") and not self.sharded
        if train.compile == "on" or (train.compile == "auto" and worth):
            self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="inductor")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # Accelerate knows no other name for it
            # What shares its weights exchanges gradients itself: it must get no DDP around it.
            net = self.accelerator.prepare_model(self.model, evaluation_mode=self.sharded)
        return net, self.accelerator.prepare_optimizer(self.optimizer)

    def _found_batch_size(self) -> int:
        """Try batches of zeros, and leave no trace in the model."""
        shape = (self.train.shape[0], *(2 * [self.train.side]))
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        # What Adam will hold beside the weights must fit too.
        reserved = [torch.empty_like(parameter) for parameter in self.trained for _ in range(2)]

        def seconds_of(size: int) -> float | None:
            x = torch.zeros(-(-size // self.world), *shape, device=self.device, dtype=self.dtype)
            label_B2 = torch.zeros(len(x), 2, dtype=torch.long, device=self.device)
            weight_B2 = torch.full((len(x), 2), 0.5, device=self.device)

            def step() -> None:
                size = self.values.micro_batch or len(x)
                for rows in range(0, len(x), size):
                    here = slice(rows, rows + size)
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                        logits_BC = self.model(x[here])
                    soft(self.label_loss, logits_BC, label_B2[here], weight_B2[here]).mean().backward()
                self.optimizer.zero_grad()

            taken = seconds_or_nothing(step, self.device)
            slowest = torch.tensor(math.inf if taken is None else taken, device=self.device)
            if self.world > 1:
                torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
            return float(slowest) if slowest.isfinite() else None

        found = find_batch_size(seconds_of, len(self.train))
        self.optimizer.zero_grad()
        del reserved
        for name, buffer in self.model.named_buffers():
            buffer.copy_(kept[name])
        if self.rank == 0:
            say(f"stage {self.number}: a batch of {found} images is the largest that fits and gains speed")
        return found

    def _step(self, batch: PairBatch, pixels: Tensor | None, step: int) -> Tensor:
        """A step on the mean loss over all processes' images; the sum of the losses of this process's."""
        rows, share = self._share(len(batch.index_B2))
        x = mixed_images(self.train, batch, self.config.train.flip, pixels, self.dtype, rows)
        label_B2, weight_B2 = batch.label_B2[rows].to(self.device), batch.weight_B2[rows].to(self.device)
        if self.config.mixup.name == "none":
            label_B2, weight_B2 = label_B2[:, :1], weight_B2[:, :1]
        loss_B = self._backward(x, label_B2, weight_B2, share)
        if self.values.clip:
            self.accelerator.clip_grad_norm_(self.trained, self.values.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.values, step, self.steps)
        self.prepared.step()
        self.prepared.zero_grad()
        loss_B = loss_B * (share > 0)
        self.recent[step % LOOK_EVERY, : len(loss_B)] = loss_B
        self.recent[step % LOOK_EVERY, len(loss_B) :] = 0
        return loss_B.sum()

    def _backward(self, x: Tensor, label_B2: Tensor, weight_B2: Tensor, share: float) -> Tensor:
        """Gradients of this process's part of a step, in pieces that fit.

        Args:
            x: mixed images.
            label_B2: their classes.
            weight_B2: the classes' weights.
            share: of the step's images, that are these.

        Returns:
            The loss of each image, (B,).
        """
        size = self.values.micro_batch or len(x)
        losses = []
        for begin in range(0, len(x), size):
            here = slice(begin, min(begin + size, len(x)))
            # Processes exchange gradients once a step, with the last piece.
            with nullcontext() if here.stop == len(x) else self.accelerator.no_sync(self.net):
                loss_B = soft(self.label_loss, self.net(x[here]), label_B2[here], weight_B2[here])
                # The processes' gradients are averaged, so that each counts by its images.
                self.accelerator.backward(loss_B.sum() * (share * self.world / len(x)))
            losses.append(loss_B.detach())
        return torch.cat(losses)

    def _share(self, size: int) -> tuple[slice, float]:
        """This process's rows of a batch, and their share of it; a row of weight 0 where the batch has too few."""
        begin, end = size * self.rank // self.world, size * (self.rank + 1) // self.world
        return (slice(begin, end), (end - begin) / size) if end > begin else (slice(0, 1), 0.0)

    def _check_losses(self, step: int) -> None:
        """Look at the losses of the steps before this one since the last look.

        Raises:
            NonFiniteLossError: one of this process's is no finite number.
        """
        steps = torch.arange(max(0, step - LOOK_EVERY), step)
        bad = ~self.recent.isfinite().cpu()[steps % LOOK_EVERY]
        first = torch.tensor(int(steps[bad.any(dim=1)][0]) if bool(bad.any()) else step, device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        rows_K = bad[steps == int(first)].flatten().nonzero().flatten()
        if not len(rows_K):
            return  # or another process knows whose loss it was: that ends all
        epoch, within = divmod(int(first), self.sampler.steps_per_epoch)
        batch = self.sampler.batch(epoch, within)
        rows, _ = self._share(len(batch.index_B2))
        raise NonFiniteLossError(
            f"the loss of stage {self.number} is no finite number in step {within + 1} of epoch {epoch + 1}; "
            f"lower stage{self.number}.lr, set stage{self.number}.clip=1 or train.precision=fp32, then run again: "
            "it begins anew with the changed values",
            batch.index_B2[rows][rows_K],
        )

    def _check_weights(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained):
            raise NonFiniteLossError(
                f"weights of stage {self.number} became infinite or no number; "
                f"lower stage{self.number}.lr, then run again"
            )

    def _due(self, step: int, saved: float) -> bool:
        every, minutes = self.config.train.checkpoint_steps, self.config.train.checkpoint_minutes
        by_steps = bool(every and step % every == 0)
        if self.world > 1 and not by_steps and step % LOOK_EVERY:
            return False
        asked = self.asked
        late = time.monotonic() - saved >= 60 * minutes
        # Clocks differ, and a signal comes to one process before the other: all do what any of them wants.
        wanted = summed(torch.tensor([float(late), float(asked)], device=self.device)) if self.world > 1 else None
        self.ending = bool(wanted[1]) if wanted is not None else asked
        return by_steps or self.ending or (bool(wanted[0]) if wanted is not None else late)

    @contextmanager
    def _ended_by_sigterm(self) -> Iterator[None]:
        """A pod that must go sends SIGTERM: finish the step, write a checkpoint, end with `PreemptedError`."""

        def end(number: int, frame: object) -> None:
            self.asked = True

        if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
            yield
            return
        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _epoch_done(self, epoch: int, step: int, loss: float, images_per_second: float, progress: Any) -> None:
        found = {
            "loss": loss,
            "lr": learning_rate(self.values, step - 1, self.steps),
            "images_per_second": images_per_second,
        }
        every = self.config.train.validate_every
        self._agree()
        if every and len(self.val.label_N) and ((epoch + 1) % every == 0 or epoch + 1 == self.values.epochs):
            if self.number == 2 and self.features is None:  # the encoder is frozen: its features stay the same
                self.features = image_features(self.model, self.val, self.config)
            score = score_split(self.model, self.val, self.train.label_N, self.config, self.features, confused=False)
            found |= {f"val/{k}": score[k] for k in ("all", "many", "medium", "few") if score[k] is not None}
            self.model.train_stage(self.number)
        progress.set_postfix_str(f"loss {loss:.3f} · {images_per_second:,.0f} images/s", refresh=False)
        if self.rank == 0:
            self.log({f"stage{self.number}/{k}": v for k, v in found.items()}, epoch + 1)

    def _agree(self) -> None:
        """Give all processes the running statistics of the first: on CPUs each has its own."""
        if self.world > 1:
            for name, buffer in self.model.named_buffers():
                if "running_" in name or "num_batches" in name:
                    torch.distributed.broadcast(buffer, 0)

    def _save(self, step: int, total: Tensor, images: int) -> None:
        self._agree()
        self._check_losses(step)
        self._check_weights()  # a checkpoint of these would stop every later run too
        tensors = {"epoch.total": total} | {f"model.{k}": v for k, v in self.state().items()}
        for k, parameter in enumerate(self.trained):
            tensors |= {f"optimizer.{k}.{n}": whole(v) for n, v in self.optimizer.state[parameter].items()}
        if self.rank == 0:
            self.checkpoints.save(tensors, {"step": step, "images": images, "batch_size": self.batch_size})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

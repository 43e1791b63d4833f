"""Two stages, one loop (paper.md sections 2 and 5).

The loop knows neither MLflow nor Kubeflow: it takes a `log(metrics, step)` callable and a folder for checkpoints.
"""

import json
import math
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfm.artifact import publishing, verify
from lfm.config import InputError, RunConfig, StageConfig
from lfm.data import Images
from lfm.data.feed import fetched_ahead, mixed_images
from lfm.losses import Classes, make_loss, soft
from lfm.mixup import PairBatch, PairSampler
from lfm.model import LFM
from lfm.progress import bar, say
from lfm.score import image_features, score_split, summed, use_bf16

GATHER_EVERY = 20
"""Steps between the moments at which several processes agree on whether a checkpoint is due."""
Log = Callable[[Mapping[str, float], int], None]
KEEP_CHECKPOINTS = 2


class NonFiniteLossError(InputError):
    """The loss became NaN or infinite."""


class PreemptedError(InputError):
    """Training was asked to end, and can go on from its checkpoint."""

    exit_code = 143  # as of a process that SIGTERM ended


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine from lr to min_lr at the last step (paper.md section 8).

    Args:
        stage: lr, min_lr and the warm-up's share of the steps.
        step: from 0.
        steps: of the whole stage.
    """
    warm = round(stage.warmup * steps)
    if step < warm:
        return stage.lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return stage.min_lr + (stage.lr - stage.min_lr) * (1 + math.cos(math.pi * done)) / 2


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
    """

    number: int
    config: RunConfig
    model: LFM
    train: Images
    val: Images
    folder: Path
    log: Log
    alpha: float
    features: Tensor | None = field(default=None, init=False)
    """Of the validation images, in stage 2."""
    asked: bool = field(default=False, init=False)
    """Whether SIGTERM came to this process."""
    ending: bool = field(default=False, init=False)
    """Whether all processes end at the checkpoint that is due."""
    rank: int = field(default=0, init=False)
    world: int = field(default=1, init=False)

    def run(self) -> None:
        """Train.

        Raises:
            NonFiniteLossError: the loss is no number any more; names the epoch.
        """
        values, config = self.config.stage(self.number), self.config
        device = self.train.device
        AcceleratorState._reset_state()  # another stage of this process may have had another precision
        bf16 = use_bf16(config.train.precision, device)
        dtype = torch.bfloat16 if bf16 else torch.float32
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if bf16 else "no",
            # Buffers are the text and running statistics: the first never changes, the second is agreed on when needed.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if self.world > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model.image)
        label_N = self.train.label_N.cpu()
        sampler = pair_sampler(config, self.number, label_N, self.model.text_CD.cpu(), self.alpha)
        count_C = sampler.count_C.to(device)
        label_loss = make_loss(config.loss, Classes(count_C, self.model.text_CD))
        self.model.to(memory_format=torch.channels_last)
        trained = self.model.train_stage(self.number)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[values.optimizer]
        optimizer = kind(trained, lr=values.lr, weight_decay=values.weight_decay, fused=True)
        steps = values.epochs * sampler.steps_per_epoch
        step, total, images = self._resume(optimizer, trained)
        net, prepared = _prepared(accelerator, self.model, optimizer)

        def train_step(batch: PairBatch, pixels: Tensor | None) -> Tensor:
            """The sum of the losses of this process's images, after a step on the mean over all."""
            rows, share = self._share(len(batch.index_B2))
            x = mixed_images(self.train, batch, config.train.flip, pixels, dtype, rows)
            label_B2, weight_B2 = batch.label_B2[rows].to(device), batch.weight_B2[rows].to(device)
            if config.mixup.name == "none":
                label_B2, weight_B2 = label_B2[:, :1], weight_B2[:, :1]
            loss = self._backward(
                accelerator, net, lambda *rest: soft(label_loss, *rest), (x, label_B2, weight_B2), share
            )
            if values.clip:
                accelerator.clip_grad_norm_(trained, values.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(values, step, steps)
            prepared.step()
            prepared.zero_grad()
            return loss * (share * len(batch.index_B2))

        saved = time.monotonic()
        with (
            self._ended_by_sigterm(),
            bar(steps, f"stage {self.number}", "steps", initial=step, hidden=self.rank > 0) as progress,
        ):
            epoch_began, counted = time.perf_counter(), images
            todo = (sampler.batch(*divmod(k, sampler.steps_per_epoch)) for k in range(step, steps))
            for batch, pixels in fetched_ahead(self.train, todo, lambda batch: self._share(len(batch.index_B2))[0]):
                epoch = step // sampler.steps_per_epoch
                total += train_step(batch, pixels)
                images += len(batch.index_B2)
                step += 1
                progress.update()
                if step % sampler.steps_per_epoch == 0:
                    speed = (images - counted) / (time.perf_counter() - epoch_began)
                    self._epoch_done(epoch, step, float(summed(total)) / images, speed, progress)
                    total, images, counted = torch.zeros((), device=device), 0, 0
                    epoch_began = time.perf_counter()
                # After the epoch's point was logged: a run resumed from here will not come by it again.
                if self._due(step, saved) and step < steps:
                    self._save(step, summed(total), images, optimizer, trained)
                    saved = time.monotonic()
                    if self.ending:
                        raise PreemptedError(f"stage {self.number} was asked to end; it goes on from step {step}")
        accelerator.unwrap_model(net, keep_fp32_wrapper=False)  # takes its autocast off the model again
        self._check_finite(trained)
        self.model.eval()

    def _check_finite(self, trained: list[nn.Parameter]) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in trained):
            raise NonFiniteLossError(
                f"weights of stage {self.number} became infinite or no number; "
                f"lower stage{self.number}.lr, then run again"
            )

    def _backward(
        self,
        accelerator: Accelerator,
        net: nn.Module,
        loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
        images: tuple[Tensor, Tensor, Tensor],
        share: float,
    ) -> Tensor:
        """Gradients of this process's part of a step, in pieces that fit; its mean loss.

        Args:
            accelerator: of the run.
            net: the prepared model.
            loss_of: (logits, labels, weights) -> loss of each image.
            images: tensors, labels, label weights.
            share: of the step's images, that are these.
        """
        x, label_B2, weight_B2 = images
        size = self.config.stage(self.number).micro_batch or len(x)
        loss = torch.zeros((), device=x.device)
        for begin in range(0, len(x), size):
            here = slice(begin, min(begin + size, len(x)))
            # Processes exchange gradients once a step, with the last piece.
            with nullcontext() if here.stop == len(x) else accelerator.no_sync(net):
                one = loss_of(net(x[here]), label_B2[here], weight_B2[here]).mean()
                weight = (here.stop - begin) / len(x)
                accelerator.backward(one * (weight * share * self.world))  # the processes' gradients are averaged
                loss += one.detach() * weight
        return loss

    def _share(self, size: int) -> tuple[slice, float]:
        """This process's rows of a batch, and their share of it; a row of weight 0 where the batch has too few."""
        begin, end = size * self.rank // self.world, size * (self.rank + 1) // self.world
        return (slice(begin, end), (end - begin) / size) if end > begin else (slice(0, 1), 0.0)

    def _due(self, step: int, saved: float) -> bool:
        every, minutes = self.config.train.checkpoint_steps, self.config.train.checkpoint_minutes
        by_steps = bool(every and step % every == 0)
        if self.world > 1 and not by_steps and step % GATHER_EVERY:
            return False
        asked = self.asked
        late = time.monotonic() - saved >= 60 * minutes
        # Clocks differ, and a signal comes to one process before the other: all do what any of them wants.
        wanted = summed(torch.tensor([float(late), float(asked)], device=self.train.device)) if self.world > 1 else None
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
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of stage {self.number} became {loss} in epoch {epoch + 1}; lower stage{self.number}.lr "
                f"or set train.precision=fp32, then run again"
            )
        values = self.config.stage(self.number)
        steps = values.epochs * math.ceil(len(self.train.label_N) / values.batch_size)
        found = {
            "loss": loss,
            "lr": learning_rate(values, step - 1, steps),
            "images_per_second": images_per_second,
        }
        every = self.config.train.validate_every
        self._agree()
        if every and len(self.val.label_N) and ((epoch + 1) % every == 0 or epoch + 1 == values.epochs):
            if self.number == 2 and self.features is None:  # the encoder is frozen: its features stay the same
                self.features = image_features(self.model, self.val, self.config)
            score = score_split(self.model, self.val, self.train.label_N, self.config, self.features)
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

    def _save(
        self, step: int, total: Tensor, images: int, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]
    ) -> None:
        self._agree()
        if self.rank > 0:
            return
        tensors = {"epoch.total": total} | {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for k, parameter in enumerate(trained):
            tensors |= {f"optimizer.{k}.{n}": v.contiguous() for n, v in optimizer.state[parameter].items()}
        with publishing(self.folder / f"step-{step:09d}", "checkpoint", {"step": step}) as aside:
            save_file(tensors, aside / "state.safetensors")
            (aside / "step.json").write_text(json.dumps({"step": step, "images": images}))
        for old in sorted(self.folder.glob("step-*"))[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def _resume(self, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> tuple[int, Tensor, int]:
        """Load the newest intact checkpoint, if there is one.

        Returns:
            The step to go on with, and the loss total and the images of its epoch so far.
        """
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                verify(folder)
            except InputError:
                say(f"checkpoint {folder.name} is torn, trying the one before")
                continue
            tensors = load_file(folder / "state.safetensors", device=str(self.train.device))
            self.model.load_state_dict(
                {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            )
            for k, parameter in enumerate(trained):
                prefix = f"optimizer.{k}."
                optimizer.state[parameter] = {
                    n.removeprefix(prefix): _like(v, parameter) for n, v in tensors.items() if n.startswith(prefix)
                }
            where = json.loads((folder / "step.json").read_text())
            if self.rank == 0:
                say(f"stage {self.number} goes on from step {where['step']}")
            total = tensors["epoch.total"] if self.rank == 0 else torch.zeros_like(tensors["epoch.total"])
            return where["step"], total, where["images"]
        return 0, torch.zeros((), device=self.train.device), 0


def _prepared(accelerator: Accelerator, model: LFM, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # Accelerate knows no other name for it
        net, prepared = accelerator.prepare(model, optimizer)
    return net, prepared


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Give optimizer state its parameter's memory layout, which the fused step relies on."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(value)


def pair_sampler(config: RunConfig, stage: int, label_N: Tensor, text_CD: Tensor, alpha: float) -> PairSampler:
    """The batches of a stage under this configuration."""
    mixup = config.mixup
    return PairSampler(
        label_N,
        text_CD,
        name=mixup.name,
        alpha=alpha,
        tau=mixup.tau,
        batch_size=config.stage(stage).batch_size,
        seed=config.seed,
        stage=stage,
        uniform_partner=mixup.partner == "uniform",
        until_used_up=mixup.partner_image == "until-used-up",
        b=mixup.beta,
        per_batch=mixup.lambda_per == "batch",
        remix_kappa=mixup.remix_kappa,
        remix_tau=mixup.remix_tau,
    )

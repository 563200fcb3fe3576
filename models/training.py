"""Training, one epoch at a time; the caller shows progress, validates and saves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from segdeploy.models.augmentation import Augment, Augmentation
from segdeploy.models.batches import Batch, epoch_loader
from segdeploy.models.dataset import Frame
from segdeploy.models.distributed import (
    averaged,
    device,
    parallel,
    rank,
    share_buffers,
    with_shared_norms,
    world_size,
)
from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.gradient_checkpointing import checkpoint_blocks
from segdeploy.models.losses import weighted_sum

SCHEDULES = ("one-cycle", "poly")
# A larger learning rate overflows float32 weights in one step.
_LARGEST_RATE = 1e36
_POLY_POWER = 0.9  # Chen et al. 2016, arXiv 1606.00915, section 4.1


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    `size` is the (H, W) that a whole frame is scaled to. Images are multiplied by `scale`, and then
    normalized by the `mean` and `std` of each channel. `dtype` is that of the images. The masks
    hold class ids, or with `bit_planes` a bit for each class, which is then trained as a binary
    network. Each optimizer step uses `batch_size * accumulate` frames.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    scale: float = 1 / 255
    dtype: str = "uint8"
    bit_planes: bool = False
    epochs: int = 3
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    schedule: str = "one-cycle"
    loss: Mapping[str, float] = field(default_factory=lambda: {"cross-entropy": 1.0})
    amp: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Step:
    """Result of one batch of all processes.

    `seconds` is the duration of the step in seconds. It includes `loading`, the wait for data.
    """

    epoch: int
    index: int
    steps_per_epoch: int
    loss: float
    images: int
    seconds: float
    loading: float


class Training:
    """A network, its optimizer and its schedule, advanced by `epoch()`.

    The network maps `(N, C, H, W) float32` to logits `(N, num_classes, H, W)`, or `(N, 1, H, W)` of
    two classes, and is trained in place with AdamW. An epoch depends only on the settings, the
    frames and the number of the epoch, so that `restore(state())` continues exactly.

    Raises:
        ModelInputError: for an unknown schedule or loss, an invalid learning rate, or a network
            that cannot be trained.
    """

    def __init__(
        self,
        network: nn.Module,
        frames: Sequence[Frame],
        ignore_index: int,
        settings: TrainingSettings,
        class_weights: Tensor | None = None,
    ):
        if not 0 < settings.learning_rate < _LARGEST_RATE:
            raise ModelInputError(
                f"learning rate {settings.learning_rate}: must be a positive number below 1e36, "
                "where float32 weights overflow"
            )
        self._settings = settings
        self._frames = frames
        self._ignore_index = ignore_index
        self._device = device()
        self._network = with_shared_norms(network.to(self._device))
        if settings.gradient_checkpointing and not checkpoint_blocks(self._network):
            raise ModelInputError(
                "training: the network has no block of two convolutions or more to checkpoint; "
                "leave --gradient-checkpointing out"
            )
        self._parallel = parallel(self._network)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ModelInputError("training: the network has no trainable parameter")
        weights = None if class_weights is None else class_weights.to(self._device)
        self._loss = weighted_sum(settings.loss, ignore_index, weights)
        self._augment = Augment(
            settings.augmentation,
            settings.size,
            settings.mean,
            ignore_index,
            scale=settings.scale,
            dtype=settings.dtype,
        )
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        batches = max(1, len(frames) // min(settings.batch_size, len(frames)))
        updates = -(-batches // settings.accumulate) * settings.epochs
        self._schedule = _schedule(settings, self._optimizer, updates)
        self._scaler = torch.amp.GradScaler(enabled=settings.amp and self._device.type == "cuda")
        self._mean = torch.tensor(settings.mean, device=self._device).view(1, -1, 1, 1)
        self._std = torch.tensor(settings.std, device=self._device).view(1, -1, 1, 1)
        self.epochs_done = 0

    def epoch(self) -> Iterator[Step]:
        """Train the next epoch, which is done when the iterator is exhausted.

        Raises:
            ModelInputError: for a frame that cannot be used, or a loss that is not finite. Such a
                loss does not change the weights.
        """
        settings = self._settings
        torch.manual_seed(settings.seed + 1000 * self.epochs_done + rank())  # for dropout
        loader = epoch_loader(
            self._frames,
            self._augment,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=self.epochs_done,
            workers=settings.workers,
        )
        # Not channels_last: torch 2.14.1 corrupts memory in its backward pass on a CPU.
        self._network.train()
        started = time.perf_counter()
        for index, batch in enumerate(_survived(loader)):
            loaded = time.perf_counter()
            if isinstance(batch, ModelInputError):
                raise batch
            loss = self._backward(
                batch, index, _group_size(index, len(loader), settings.accumulate)
            )
            if (index + 1) % settings.accumulate == 0 or index + 1 == len(loader):
                self._update()
            ended = time.perf_counter()
            yield Step(
                self.epochs_done,
                index,
                len(loader),
                loss,
                len(batch.names) * world_size(),
                ended - started,
                loaded - started,
            )
            started = time.perf_counter()
        share_buffers(self._network)
        self._network.eval()
        self.epochs_done += 1

    def state(self) -> dict[str, Any]:
        """Return the state from which a later process continues, as tensors and plain values."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "epochs_done": self.epochs_done,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state()` returned."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.epochs_done = state["epochs_done"]

    def _backward(self, batch: Batch, index: int, group: int) -> float:
        images = batch.images.to(self._device)
        if images.dtype == torch.uint8:  # other images are scaled before their augmentation
            images = images / (1 / self._settings.scale)
        masks = batch.masks.to(self._device).long()
        with self._precision():
            logits = self._logits((images - self._mean) / self._std, batch)
        logits = logits.float()
        if self._settings.bit_planes:
            planes = torch.stack([self._binary(logits, masks, k) for k in range(logits.shape[1])])
            loss = planes.mean()
        elif logits.shape[1] == 1:
            loss = self._loss(_with_background(logits), masks)
        else:
            loss = self._loss(logits, masks)
        if not torch.isfinite(loss):
            names = ", ".join(batch.names[:4]) + (", ..." if len(batch.names) > 4 else "")
            raise ModelInputError(
                f"training: the loss is {loss.item()} in epoch {self.epochs_done + 1}, batch "
                f"{index + 1} ({names}); lower --learning-rate, or look at these frames"
            )
        shown = averaged(loss)
        if not torch.isfinite(shown):
            raise ModelInputError(
                "training: the loss of another process is not finite; see its error"
            )
        scaled: Any = self._scaler.scale(loss / group)
        scaled.backward()
        return shown.item()

    def _binary(self, logits: Tensor, masks: Tensor, index: int) -> Tensor:
        """Return the loss of one class of a multilabel network."""
        targets = torch.where(masks == self._ignore_index, masks, masks >> index & 1)
        return self._loss(_with_background(logits[:, index : index + 1]), targets)

    def _logits(self, images: Tensor, batch: Batch) -> Tensor:
        try:
            logits: Tensor = self._parallel(images)
        except Exception as error:  # the user's own code may fail in any way
            if "more than 1 value per channel" in str(error):
                raise ModelInputError(
                    f"training: BatchNorm cannot normalize a batch of {len(batch.names)} after a "
                    "global pooling; give a larger --batch-size"
                ) from error
            if isinstance(error, RuntimeError) and world_size() > 1:
                raise  # another process may have ended
            raise ModelInputError(
                f"training: the network fails in training mode on a batch of {len(batch.names)} "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        return logits

    def _update(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._settings.amp:
            return nullcontext()
        dtype = torch.float16 if self._device.type == "cuda" else torch.bfloat16
        return torch.autocast(self._device.type, dtype)


def _with_background(logits: Tensor) -> Tensor:
    """Return `(N, 2, H, W)` logits for `(N, 1, H, W)`.

    The softmax over (0, x) is the sigmoid of x, so the losses of two classes are the binary ones.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def _group_size(index: int, batches: int, accumulate: int) -> int:
    """Return the number of batches in the accumulation group of batch `index`."""
    rest = batches % accumulate
    return rest if index >= batches - rest else accumulate


def _survived(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise ModelInputError(
            f"training: a data-loading worker died ({first_line(error)}), perhaps for lack of "
            "memory; give --workers 0"
        ) from error


def _schedule(
    settings: TrainingSettings, optimizer: torch.optim.Optimizer, updates: int
) -> lr_scheduler.LRScheduler:
    if settings.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=max(updates, 2)
        )
    if settings.schedule == "poly":
        return lr_scheduler.PolynomialLR(optimizer, total_iters=updates, power=_POLY_POWER)
    raise ModelInputError(f"schedule '{settings.schedule}': must be one of {', '.join(SCHEDULES)}")

"""Training: a generator of steps, so that the caller draws progress and saves checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segdeploy.models.dataset import Frame
from segdeploy.models.errors import ModelInputError

_Crop = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; `size` is (H, W) of the crops, `mean` and `std` are of RGB in 0..1."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 4e-3
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Step:
    """What one optimiser step did; times are seconds, `loading` is the wait for data in it."""

    epoch: int
    index: int
    steps_per_epoch: int
    loss: float
    images: int
    seconds: float
    loading: float

    @property
    def ends_epoch(self) -> bool:
        """Whether this was the last step of its epoch."""
        return self.index + 1 == self.steps_per_epoch


def train(
    network: nn.Module, frames: Sequence[Frame], ignore_index: int, settings: TrainingSettings
) -> Iterator[Step]:
    """Train `network` in place with cross-entropy, AdamW and a one-cycle schedule.

    The network maps `(N, 3, H, W)` float32 to logits `(N, num_classes, H, W)`; ignored pixels do
    not enter the mean. Deterministic by `settings.seed` on one machine.

    Raises:
        ModelInputError: for a frame that cannot be used, or when the loss is no longer finite.
    """
    torch.manual_seed(settings.seed)
    loader = _loader(frames, ignore_index, settings)
    total_steps = settings.epochs * len(loader)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(total_steps, 2)
    )
    mean = torch.tensor(settings.mean).view(1, 3, 1, 1)
    std = torch.tensor(settings.std).view(1, 3, 1, 1)
    # Not channels_last: torch 2.14.1 corrupts memory in its backward pass on a CPU.
    network.train()
    for epoch in range(settings.epochs):
        started = time.perf_counter()
        for index, batch in enumerate(loader):
            loaded = time.perf_counter()
            if isinstance(batch, ModelInputError):
                raise batch
            images, masks = batch
            normalised = (images.float() / 255 - mean) / std
            loss = F.cross_entropy(network(normalised), masks.long(), ignore_index=ignore_index)
            if not torch.isfinite(loss):
                raise ModelInputError(
                    f"training: the loss is {loss.item()} in epoch {epoch + 1}, step {index + 1}; "
                    "lower --learning-rate or look for frames that are all ignored"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            ended = time.perf_counter()
            yield Step(
                epoch,
                index,
                len(loader),
                loss.item(),
                len(images),
                ended - started,
                loaded - started,
            )
            started = time.perf_counter()
    network.eval()


def _loader(
    frames: Sequence[Frame], ignore_index: int, settings: TrainingSettings
) -> DataLoader[_Crop | ModelInputError]:
    return DataLoader(
        _Crops(frames, ignore_index, settings.size),
        batch_size=settings.batch_size,
        shuffle=True,
        # A last batch of one image would leave BatchNorm without a variance.
        drop_last=len(frames) > settings.batch_size,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=_batch,
        generator=torch.Generator().manual_seed(settings.seed),
    )


def _batch(items: list[_Crop | ModelInputError]) -> _Crop | ModelInputError:
    # A worker process would wrap an exception in its traceback, so a bad frame travels as a value.
    for item in items:
        if isinstance(item, ModelInputError):
            return item
    images, masks = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks)


class _Crops(Dataset[_Crop | ModelInputError]):
    """Random crops of the frames at `size`: images `(3, H, W)`, masks `(H, W)`, both uint8.

    A crop holds at least 40% of the frame, so objects appear at up to 1.6 times the scale that
    they have when a whole frame is resized to `size`, as inference does.
    """

    def __init__(self, frames: Sequence[Frame], ignore_index: int, size: tuple[int, int]):
        self.frames = frames
        aspect = size[1] / size[0]
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(aspect * 0.9, aspect * 1.1)),
            ]
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> _Crop | ModelInputError:
        try:
            image, mask = self.frames[index].read()
        except ModelInputError as error:
            return error
        crop, labels = self.transform(
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(mask)),
        )
        return crop.as_subclass(Tensor), labels.as_subclass(Tensor)

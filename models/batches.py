"""Batches of augmented frames: the same for a seed, whatever the workers and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segdeploy.models.augmentation import Augment
from segdeploy.models.dataset import Frame
from segdeploy.models.distributed import rank, world_size
from segdeploy.models.errors import ModelInputError, first_line


@dataclass(frozen=True)
class Batch:
    """Pictures `(N, 3, H, W) uint8`, masks `(N, H, W) uint8`, and the frames' names."""

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]


_Key = tuple[int, int]  # (epoch, frame)
_Crop = tuple[Tensor, Tensor, str]


def epoch_loader(
    frames: Sequence[Frame],
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    workers: int,
) -> DataLoader[Any]:
    """The batches of one epoch, in an order drawn from `(seed, epoch)`.

    Each is a `Batch`, or the error of a frame that cannot be used. `batch_size` counts the frames
    of all processes together; this process gets its share of each batch. An incomplete last batch
    is left out: one image would leave BatchNorm without a variance.

    Raises:
        ModelInputError: if the batch cannot be shared equally.
    """
    if batch_size % world_size():
        raise ModelInputError(
            f"--batch-size {batch_size} cannot be shared by {world_size()} processes; "
            "give a multiple"
        )
    return DataLoader(
        _Crops(frames, augment, seed),
        batch_sampler=_Shares(len(frames), batch_size, seed, epoch),
        num_workers=workers,
        collate_fn=_batch,
    )


class _Shares(Sampler[list[_Key]]):
    """This process's part of each batch of an epoch, as `(epoch, frame)` keys."""

    def __init__(self, count: int, batch_size: int, seed: int, epoch: int):
        self._batch_size = min(batch_size, count // world_size() * world_size())
        if self._batch_size == 0:
            raise ModelInputError(
                f"training: {count} frames cannot be shared by {world_size()} processes"
            )
        self._epoch = epoch
        generator = torch.Generator().manual_seed(_mixed(seed, epoch))
        self._order = torch.randperm(count, generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __iter__(self) -> Iterator[list[_Key]]:
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            batch = self._order[start : start + self._batch_size]
            yield [(self._epoch, frame) for frame in batch[rank() :: world_size()]]


class _Crops(Dataset[_Crop | ModelInputError]):
    """Augmented frames; what is drawn depends on `(seed, epoch, frame)` alone."""

    def __init__(self, frames: Sequence[Frame], augment: Augment, seed: int):
        self._frames = frames
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, key: _Key) -> _Crop | ModelInputError:
        epoch, index = key
        frame = self._frames[index]
        try:
            image, mask = frame.read()
        except ModelInputError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed(self._seed, epoch, index))
            picture = torch.from_numpy(image).permute(2, 0, 1)
            try:
                crop, labels = self._augment(picture, torch.from_numpy(mask))
            except RuntimeError as error:
                return ModelInputError(
                    f"{frame.image}: cannot be scaled and cropped ({first_line(error)}); "
                    "change --scale or --crop, or take the frame out"
                )
        return crop, labels, frame.name


def _batch(items: list[_Crop | ModelInputError]) -> Batch | ModelInputError:
    # A worker process would wrap an exception in its traceback, so a bad frame travels as a value.
    crops = []
    for item in items:
        if isinstance(item, ModelInputError):
            return item
        crops.append(item)
    images, masks, names = zip(*crops, strict=True)
    return Batch(torch.stack(images), torch.stack(masks), names)


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers (the multiplicative hash of FNV-1a)."""
    value = 0xCBF29CE484222325
    for number in numbers:
        value = ((value ^ number) * 0x100000001B3) % 2**64
    return value >> 1

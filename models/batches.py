"""Batches of augmented frames, reproducible for any number of workers and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segdeploy.models.augmentation import Augment
from segdeploy.models.dataset import Frame
from segdeploy.models.distributed import rank, world_size
from segdeploy.models.errors import ModelInputError, first_line


@dataclass(frozen=True)
class Batch:
    """Images `(N, C, H, W)`, masks `(N, H, W) uint8`, and the frames' names.

    Images of bytes are uint8, others float32 and scaled, as in `Augment`.
    """

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
    """Return the batches of one epoch, in an order drawn from `(seed, epoch)`.

    The loader yields a `Batch`, or the error of a frame that cannot be used. `batch_size` counts
    the frames of all processes together; each process gets an equal share of the batch. An
    incomplete last batch is dropped, because BatchNorm has no variance for a single image.

    Raises:
        ModelInputError: if a batch cannot be divided equally among the processes.
    """
    if batch_size % world_size():
        raise ModelInputError(
            f"--batch-size {batch_size} cannot be divided among {world_size()} processes; "
            "give a multiple of the number of processes"
        )
    return DataLoader(
        _Crops(frames, augment, seed),
        batch_sampler=_Shares(len(frames), batch_size, seed, epoch),
        num_workers=workers,
        collate_fn=_batch,
    )


class _Shares(Sampler[list[_Key]]):
    """Sampler of this process's share of each batch of an epoch, as `(epoch, frame)` keys."""

    def __init__(self, count: int, batch_size: int, seed: int, epoch: int):
        self._batch_size = min(batch_size, count // world_size() * world_size())
        if self._batch_size == 0:
            raise ModelInputError(
                f"training: {count} frames are too few for {world_size()} processes; "
                "add frames or start fewer processes"
            )
        self._epoch = epoch
        generator = torch.Generator().manual_seed(_seed(seed, epoch))
        self._order = torch.randperm(count, generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __iter__(self) -> Iterator[list[_Key]]:
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            batch = self._order[start : start + self._batch_size]
            yield [(self._epoch, frame) for frame in batch[rank() :: world_size()]]


class _Crops(Dataset[_Crop | ModelInputError]):
    """Augmented frames; the random draws depend only on `(seed, epoch, frame)`."""

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
            torch.manual_seed(_seed(self._seed, epoch, index))
            try:
                crop, labels = self._augment(self._augment.tensor(image), torch.from_numpy(mask))
            except RuntimeError as error:
                return ModelInputError(
                    f"{frame.image}: cannot be scaled and cropped ({first_line(error)}); "
                    "change --scale or --crop, or remove the frame"
                )
        return crop, labels, frame.name


def _batch(items: list[_Crop | ModelInputError]) -> Batch | ModelInputError:
    # A DataLoader worker would wrap an exception in its traceback, so errors are passed as values.
    crops = []
    for item in items:
        if isinstance(item, ModelInputError):
            return item
        crops.append(item)
    images, masks, names = zip(*crops, strict=True)
    return Batch(torch.stack(images), torch.stack(masks), names)


def _seed(*numbers: int) -> int:
    """Return a 64-bit seed from several numbers (numpy's `SeedSequence`); they may be negative."""
    entropy = [number % 2**64 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])

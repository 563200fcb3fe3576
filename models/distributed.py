"""One process or many: what `torchrun` says, and the sums that all ranks share.

Started plainly, everything here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeploy.models.errors import ModelInputError, first_line


def rank() -> int:
    """Number of this process, from 0."""
    return _place()[0]


def world_size() -> int:
    """How many processes work together."""
    return _place()[1]


def _place() -> tuple[int, int]:
    """Rank and number of processes, if the environment says both and where to meet.

    A lone variable is left over from something else, and does not make this a part of a group.

    Raises:
        ModelInputError: if they are not what `torchrun` sets.
    """
    said = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if None in said:
        return 0, 1
    try:
        rank, processes = int(said[0] or ""), int(said[1] or "")
    except ValueError:
        rank, processes = -1, 0
    if not 0 <= rank < processes:
        raise ModelInputError(
            f"RANK={said[0]!r} and WORLD_SIZE={said[1]!r} in the environment are not what torchrun "
            "sets; start the processes with torchrun, or unset them"
        )
    return rank, processes


def device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes (NCCL between GPUs, Gloo on CPUs), and leave them at the end."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ModelInputError(
            "training: another of its processes has ended; what that one said is the reason "
            f"({first_line(error)})"
        ) from error
    finally:
        dist.destroy_process_group()


def with_shared_norms(network: nn.Module) -> nn.Module:
    """Let BatchNorm see the whole batch, not one process's share of it.

    SyncBatchNorm runs on GPUs alone, so on CPUs each process normalises by its own images.
    """
    if world_size() == 1 or not torch.cuda.is_available():
        return network
    shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return shared


def parallel(network: nn.Module) -> nn.Module:
    """Average gradients over all processes."""
    if world_size() == 1:
        return network
    # An auxiliary head that the loss does not use has no gradients to wait for.
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's BatchNorm statistics, so that they hold one network."""
    if world_size() == 1:
        return
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)


def averaged(value: Tensor) -> Tensor:
    """Mean of a number over all processes; no gradient flows through it."""
    if world_size() == 1 or not dist.is_initialized():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def summed(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum an array of counts over all processes."""
    if world_size() == 1:
        return counts
    total = torch.from_numpy(counts.copy()).to(device())
    dist.all_reduce(total)
    result: NDArray[np.int64] = total.cpu().numpy()
    return result

"""Distributed training: rank and world size from `torchrun`, and reductions over all ranks.

Without `torchrun` there is one process, and every operation here is the identity.
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
    """Return the rank of this process, from 0."""
    return _place()[0]


def world_size() -> int:
    """Return the number of processes in the group."""
    return _place()[1]


def _place() -> tuple[int, int]:
    """Return rank and world size from the environment, or (0, 1) for a single process.

    The environment counts only if it also holds the master address and port. A lone variable is a
    leftover and does not make this process part of a group.

    Raises:
        ModelInputError: if the variables are not what `torchrun` sets.
    """
    text = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if None in text:
        return 0, 1
    try:
        rank, processes = int(text[0] or ""), int(text[1] or "")
    except ValueError:
        rank, processes = -1, 0
    if not 0 <= rank < processes:
        raise ModelInputError(
            f"RANK={text[0]!r} and WORLD_SIZE={text[1]!r} in the environment are not what torchrun "
            "sets; start the processes with torchrun, or unset them"
        )
    return rank, processes


def device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group (NCCL between GPUs, Gloo on CPUs), and leave the group at the end."""
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
            "training: another process of the group has ended; see the error of that process "
            f"({first_line(error)})"
        ) from error
    finally:
        dist.destroy_process_group()


def with_shared_norms(network: nn.Module) -> nn.Module:
    """Convert BatchNorm to SyncBatchNorm, which normalizes over the batch of all processes.

    SyncBatchNorm runs only on GPUs. On CPUs each process normalizes over its own images.
    """
    if world_size() == 1 or not torch.cuda.is_available():
        return network
    shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return shared


def parallel(network: nn.Module) -> nn.Module:
    """Wrap a network so that gradients are averaged over all processes."""
    if world_size() == 1:
        return network
    # An auxiliary head that the loss does not use gets no gradients, and must not be waited for.
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def share_buffers(network: nn.Module) -> None:
    """Copy the buffers of rank 0, such as BatchNorm statistics, to all processes."""
    if world_size() == 1:
        return
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)


def averaged(value: Tensor) -> Tensor:
    """Return the mean of a scalar over all processes, without gradients."""
    if world_size() == 1 or not dist.is_initialized():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def summed(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of an array of counts over all processes."""
    if world_size() == 1:
        return counts
    total = torch.from_numpy(counts.copy()).to(device())
    dist.all_reduce(total)
    result: NDArray[np.int64] = total.cpu().numpy()
    return result

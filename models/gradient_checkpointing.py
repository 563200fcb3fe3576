"""Gradient checkpointing for any network: activations inside its blocks are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(
    module: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None
) -> Any:
    """Call `module` without storing its activations; the backward pass runs the module again.

    `forward` is the callable to run, by default the module itself.

    Outputs and gradients equal those of a plain call. BatchNorm's running statistics are updated
    once, although the forward pass runs twice.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_held(module)

    # The reentrant form needs an input that requires gradients; an image does not.
    return checkpoint(forward or module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _running_statistics_held(module: nn.Module) -> Iterator[None]:
    # The second pass updates copies of the statistics. With tracking switched off it would save
    # other tensors than the first pass, which checkpointing refuses.
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    held = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, held, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, held, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def checkpoint_blocks(network: nn.Module) -> int:
    """Checkpoint the blocks of any network in place, and return the number of blocks.

    A block is the largest submodule with at most about the square root of the network's number of
    convolutions. This size balances the activations stored between blocks against the activations
    inside one block during its recomputation (Chen et al. 2016, arXiv 1604.06174, section 4.1). In
    evaluation mode, and where no gradient is needed, a block runs unchanged.
    """
    largest = max(2, math.isqrt(_convolutions(network)))
    count = 0
    for block, parts in list(_blocks(network, largest)):
        # A wrapper module would change the names in the state dict.
        block.forward = partial(_forward, block, block.forward, parts)
        count += len(parts)
    return count


def _blocks(module: nn.Module, largest: int) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Yield the modules to checkpoint, each with its parts in order (often the module itself)."""
    for child in module.children():
        count = _convolutions(child)
        if 2 <= count <= largest:
            yield child, [child]
        elif count > largest:
            flat = all(isinstance(m, nn.Conv2d) or not _convolutions(m) for m in child.children())
            if isinstance(child, nn.Sequential) and flat:
                yield child, _pieces(child, largest)
            else:
                yield from _blocks(child, largest)


def _pieces(chain: nn.Sequential, largest: int) -> list[nn.Module]:
    """Split a flat chain of layers, such as VGG's, after every `largest` convolutions."""
    pieces: list[list[nn.Module]] = [[]]
    for layer in chain:
        if _convolutions(nn.Sequential(*pieces[-1])) == largest and isinstance(layer, nn.Conv2d):
            pieces.append([])
        pieces[-1].append(layer)
    return [nn.Sequential(*piece) for piece in pieces]


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def _forward(
    block: nn.Module, plain: Callable[..., Any], parts: list[nn.Module], *inputs: Any, **named: Any
) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return plain(*inputs, **named)
    if parts == [block]:
        return run_checkpointed(block, *inputs, forward=partial(plain, **named))
    (value,) = inputs
    for part in parts:
        value = run_checkpointed(part, value)
    return value

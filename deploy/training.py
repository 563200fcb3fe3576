"""`segdeploy train`: network, data set and contract come together; a checkpoint comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.files import check_output, write_atomically
from segdeploy.network import CHECKPOINT_SUFFIX, ModelSpec, load_network
from segdeploy.packages import require, versions
from segdeploy.spec import METADATA_KEY, Contract

if TYPE_CHECKING:
    from segdeploy.models.training import Step

DEFAULT_SIZE = (360, 480)


@dataclass(frozen=True)
class TrainingReport:
    """What training did: `loading_share` is the part of the time spent waiting for data, 0..1."""

    path: Path
    epochs: int
    images: int
    seconds: float
    loading_share: float
    loss: float


def train(
    model: str | Path | ModelSpec,
    data: Path | str,
    out: Path | str,
    *,
    split: str = "train",
    epochs: int = 3,
    batch_size: int = 8,
    learning_rate: float = 4e-3,
    seed: int = 0,
    workers: int = 1,
    on_step: Callable[[Step], None] = lambda step: None,
) -> TrainingReport:
    """Train a network on a data set; `out` holds the latest whole epoch, from the first on.

    `on_step` is called after each optimiser step, for progress.

    Raises:
        InputError, ModelInputError: for a model, data set or output that cannot be used.
    """
    out = check_output(Path(out), CHECKPOINT_SUFFIX)
    require("torch", "torchvision", "safetensors")
    import torch

    from segdeploy.models.checkpoint import to_bytes
    from segdeploy.models.dataset import open_dataset
    from segdeploy.models.training import TrainingSettings
    from segdeploy.models.training import train as run_steps

    dataset = open_dataset(Path(data))
    frames = dataset.frames(split)
    spec = model if isinstance(model, ModelSpec) else ModelSpec(str(model))
    torch.manual_seed(seed)  # the network's random initial weights
    loaded = load_network(spec, dataset, DEFAULT_SIZE)
    contract = replace(
        loaded.contract,
        provenance={
            **versions("torch", "torchvision"),
            **({"parent_sha256": loaded.sha256} if loaded.sha256 else {}),
        },
    )
    settings = TrainingSettings(
        contract.size, contract.mean, contract.std, epochs, batch_size, learning_rate, seed, workers
    )
    seconds = loading = loss = 0.0
    images = 0
    for step in run_steps(loaded.network, frames, dataset.ignore_index, settings):
        seconds, loading, loss = seconds + step.seconds, loading + step.loading, step.loss
        images += step.images
        if step.ends_epoch:
            write_atomically(out, to_bytes(loaded.network.module, _header(contract)))
        on_step(step)
    return TrainingReport(out, epochs, images, seconds, loading / seconds, loss)


def _header(contract: Contract) -> dict[str, str]:
    return {METADATA_KEY: contract.to_json()}

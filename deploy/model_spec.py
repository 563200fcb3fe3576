"""The MODEL argument: a checkpoint, a registry name or `package.module:factory`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import (
    METADATA_KEY,
    MOST_CLASSES,
    Contract,
    check_pixels,
    placeholder_classes,
    read_contract,
)
from segdeploy.errors import InputError
from segdeploy.factory import builder
from segdeploy.files import check_input, sha256_of_file
from segdeploy.packages import require

if TYPE_CHECKING:
    from torch import Tensor

    from segdeploy.models.dataset import DataSet
    from segdeploy.models.network import Network

CHECKPOINT_SUFFIX = ".safetensors"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """What the user said about a network: MODEL and the options that go with a name."""

    model: str
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    size: tuple[int, int] | None = None
    take: str | None = None

    @classmethod
    def of(cls, model: str | Path | ModelSpec) -> ModelSpec:
        """A spec as it is, or the spec of a bare MODEL."""
        return model if isinstance(model, ModelSpec) else cls(str(model))

    def refuse_options(self) -> None:
        """Refuse what only completes a named network, for a file that says it itself.

        Raises:
            InputError: if there are weights, classes or arguments besides the file.
        """
        if self.weights or self.num_classes or self.arguments or self.take:
            raise InputError(
                f"{self.model}: knows its classes and weights; --weights, --num-classes, --width, "
                "--stride, --arg and --take go with a network's name"
            )

    @property
    def is_factory(self) -> bool:
        """Whether MODEL is `package.module:factory`."""
        return ":" in self.model and not Path(self.model).exists()

    @property
    def is_file(self) -> bool:
        """Whether MODEL is a checkpoint's path rather than a name.

        A bare name is never one, whatever lies in the current folder.
        """
        return not self.is_factory and (bool(Path(self.model).suffix) or os.sep in self.model)


@dataclass(frozen=True)
class LoadedNetwork:
    """A PyTorch network in eval mode, its contract, and the hash of the file it came from."""

    network: Network
    contract: Contract
    sha256: str | None


def load_network(
    spec: ModelSpec,
    dataset: DataSet | None = None,
    default_size: tuple[int, int] | None = None,
) -> LoadedNetwork:
    """Make the network that `spec` names, with its weights, and the contract that goes with it.

    Classes come from the checkpoint, else from `dataset`, else from `spec.num_classes` with
    placeholder names, else from the output of a network of the user's own. The size comes from
    `spec.size`, else the checkpoint, else `default_size`. What is found out about the network is
    logged.

    Raises:
        InputError, ModelInputError: for a MODEL that cannot be found, built or filled with weights.
    """
    require("torch", "torchvision", "safetensors")
    if spec.is_file:
        spec = _checkpoint_spec(spec)
    build = builder(spec.model)
    spec, published = _published(spec, default_size)
    state, stored = _weights(spec)
    start = _contract(spec, stored or published, dataset, default_size)
    classes = len(start.classes) or None
    module = build(classes, start.arguments)

    from segdeploy.models.checkpoint import check_finite, load_weights
    from segdeploy.models.network import Network

    if state is None:
        check_finite(module, spec.model)
    else:
        for note in load_weights(module, state, str(spec.weights), spec.model):
            _LOG.info(note)
    network = Network(module, classes, start.size, spec.model, spec.take)
    network.eval()
    contract = _completed(start, network, spec)
    return LoadedNetwork(network, contract, sha256_of_file(spec.weights) if spec.weights else None)


def _completed(contract: Contract, network: Network, spec: ModelSpec) -> Contract:
    """The contract with what the network's own output says: classes, and which output was taken."""
    count = network.num_classes
    if count < 2:
        raise InputError(
            f"{spec.model}: gives one channel, and the best of one class is always that one; "
            "give the background a channel of its own"
        )
    if count > MOST_CLASSES:
        raise InputError(
            f"{spec.model}: gives {count} channels; a label is a byte: up to {MOST_CLASSES}"
        )
    if network.others:
        _LOG.info(
            f"{spec.model}: took the output {network.taken} of {len(network.others) + 1} "
            f"(others: {', '.join(network.others)}); --take KEY takes another"
        )
        contract = replace(
            contract, provenance={**contract.provenance, "output_taken": str(network.taken)}
        )
    if contract.classes:
        return contract
    _LOG.info(f"{spec.model}: has {count} classes, read from its output; --data names them")
    names, palette = placeholder_classes(count)
    return replace(contract, classes=names, palette=palette)


def _checkpoint_spec(spec: ModelSpec) -> ModelSpec:
    path = Path(spec.model)
    check_input(path)
    from segdeploy.models.checkpoint import refuse_torchscript

    refuse_torchscript(path)
    if path.suffix != CHECKPOINT_SUFFIX:
        raise InputError(
            f"{path}: a checkpoint ends in {CHECKPOINT_SUFFIX}; "
            f"for plain weights name their network: NAME --weights {path}"
        )
    spec.refuse_options()
    contract = _stored_contract(path)
    if contract is None:
        raise InputError(
            f"{path}: holds weights but no segdeploy contract; "
            f"name their network: NAME --num-classes N --weights {path}"
        )
    if ":" in contract.architecture:
        raise InputError(
            f"{path}: was trained from {contract.architecture}, and a file may not decide which "
            f"code runs; name it yourself: {contract.architecture} --weights {path}"
        )
    return replace(spec, model=contract.architecture, weights=path)


def _stored_contract(path: Path) -> Contract | None:
    from segdeploy.models.checkpoint import read_metadata

    text = read_metadata(path).get(METADATA_KEY)
    return None if text is None else read_contract(text, str(path))


def _published(
    spec: ModelSpec, default_size: tuple[int, int] | None
) -> tuple[ModelSpec, Contract | None]:
    """Turn the name of published weights into their file, and the contract that they imply."""
    weights = spec.weights
    if weights is None or weights.suffix or len(weights.parts) > 1 or weights.exists():
        return spec, None
    from segdeploy.models.pretrained import fetch

    path, classes = fetch(spec.model, str(weights))
    size = spec.size or default_size
    if size is None:
        raise InputError(f"{spec.model}: published weights need --size HxW")
    contract = Contract(
        architecture=spec.model,
        classes=classes,
        palette=placeholder_classes(len(classes))[1],
        ignore_index=255,
        size=size,
        arguments=dict(spec.arguments),
        provenance={"weights": str(weights)},
    )
    return replace(spec, weights=path), contract


def _weights(spec: ModelSpec) -> tuple[Mapping[str, Tensor] | None, Contract | None]:
    if spec.weights is None:
        return None, None
    check_input(spec.weights)
    from segdeploy.models.checkpoint import read_weights

    state = read_weights(spec.weights)
    stored = _stored_contract(spec.weights)
    if stored is not None and stored.architecture != spec.model:
        raise InputError(
            f"{spec.weights}: is a checkpoint of {stored.architecture}, not of {spec.model}; "
            f"give {spec.weights} as MODEL, or other --weights"
        )
    return state, stored


def _contract(
    spec: ModelSpec,
    stored: Contract | None,
    dataset: DataSet | None,
    default_size: tuple[int, int] | None,
) -> Contract:
    if stored is not None:
        if spec.num_classes and spec.num_classes != len(stored.classes):
            raise InputError(
                f"{spec.weights}: has {len(stored.classes)} classes, not {spec.num_classes}; "
                "leave --num-classes out"
            )
        if dataset is not None and dataset.classes != stored.classes:
            raise InputError(_other_classes(str(spec.weights), stored.classes, dataset))
        check_pixels(spec.size or stored.size, f"{spec.weights}: its input")
        return replace(
            stored,
            size=spec.size or stored.size,
            arguments={**stored.arguments, **spec.arguments},
        )
    size = spec.size or default_size
    if size is None:
        raise InputError(f"{spec.model}: a network without a checkpoint needs --size HxW")
    check_pixels(size, f"{spec.model}: its input")
    if dataset is not None:
        if spec.num_classes and spec.num_classes != len(dataset.classes):
            raise InputError(
                f"{dataset.root}: has {len(dataset.classes)} classes, --num-classes says "
                f"{spec.num_classes}; leave it out"
            )
        classes, palette, ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
    elif spec.num_classes:
        classes, palette = placeholder_classes(spec.num_classes)
        ignore_index = 255
    elif spec.is_factory:  # its output will tell
        classes, palette, ignore_index = (), (), 255
    else:
        raise InputError(f"{spec.model}: a network without a checkpoint needs --num-classes N")
    return Contract(
        architecture=spec.model,
        classes=classes,
        palette=palette,
        ignore_index=ignore_index,
        size=size,
        arguments=dict(spec.arguments),
    )


def _other_classes(source: str, classes: tuple[str, ...], dataset: DataSet) -> str:
    if classes == placeholder_classes(len(dataset.classes))[0]:
        return (
            f"{source}: does not know its classes' names; export it again with "
            f"--data {dataset.root}, which names them"
        )
    return (
        f"{source}: was trained for the classes {', '.join(classes)}; {dataset.root} has "
        f"{', '.join(dataset.classes)}; use the data set that it was trained for"
    )


def check_classes(contract: Contract, dataset: DataSet, source: str) -> None:
    """Refuse to judge a network on a data set with other classes.

    Raises:
        InputError: with both lists of classes.
    """
    if contract.classes != dataset.classes:
        raise InputError(_other_classes(source, contract.classes, dataset))

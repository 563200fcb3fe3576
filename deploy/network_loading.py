"""The network behind a `ModelSpec`: built, with its weights and its contract."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import (
    GRAY,
    METADATA_KEY,
    MOST_CLASSES,
    PREPROCESSING,
    Classes,
    Contract,
    check_pixels,
    is_color,
    numbered_classes,
    placeholder_classes,
    usual_channels,
)
from segdeploy.contract_json import read_contract
from segdeploy.contract_statement import (
    agreed_classes,
    head_of,
    images_of,
    replaced,
    restated,
    stated_classes,
    with_stated,
)
from segdeploy.errors import InputError
from segdeploy.factory import Builder, builder
from segdeploy.files import check_input, sha256_of_file
from segdeploy.frameworks.foreign_network import FRAMEWORKS, ForeignNetwork
from segdeploy.frameworks.read import is_source, read_network
from segdeploy.image_folder import is_image_folder, open_image_folder
from segdeploy.model_spec import CHECKPOINT_SUFFIX, ModelSpec
from segdeploy.models.bit_planes import BIT_PLANES, MOST_PLANES
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import open_dataset
from segdeploy.models.names import BACKGROUND
from segdeploy.packages import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from segdeploy.models.dataset import DataSet
    from segdeploy.models.network import Network

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedNetwork:
    """A PyTorch network in eval mode, its contract, and the SHA-256 of its weights file, if any."""

    network: Network
    contract: Contract
    sha256: str | None


def load_network(
    spec: ModelSpec,
    dataset: DataSet | None = None,
    default_size: tuple[int, int] | None = None,
    *,
    is_trained_here: bool = False,
) -> LoadedNetwork:
    """Build the network that `spec` names, load its weights, and return it with its contract.

    Classes come from the checkpoint, else from `dataset`, else from `spec.num_classes` with
    placeholder names, else from the output of a user's network. The size comes from `spec.size`,
    else from the checkpoint, else from `default_size`. Detected properties of the network are
    logged, and what nobody stated about its preprocessing, unless it `is_trained_here`.

    Raises:
        InputError, ModelInputError: if MODEL cannot be found or built, or its weights cannot be
            loaded.
    """
    require("torch", "safetensors")
    foreign, by_user = None, spec.stated
    if spec.foreign_source is not None:
        foreign = read_network(spec.foreign_source, has_factory=spec.is_factory)
        spec = _completed_by(foreign, spec, dataset, is_trained_here=is_trained_here)
    if spec.is_file:
        spec = _checkpoint_spec(spec)
    spec, published = _published(spec, default_size)
    whole = foreign if foreign is not None and foreign.build is not None else None
    if whole is None:
        build = builder(spec.model)
    else:
        build = _foreign_builder(whole, spec, is_trained_here=is_trained_here)
    architecture = spec.model if whole is None else whole.architecture
    held = foreign.state if foreign is not None and spec.weights == foreign.weights else None
    state, stored = (held, None) if held is not None else _weights(spec, architecture)
    if stored is not None:  # the contract of a checkpoint that was trained from these files
        spec = replace(spec, stated=by_user)
    start = _contract(spec, stored or published, dataset, default_size)
    start = replace(start, architecture=architecture)
    classes = start.score_channels or None
    module = build(classes, start.arguments, len(start.channels))

    from segdeploy.models.checkpoint import check_finite, load_weights
    from segdeploy.models.network import Network

    if state is None:
        check_finite(module, spec.model)
    else:
        for note in load_weights(module, state, str(spec.weights), architecture):
            _LOG.info(note)
    start = _with_channels(start, module, spec)
    channels = len(start.channels)
    network = Network(
        module,
        classes,
        start.size,
        spec.model,
        spec.take,
        channels,
        align_corners=foreign is not None and foreign.align_corners,
    )
    network.eval()
    contract = _completed(start, network, spec)
    if spec.has_own_network:
        contract = _with_activation(contract, network, spec)
    if contract.doubt and not is_trained_here:
        _LOG.info(f"{spec.model}: {contract.doubt}")
    if contract.assumed and not is_trained_here:
        _LOG.info(contract.assumption_note(spec.model))
    file = spec.weights or (foreign.built_from if foreign is not None else None)
    return LoadedNetwork(network, contract, sha256_of_file(file) if file else None)


def _foreign_builder(foreign: ForeignNetwork, spec: ModelSpec, *, is_trained_here: bool) -> Builder:
    """Return the function that builds a framework's network, as `factory.builder`.

    Training, and weights that training wrote, may have other classes than the framework's files.
    """

    def build(classes: int | None, arguments: Mapping[str, Any], channels: int) -> nn.Module:
        assert foreign.build is not None
        if classes in (None, foreign.num_classes):
            return foreign.build(None)
        if not is_trained_here and spec.weights is None:
            raise InputError(
                f"{spec.model}: has {foreign.num_classes} classes, not {classes}; give the data "
                "set that it was trained for, or train it for others: segdeploy train --from "
                f"{spec.foreign_source}"
            )
        if is_trained_here:
            _LOG.info(
                f"{spec.model}: its classifier is new, of {classes} classes instead of "
                f"{foreign.num_classes}"
            )
        return foreign.build(classes)

    return build


def _completed_by(
    foreign: ForeignNetwork, spec: ModelSpec, dataset: DataSet | None, *, is_trained_here: bool
) -> ModelSpec:
    """Return the spec completed by what the files of a framework tell; log their notes.

    Raises:
        InputError: for a MODEL where the files name the network, or classes of another data set.
    """
    source = spec.foreign_source or ""
    if source.startswith("mmdeploy:"):
        graph = foreign.graph or "the .onnx file"
        raise InputError(
            f"{source}: describes a graph that was exported; give it to `segdeploy adopt {graph} "
            f"--from {source} -o FILE`"
        )
    for note in foreign.notes:
        _LOG.info(note)
    names_network = spec.model == source
    if foreign.architecture and not names_network:
        raise InputError(f"{spec.model}: {source} tells the network; leave MODEL out")
    if not foreign.architecture and not spec.is_factory:
        raise InputError(
            f"{source}: its network is code of mmsegmentation, which is not installed; give your "
            f"own factory, too: package.module:factory --from {source}"
        )
    stated = dict(foreign.stated)
    classes = stated.get("classes")
    if dataset is not None and classes is not None and "classes" not in spec.stated:
        may_differ = is_trained_here or spec.foreground is not None or spec.weights is not None
        if dataset.classes != classes and not may_differ:
            raise InputError(
                f"{source}: has the classes {', '.join(classes)}; {dataset.root} has "
                f"{', '.join(dataset.classes)}; use the data set that it was trained for, or name "
                "its classes in a file for --contract"
            )
        if is_trained_here and dataset.classes != classes and len(dataset.classes) == len(classes):
            _LOG.info(
                f"{source}: its classifier keeps the weights of {', '.join(classes)} for "
                f"{', '.join(dataset.classes)}, in this order"
            )
        for name in ("classes", "palette", "ignore_index"):
            del stated[name]
    return replace(
        spec,
        model=source if foreign.build else foreign.architecture or spec.model,
        num_classes=spec.num_classes or (None if dataset else foreign.num_classes),
        arguments={**foreign.arguments, **spec.arguments},
        weights=spec.weights or foreign.weights,
        stated=replaced(stated, spec.stated),
    )


def _with_channels(contract: Contract, module: nn.Module, spec: ModelSpec) -> Contract:
    """Return the contract of a user's network that takes one channel, if nobody stated channels.

    Raises:
        InputError: for a network of other channels, which have no usual names.
    """
    if not spec.has_own_network:
        return contract
    from segdeploy.models.network import input_channels, runs

    count = input_channels(module)
    if count in (None, len(contract.channels)) or runs(module, contract.shape_at(contract.size)):
        return contract
    if "channels" not in contract.assumed:
        raise InputError(
            f"{spec.model}: its first convolution takes {count} channels, and --channels names "
            f"{len(contract.channels)} ({','.join(contract.channels)})"
        )
    channels = usual_channels(count or 0, f"{spec.model}: its first convolution")
    return replace(with_stated(contract, {"channels": channels}), assumed=contract.assumed)


def _with_activation(contract: Contract, network: Network, spec: ModelSpec) -> Contract:
    """Return the contract of a user's network that may end in a softmax or a sigmoid already.

    Raises:
        InputError: for a softmax, whose classes exclude each other, at a multilabel head.
    """
    found = network.activation(contract.size)
    if contract.has_bit_planes and found == "softmax":
        raise InputError(
            f"{spec.model}: ends in a softmax, so that a pixel is of one class; leave --head "
            "multilabel out"
        )
    if contract.head == "multiclass" and found == "sigmoid":
        _LOG.info(
            f"{spec.model}: its output stays within 0 and 1 and does not sum to 1, as that of a "
            "sigmoid for each channel; state --head multilabel if a pixel can be of several classes"
            f" (of at most {MOST_PLANES})"
        )
        return contract
    if found is None:
        return contract
    _LOG.info(f"{spec.model}: ends in a {found}, so its output is taken as probabilities")
    return replace(contract, output="probabilities")


def _completed(contract: Contract, network: Network, spec: ModelSpec) -> Contract:
    """Return the contract completed from the network's output: classes, and the output taken."""
    count = network.num_classes
    if count > MOST_CLASSES:
        raise InputError(
            f"{spec.model}: the network has {count} output channels; labels are uint8, so the "
            f"maximum is {MOST_CLASSES}"
        )
    if network.others:
        _LOG.info(
            f"{spec.model}: took the output {network.taken} of {len(network.others) + 1} "
            f"(others: {', '.join(network.others)}); select another output with --take KEY"
        )
        contract = replace(
            contract, provenance={**contract.provenance, "output_taken": str(network.taken)}
        )
    if contract.classes:
        return contract
    if count == 1 and spec.stated.get("head") == "multiclass":
        raise InputError(
            f"{spec.model}: has one output channel, and --head multiclass takes one for each "
            "class; leave --head out for a binary network"
        )
    if count == 1 and not contract.has_bit_planes:
        _LOG.info(
            f"{spec.model}: has one output channel, so it is a binary network: a pixel is of the "
            "foreground where the sigmoid is above 0.5; name its class with --data and --foreground"
        )
        contract = with_stated(contract, {"head": "binary"})
    else:
        _LOG.info(f"{spec.model}: has {count} classes, read from its output; name them with --data")
    names, palette = placeholder_classes(count)
    if contract.head == "binary":
        names, palette, _ = numbered_classes(1)
    return with_stated(replace(contract, classes=names, palette=palette), {})


def _checkpoint_spec(spec: ModelSpec) -> ModelSpec:
    path = Path(spec.model)
    check_input(path)
    from segdeploy.models.checkpoint import refuse_torchscript

    refuse_torchscript(path)
    if path.suffix != CHECKPOINT_SUFFIX:
        raise InputError(
            f"{path}: a checkpoint ends in {CHECKPOINT_SUFFIX}; "
            f"for plain weights, name the network: NAME --weights {path}"
        )
    spec.refuse_options(may_restate=True)
    contract = _stored_contract(path)
    if contract is None:
        raise InputError(
            f"{path}: holds weights but no segdeploy contract; "
            f"name their network: NAME --num-classes N --weights {path}"
        )
    if ":" in contract.architecture:
        named = contract.architecture
        if is_source(named):
            named = f"--from {FRAMEWORKS[named.partition(':')[0]]}"
        raise InputError(
            f"{path}: was trained from {contract.architecture}, and a file may not decide which "
            f"code runs; name it yourself: {named} --weights {path}"
        )
    return replace(spec, model=contract.architecture, weights=path)


def _stored_contract(path: Path) -> Contract | None:
    from segdeploy.models.checkpoint import read_metadata

    text = read_metadata(path).get(METADATA_KEY)
    return None if text is None else read_contract(text, str(path))


def _published(
    spec: ModelSpec, default_size: tuple[int, int] | None
) -> tuple[ModelSpec, Contract | None]:
    """Replace the name of published weights by the downloaded file, and make its contract."""
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
        assumed=("fit",),  # torchvision's transforms keep the aspect ratio
    )
    return replace(spec, weights=path), contract


def _weights(
    spec: ModelSpec, architecture: str
) -> tuple[Mapping[str, Tensor] | None, Contract | None]:
    if spec.weights is None:
        return None, None
    check_input(spec.weights)
    from segdeploy.models.checkpoint import read_weights

    state = read_weights(spec.weights)
    stored = _stored_contract(spec.weights)
    if stored is not None and stored.architecture != architecture:
        raise InputError(
            f"{spec.weights}: is a checkpoint of {stored.architecture}, not of {architecture}; "
            f"give {spec.weights} as MODEL, or other --weights"
        )
    return state, stored


def _contract(
    spec: ModelSpec,
    stored: Contract | None,
    dataset: DataSet | None,
    default_size: tuple[int, int] | None,
) -> Contract:
    if spec.foreground is not None:
        if dataset is None:
            raise InputError("--foreground: names a class of a data set; give --data, too")
        dataset = dataset.against_rest(spec.foreground)
    size = spec.size or spec.stated.get("size")
    stated = {name: value for name, value in spec.stated.items() if name != "size"}
    if stored is not None:
        _check_stored(spec, stored, dataset)
        check_pixels(size or stored.size, f"{spec.weights}: its input")
        arguments = {**stored.arguments, **spec.arguments}
        return restated(replace(stored, size=size or stored.size, arguments=arguments), stated)
    size = size or default_size
    if size is None:
        raise InputError(f"{spec.model}: a network without a checkpoint needs --size HxW")
    check_pixels(size, f"{spec.model}: its input")
    classes, palette, ignore_index = _classes(spec, dataset)
    has_own_weights = spec.weights is not None or spec.has_own_network
    start = Contract(
        architecture=spec.model,
        classes=classes,
        palette=palette,
        ignore_index=ignore_index,
        size=size,
        arguments=dict(spec.arguments),
        assumed=PREPROCESSING if has_own_weights else (),
    )
    implied = head_of(dataset, spec.foreground, spec.num_classes) | images_of(dataset)
    return with_stated(start, {**implied, **stated})


def _check_stored(spec: ModelSpec, stored: Contract, dataset: DataSet | None) -> None:
    """Refuse classes that are not those of a checkpoint."""
    if spec.num_classes not in (None, len(stored.classes), stored.score_channels):
        raise InputError(
            f"{spec.weights}: has {len(stored.classes)} classes, not {spec.num_classes}; "
            "leave --num-classes out"
        )
    if dataset is not None:
        matched(stored, dataset, str(spec.weights))
    named = stated_classes(spec.stated)
    if named is not None and named[0] != stored.classes:
        raise InputError(
            f"{spec.weights}: has the classes {', '.join(stored.classes)}, and the contract "
            f"file has {', '.join(named[0])}; leave its classes out"
        )


def _classes(spec: ModelSpec, dataset: DataSet | None) -> Classes:
    """Return the classes of a network without a checkpoint; none if its output tells them."""
    found = agreed_classes(spec.stated, dataset, spec.num_classes)
    if found is None and not spec.has_own_network:
        raise InputError(f"{spec.model}: a network without a checkpoint needs --num-classes N")
    return found or ((), (), 255)


def _other_classes(source: str, contract: Contract, dataset: DataSet) -> str:
    classes = contract.classes
    if classes == placeholder_classes(len(dataset.classes))[0]:
        again = "adopt the file" if contract.is_adopted else "export it"
        return (
            f"{source}: has placeholder names for its classes; {again} again with "
            f"--data {dataset.root}, which names them"
        )
    return (
        f"{source}: was trained for the classes {', '.join(classes)}; {dataset.root} has "
        f"{', '.join(dataset.classes)}; use the data set that it was trained for"
    )


def open_frames(data: Path, contract: Contract, source: str) -> DataSet:
    """Open a data set that matches a network, or a folder of images without masks.

    Raises:
        InputError, ModelInputError: as `matched`, or for a data set that cannot be opened.
    """
    if is_image_folder(data):
        return open_image_folder(data, contract)
    return matched(contract, open_dataset(data), source)


def matched(contract: Contract, dataset: DataSet, source: str) -> DataSet:
    """Return the data set with its channels in the order of the network's images.

    Raises:
        InputError, ModelInputError: if the classes, the channels or the dtype differ.
    """
    if contract.head == "binary" and contract.classes != dataset.classes:
        background, foreground = contract.classes
        if background == BACKGROUND and foreground in dataset.classes:
            dataset = dataset.against_rest(foreground)
    if contract.classes != dataset.classes:
        raise InputError(_other_classes(source, contract, dataset))
    if contract.has_bit_planes != dataset.bit_planes:
        raise InputError(
            f"{dataset.root}: its masks are {BIT_PLANES if dataset.bit_planes else 'class ids'}, "
            f"and {source} has the head {contract.head}; give the data set that it was trained for"
        )
    if contract.dtype != dataset.dtype:
        raise InputError(
            f"{dataset.root}: its images are {dataset.dtype}, and {source} takes {contract.dtype}; "
            "give images of that dtype"
        )
    if contract.gray is not None and is_color(dataset.channels):
        return dataset.with_channels(RGB)
    if contract.channels == GRAY and is_color(dataset.channels):
        raise InputError(
            f"{dataset.root}: its images are RGB, and {source} takes gray; state a conversion with "
            "--gray pillow or --gray opencv"
        )
    return dataset.with_channels(contract.image_channels)

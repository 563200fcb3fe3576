"""`segdeploy contract`: infer a contract from a function, or compare a model's with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segdeploy.artifact import artifact_of
from segdeploy.contract import Contract
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.contract_inference.infer import Inferred, difference, infer, stated_of
from segdeploy.errors import InputError
from segdeploy.factory import find_callable
from segdeploy.files import check_output, write_atomically
from segdeploy.model_spec import ModelSpec
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import images_in, open_dataset
from segdeploy.models.images import read_pixels
from segdeploy.network_loading import load_network
from segdeploy.output_lock import one_writer
from segdeploy.proof.prediction_check import PredictionCheck, check_prediction
from segdeploy.runtime.predictor import load

FRAMES = 8


@dataclass(frozen=True)
class ContractCheck:
    """How the input that a model's contract gives differs from a function's, on real frames.

    `largest` is the largest difference in the input's units, `share` the share of values that
    differ. `fields` are the fields in which the contract of the function differs, each with the
    model's value and the function's, and `explained` says whether these fields give the function's
    input to the bit. `fields` is empty if there is no difference.
    """

    frames: int
    largest: float
    share: float
    fields: dict[str, tuple[Any, Any]]
    explained: bool

    @property
    def is_exact(self) -> bool:
        """Whether every value of every input is equal to the bit."""
        return self.share == 0


@one_writer
def infer_contract(
    function: str | Callable[[Any], Any], data: Path | str, out: Path, *, limit: int = FRAMES
) -> Inferred:
    """Infer the contract of a preprocessing function, and write it to `out` (.json).

    `function` is `package.module:function` or a callable: an image `(H, W, 3) uint8` RGB (or a
    Pillow image, or the path of an image) in, the network's input out. The contract is proven on
    the first `limit` images of `data`, a data set or a folder of images. `--contract` takes the
    file.

    Raises:
        InputError: as `contract_inference.infer.infer`, or for a function or data that cannot be
            used.
    """
    check_output(out, ".json")
    frames, channels, dtype = _frames(Path(data), limit)
    found = infer(
        Preprocessing(*_named(function), channels), frames, channels=channels, dtype=dtype
    )
    write_atomically(out, json.dumps(found.stated, indent=2).encode() + b"\n")
    return found


def check_contract(
    model: str | Path | ModelSpec,
    function: str | Callable[[Any], Any],
    data: Path | str,
    *,
    limit: int = FRAMES,
) -> ContractCheck:
    """Compare the input that a model's contract gives with that of a preprocessing function.

    Raises:
        InputError: for a model, a function or data that cannot be used.
    """
    contract = contract_of_model(ModelSpec.of(model))
    # A graph that normalizes or resizes has the same arithmetic inside.
    contract = replace(contract, layout="NCHW", source_size=None)
    frames, channels, dtype = _frames(Path(data), limit)
    if dtype != contract.dtype or len(channels) != len(contract.image_channels):
        raise InputError(
            f"{data}: its images are {dtype} {','.join(channels)}, and the network takes "
            f"{contract.dtype} {','.join(contract.image_channels)}"
        )
    box = Preprocessing(*_named(function), channels)
    box.check_repeatable(frames[0])
    largest, share = difference(contract, [(image, box(image)) for image in frames])
    if not share:
        return ContractCheck(len(frames), 0.0, 0.0, {}, explained=True)
    try:
        found = infer(box, frames, channels=channels, dtype=dtype)
    except InputError:  # the function does what no contract states
        return ContractCheck(len(frames), largest, share, {}, explained=False)
    ours, theirs = stated_of(contract), found.stated
    fields = {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    }
    return ContractCheck(len(frames), largest, share, fields, explained=found.is_exact)


def check_predictions(
    model: str | Path | ModelSpec,
    predict: str | Callable[[Any], Any],
    data: Path | str,
    *,
    limit: int = FRAMES,
) -> PredictionCheck:
    """Compare a model's labels with those of a whole pipeline, and find what explains a difference.

    `predict` is `package.module:function` or a callable: an image `(H, W, 3) uint8` RGB in, labels
    `(H, W)` of integers out, at the image's own size or that of the network's input. The first
    `limit` images of `data`, a data set or a folder of images, are compared.

    Raises:
        InputError: for a model, a function or data that cannot be used.
    """
    function, name = _named(predict)
    frames, _, _ = _frames(Path(data), limit)
    shape = frames[0].shape
    with load(ModelSpec.of(model), default_size=(shape[0], shape[1])) as predictor:
        return check_prediction(predictor, function, name, frames)


@one_writer
def start_contract(out: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Write the usual contract of an RGB network to `out` (.json), to be edited; return its fields.

    Raises:
        InputError: for an output that cannot be written.
    """
    check_output(out, ".json")
    stated = stated_of(Contract("", (), (), 255, size))
    write_atomically(out, json.dumps(stated, indent=2).encode() + b"\n")
    return stated


def contract_of_model(spec: ModelSpec) -> Contract:
    """Return the contract of a checkpoint, an .onnx file or an engine.

    Raises:
        InputError: for a file that has none.
    """
    file = artifact_of(spec)
    return load_network(spec).contract if file is None else file.contract


def _named(function: str | Callable[[Any], Any]) -> tuple[Callable[[Any], Any], str]:
    """Return a function that is given by its name or itself, and its name in errors."""
    if isinstance(function, str):
        return find_callable(function), function
    return function, getattr(function, "__name__", "the function")


def _frames(data: Path, limit: int) -> tuple[list[NDArray[Any]], tuple[str, ...], str]:
    """Return the first images of a data set or a folder of images, their channels and dtype."""
    if data.is_dir() and not (data / "dataset.json").exists():
        paths = images_in(data)[:limit]
        if not paths:
            raise InputError(f"{data}: has no images; give a data set, or a folder of images")
        return [read_pixels(path, RGB, "uint8") for path in paths], RGB, "uint8"
    dataset = open_dataset(data)
    split = "val" if "val" in dataset.splits else dataset.splits[0]
    frames = dataset.listed(split)[:limit]
    return [frame.read_image() for frame in frames], dataset.channels, dataset.dtype

"""What the user of a file from another tool states about the file."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.artifact import EngineFile, open_artifact
from segdeploy.contract import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZE_FOLLOWS_IMAGE,
    Contract,
    Precision,
    check_pixels,
    listed,
    usual_channels,
)
from segdeploy.contract_statement import (
    OF_CLASSES,
    agreed_classes,
    head_of,
    images_of,
    replaced,
    restated,
    with_stated,
)
from segdeploy.engine.manifest import manifest_path, parse_manifest
from segdeploy.errors import InputError
from segdeploy.frameworks.foreign_network import named_classes
from segdeploy.frameworks.read import read_network
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import open_dataset
from segdeploy.packages import versions
from segdeploy.profiles import Profile, shape_text

if TYPE_CHECKING:
    import onnx

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statement:
    """The user's statement about a file: the contract of another file (`like`), or its fields.

    Classes come from the data set `data`, else from `num_classes` with placeholder names. A network
    of one output channel is binary: `foreground` is its class in `data`, or `num_classes` is 1.
    `output` is the kind of output of the network, and `size` is the (H, W) of its input. `take` is
    the name of the output, where there are several. `upsampling` says how maps that are smaller
    than the input are enlarged, `half-pixel` or `align-corners`. `source` are the files of the
    framework that wrote the graph, such as `hf:DIR`, which state classes and preprocessing.
    `preprocessing` holds further fields, as in `with_stated`.
    """

    like: Path | None = None
    data: Path | None = None
    num_classes: int | None = None
    foreground: str | None = None
    size: tuple[int, int] | None = None
    layout: str | None = None
    output: str | None = None
    precision: Precision | None = None
    take: str | None = None
    upsampling: str | None = None
    source: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = ("size", "layout", "output", "precision")


def with_size(statement: Statement, profile: Profile) -> Statement:
    """Return the statement with the size of the profile's optimum.

    Raises:
        InputError: if another size is stated.
    """
    size = profile.optimum[1:]
    if statement.size not in (None, size):
        raise InputError(
            f"--opt {shape_text(profile.optimum)}: states another size than --size; leave --size "
            "out"
        )
    return replace(statement, size=size)


def with_source(statement: Statement, source: str, shape: tuple[int | str, ...]) -> Statement:
    """Return the statement completed by the files of the framework that wrote the graph.

    `shape` is that of the graph's input, () for an engine; a graph of one size keeps its size.

    Raises:
        InputError: for files that cannot be read, or that are given with `--like`.
    """
    if statement.like is not None:
        raise InputError("--like and --from: both state classes and preprocessing; give one")
    foreign = read_network(source)
    for note in foreign.notes:
        _LOG.info(note)
    stated = dict(foreign.stated)
    sides = shape[2:4] if len(shape) == 4 else ()
    if sides and all(isinstance(side, int) for side in sides):
        _check_size(stated, sides, statement, source)
        stated.pop("size", None)
    if statement.data is not None:
        if statement.foreground is None:
            _check_classes(stated.get("classes"), statement.data, source)
        stated = {name: value for name, value in stated.items() if name not in OF_CLASSES}
    count = statement.num_classes
    if count is None and statement.data is None and "classes" not in stated:
        count = foreign.num_classes
    enlarged = "align-corners" if foreign.align_corners else "half-pixel"
    return replace(
        statement,
        num_classes=count,
        upsampling=statement.upsampling or enlarged,
        preprocessing=replaced(stated, statement.preprocessing),
    )


def _check_size(
    stated: Mapping[str, Any], sides: tuple[int | str, ...], statement: Statement, source: str
) -> None:
    """Tell, or refuse, a graph of another size than its framework's preprocessing gives.

    Raises:
        InputError: where the size of a crop or of a padding would change what an image becomes.
    """
    size, fit = stated.get("size"), statement.preprocessing.get("fit", stated.get("fit"))
    if size is None or tuple(sides) == tuple(size) or fit in SIZE_FOLLOWS_IMAGE:
        return
    made, taken = ("x".join(map(str, one)) for one in (size, sides))
    if fit != "stretch" and "fit" not in statement.preprocessing:
        raise InputError(
            f"{source}: its preprocessing gives images of {made} (--fit {fit}), and the graph "
            f"takes {taken}; state --fit, --edge and --resize for this graph, or give the folder "
            "that it was exported from"
        )
    _LOG.info(f"{source}: resizes images to {made}, and the graph takes {taken}, which is stated")


def _check_classes(classes: tuple[str, ...] | None, data: Path, source: str) -> None:
    """Refuse a data set of other classes than a file names.

    Raises:
        InputError: with both lists of names.
    """
    dataset = open_dataset(data)
    if classes is not None and dataset.classes != classes:
        raise InputError(
            f"{source}: has the classes {', '.join(classes)}; {dataset.root} has "
            f"{', '.join(dataset.classes)}; use the data set that it was trained for, or leave "
            "--data out"
        )


def with_metadata(statement: Statement, graph: onnx.ModelProto) -> tuple[Statement, list[str]]:
    """Return the statement with the classes that the file's own metadata name, and a note.

    Ultralytics writes `names`, a mapping of ids to names as Python writes it.
    """
    if statement.like or statement.num_classes or "classes" in statement.preprocessing:
        return statement, []
    text = next((one.value for one in graph.metadata_props if one.key == "names"), "")
    try:
        names = ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return statement, []
    if not isinstance(names, dict) or set(names) != set(range(len(names))) or not names:
        return statement, []
    (classes, palette, ignored), notes = named_classes(
        [names[at] for at in range(len(names))], None, "its metadata"
    )
    if statement.data is not None:
        if statement.foreground is None:
            _check_classes(classes, statement.data, "its metadata")
        return statement, []
    stated = {"classes": classes, "palette": palette, "ignore_index": ignored}
    note = f"its metadata names {len(classes)} classes ({', '.join(classes[:3])}, ...)"
    return replace(statement, preprocessing={**stated, **statement.preprocessing}), [note, *notes]


def stated_contract(
    file: Path, statement: Statement, shape: tuple[int | str, ...], *, is_nhwc: bool
) -> Contract:
    """Return the stated contract; `shape` is that of the input, () for an engine."""
    stated = dict(statement.preprocessing)
    stated |= {name: value for name in _FIELDS if (value := getattr(statement, name)) is not None}
    provenance = {**versions("onnx"), "stated": "by segdeploy adopt"}
    if statement.like is not None:
        if statement.data or statement.num_classes or statement.foreground:
            raise InputError(
                "--like: includes the classes; leave --data, --num-classes and --foreground out"
            )
        # The provenance of the file `like` does not apply to this file.
        return replace(restated(_contract_of(statement.like), stated), provenance=provenance)
    dataset = None if statement.data is None else open_dataset(statement.data)
    if dataset is not None and statement.foreground is not None:
        dataset = dataset.against_rest(statement.foreground)
    elif statement.foreground is not None:
        raise InputError("--foreground: names a class of a data set; give --data, too")
    found = agreed_classes(stated, dataset, statement.num_classes)
    if found is None:
        raise InputError(
            f"{file}: its classes are unknown; give --like FILE, --data DIR or --num-classes N"
        )
    classes, palette, ignored = found
    implied = head_of(dataset, statement.foreground, statement.num_classes)
    stated = {**implied, **images_of(dataset), **stated}
    layout = statement.layout or "NCHW"
    if "size" not in stated:
        sides = shape[1:3] if is_nhwc else shape[2:4]
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise InputError(f"{file}: its input size is unknown; give --size HxW")
        stated["size"] = sides
    check_pixels(stated["size"], f"{file}: its input")
    taken = (shape[3:4] if is_nhwc else shape[1:2]) or (len(RGB),)
    if "channels" not in stated and isinstance(taken[0], int) and taken[0] != len(RGB):
        stated["channels"] = usual_channels(taken[0], f"{file}:")
    has_both = all({name, f"{name}_255"} & set(stated) for name in ("mean", "std"))
    if not has_both and stated.get("normalization") not in ("none", "per-image"):
        if layout == "NCHW":
            raise InputError(
                f"{file}: its normalization is unknown; give --mean and --std of values in 0..1 "
                f"(ImageNet's are {listed(IMAGENET_MEAN)} and {listed(IMAGENET_STD)}), or "
                "--normalization none if the network normalizes by itself"
            )
        stated["normalization"] = "none"
    adopted = Contract(
        architecture="adopted",
        assumed=("fit", "resize", "channels"),
        classes=classes,
        palette=palette,
        ignore_index=ignored,
        size=stated["size"],
        provenance=provenance,
    )
    return with_stated(adopted, {**stated, "layout": layout})


def _contract_of(path: Path) -> Contract:
    """Return the contract of a file to copy; of an engine, only the manifest is read."""
    file = open_artifact(path)
    if isinstance(file, EngineFile):
        return parse_manifest(manifest_path(path)).contract
    return file.contract

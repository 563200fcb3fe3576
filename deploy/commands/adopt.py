"""`segdeploy adopt`: add a contract, stated by the user, to a file from another tool."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from segdeploy.artifact import EngineFile, OnnxFile, open_artifact
from segdeploy.contract import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Contract,
    Precision,
    listed,
    usual_channels,
)
from segdeploy.contract_statement import agreed_classes, head_of, images_of, with_stated
from segdeploy.device import host_platform
from segdeploy.engine.bindings import BACKENDS, open_bindings
from segdeploy.engine.manifest import Manifest, manifest_path, parse_manifest
from segdeploy.engine.options import BuildOptions
from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.model_file import (
    is_quantized,
    keep_weights_in,
    save_onnx,
    set_contract,
    tensor_shape,
)
from segdeploy.output_lock import output_lock
from segdeploy.packages import versions
from segdeploy.profiles import Profile
from segdeploy.runtime.session import check_tensors
from segdeploy.tensor_spec import TensorSpec, onnx_name


@dataclass(frozen=True)
class Statement:
    """The user's statement about a file: the contract of another file (`like`), or its fields.

    Classes come from the data set `data`, else from `num_classes` with placeholder names. A network
    of one output channel is binary: `foreground` is its class in `data`, or `num_classes` is 1.
    `output` is the kind of output of the network, and `size` is the (H, W) of its input.
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
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = ("size", "layout", "output", "precision")


def adopt(
    file: Path | str,
    statement: Statement,
    *,
    out: Path | str | None = None,
    backend: str | None = None,
    version: str | None = None,
    targets: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    version_compatible: bool = False,
    hardware_compatible: bool = False,
) -> Path:
    """Write the stated contract into a copy of an ONNX file, or into a manifest beside an engine.

    For an engine, the user also states the builder, its `version` (default: the installed version)
    and the compute capabilities. These statements are not verified, and the manifest records that
    the engine was adopted.

    Raises:
        InputError: if the statement is incomplete, or contradicts the file.
    """
    opened = open_artifact(file)
    file = opened.path
    if isinstance(opened, EngineFile):
        if out is not None:
            raise InputError(
                f"{file}: the manifest is always written beside the engine; leave out --out"
            )
        options = BuildOptions(
            version_compatible=version_compatible, hardware_compatible=hardware_compatible
        )
        with output_lock(file):
            return _adopt_engine(file, statement, backend, version, targets, profiles, options)
    if out is None:
        raise InputError(f"{file}: the contract is written into a copy; give it a name with --out")
    if backend or version or targets or profiles or version_compatible or hardware_compatible:
        raise InputError(
            f"{file}: --backend, --built-by, --target, --min, --opt, --max, --version-compatible "
            "and --hardware-compatible apply only to an engine; leave them out"
        )
    with output_lock(Path(out)):
        return _adopt_graph(opened, statement, check_output(Path(out), ".onnx", read_from=file))


def _adopt_graph(opened: OnnxFile, statement: Statement, out: Path) -> Path:
    graph, file = opened.graph, opened.path
    check_graph(graph, file)
    keep_weights_in(graph)
    images = graph.graph.input
    if len(images) != 1 or len(graph.graph.output) != 1:
        raise InputError(
            f"{file}: has {len(images)} inputs and {len(graph.graph.output)} outputs; a "
            "segmentation network has one input, the image, and one output"
        )
    shape, given = tensor_shape(images[0]), tensor_shape(graph.graph.output[0])
    contract = _contract(file, statement, shape)
    if statement.precision is None:
        kind: Precision = "int8" if is_quantized(graph) else "fp32"
        contract = replace(contract, precision=kind)
    check_tensors(file, contract, shape, given, _mends(given))
    set_contract(graph, contract)
    save_onnx(graph, out)
    return out


def _mends(given: tuple[int | str, ...]) -> tuple[str, str]:
    """Return what to state for an input and an output of another shape."""
    of_output = "state its --output and the number of its classes"
    if len(given) == 4 and given[1] == 1:
        of_output = "it is a binary network: give --num-classes 1, or --data with --foreground"
    return "state its --size, --channels and --layout", of_output


def _adopt_engine(
    file: Path,
    statement: Statement,
    backend: str | None,
    version: str | None,
    targets: Sequence[str],
    profiles: Sequence[Profile],
    options: BuildOptions,
) -> Path:
    path = manifest_path(file)
    if path.exists():
        raise InputError(f"{path}: the engine has a manifest already; remove it to write a new one")
    if backend not in BACKENDS:
        raise InputError(f"{file}: name the engine's builder: --backend {' or '.join(BACKENDS)}")
    odd = next((one for one in targets if not re.fullmatch(r"sm\d{2,3}", one.lower())), None)
    if odd is not None:
        raise InputError(f"--target {odd}: is not a compute capability; give one such as sm86")
    if not targets:
        raise InputError(
            f"{file}: name the compute capability that the engine was built for, such as "
            "--target sm86"
        )
    if version is None:
        version = open_bindings(backend).version
    contract = _contract(file, statement, ())
    taken, given = _input_and_output(contract, bool(profiles))
    manifest = Manifest(
        engine=file.name,
        sha256=sha256_of_file(file),
        bytes=file.stat().st_size,
        backend=backend,
        backend_version=version,
        platform=host_platform(),
        compute_capabilities=tuple(target.lower() for target in targets),
        precision=contract.precision,
        gpu=None,
        input=taken,
        output=given,
        profiles=tuple(profiles),
        options=options.described(),
        parent=None,
        parent_sha256=None,
        convolutions=(),
        contract=contract,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=0.0,
        adopted=True,
    )
    write_atomically(path, manifest.to_json().encode())
    return path


def _input_and_output(contract: Contract, dynamic: bool) -> tuple[TensorSpec, TensorSpec]:
    """Return the input and output tensor that the contract implies, without their names.

    Only the engine knows the names of its tensors.
    """
    height, width = contract.size
    classes = contract.score_channels
    sides: tuple[int | str, ...] = ("height", "width") if dynamic else (height, width)
    count = len(contract.channels)
    taken = (*sides, count) if contract.layout == "NHWC" else (count, *sides)
    given = sides if contract.output == "labels" else (classes, *sides)
    if contract.upsampling:
        given = (classes, "rows", "columns")
    batch: int | str = "batch" if dynamic else 1
    kind = "uint8" if contract.output == "labels" and not contract.upsampling else "float"
    return (
        TensorSpec(None, (batch, *taken), onnx_name(contract.input_dtype)),
        TensorSpec(None, (batch, *given), kind),
    )


def _contract(file: Path, statement: Statement, shape: tuple[int | str, ...]) -> Contract:
    stated = dict(statement.preprocessing)
    stated |= {name: value for name in _FIELDS if (value := getattr(statement, name)) is not None}
    provenance = {**versions("onnx"), "stated": "by segdeploy adopt"}
    if statement.like is not None:
        if statement.data or statement.num_classes or statement.foreground:
            raise InputError(
                "--like: includes the classes; leave --data, --num-classes and --foreground out"
            )
        # The provenance of the file `like` does not apply to this file.
        return replace(with_stated(_contract_of(statement.like), stated), provenance=provenance)
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
    count = len(stated.get("channels", RGB))
    is_nhwc = shape[3:] in ((count,), (1,)) and shape[1:2] != (count,)
    layout = statement.layout or ("NHWC" if is_nhwc else "NCHW")
    if "size" not in stated:
        sides = shape[1:3] if layout == "NHWC" else shape[2:4]
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise InputError(f"{file}: its input size is unknown; give --size HxW")
        stated["size"] = sides
    taken = (shape[3:4] if layout == "NHWC" else shape[1:2]) or (len(RGB),)
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

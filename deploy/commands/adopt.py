"""`segdeploy adopt`: add a contract, stated by the user, to a file from another tool."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import EngineFile, OnnxFile, open_artifact
from segdeploy.commands.evaluate import evaluate
from segdeploy.contract import (
    FIT_EXAMPLES,
    IMAGENET_MEAN,
    IMAGENET_STD,
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
    option_of,
    replaced,
    restated,
    with_stated,
)
from segdeploy.device import host_platform
from segdeploy.engine.bindings import BACKENDS, open_bindings
from segdeploy.engine.manifest import Manifest, manifest_path, parse_manifest
from segdeploy.engine.options import BuildOptions
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.frameworks.foreign_network import named_classes
from segdeploy.frameworks.read import read_network
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.foreign_ends import (
    conform_input,
    conform_labels,
    conform_scores,
    input_type,
    is_label_map,
    repair,
    shape_text,
    take_output,
)
from segdeploy.onnx_graph.model_file import (
    precision_of,
    save_onnx,
    set_contract,
    tensor_shape,
)
from segdeploy.optimizer.optimize import against_itself, optimize_graph
from segdeploy.optimizer.passes.fold_constants import fold_constants
from segdeploy.optimizer.passes.restore_dilations import restore_dilations
from segdeploy.output_lock import output_lock
from segdeploy.packages import require, versions
from segdeploy.preprocessing.preprocess import ordered
from segdeploy.profiles import Profile
from segdeploy.proof.graph_session import runner
from segdeploy.proof.test_inputs import exact_input, noise_image
from segdeploy.runtime.session import check_tensors
from segdeploy.tensor_spec import TensorSpec, onnx_name

if TYPE_CHECKING:
    import onnx

_FRAMES = 8
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
    require("onnxruntime")
    graph, file = opened.graph, opened.path
    done = repair(graph)
    check_graph(graph, file)
    images = graph.graph.input
    if len(images) != 1:
        raise InputError(
            f"{file}: has {len(images)} inputs; a segmentation network has one, the image"
        )
    if note := take_output(graph, statement.take, file):
        done.append(note)
    shape = tensor_shape(images[0])
    if statement.source is not None:
        statement = _with_source(statement, statement.source, shape)
    statement, told = _with_metadata(statement, graph)
    done += told
    if statement.like is not None:
        contract = _contract(file, statement, shape, is_nhwc=False)
        _check_embedded(file, contract, statement)
        if statement.output is not None and contract.output in ("logits", "probabilities"):
            kind, is_nhwc = input_type(graph), contract.layout == "NHWC"
            found = _run(graph, _probe(contract, kind, is_nhwc=is_nhwc), file)
            contract, _ = _with_kind(contract, found, statement, file)
        is_decided = contract.output == "labels" and contract.upsampling is None
        if is_decided and "threshold" in statement.preprocessing:
            raise InputError(_DECIDED.format(file=file))
    else:
        if opened.own_contract is not None:
            done.append("its own contract is replaced by the stated one; --like keeps its fields")
        contract, more = _conformed(graph, statement, file)
        done += more
        check_graph(graph, file)
    graph, more = _with_dilations(graph, contract)
    done += more
    contract = replace(contract, precision=statement.precision or precision_of(graph, None))
    check_tensors(
        file,
        contract,
        tensor_shape(graph.graph.input[0]),
        tensor_shape(graph.graph.output[0]),
        ("state its --size and --channels", "state its --output and the number of its classes"),
    )
    for line in done:
        _LOG.info(f"{file}: {line}")
    if contract.assumed:
        _LOG.info(contract.assumption_note(str(file)))
    set_contract(graph, contract)
    save_onnx(graph, out)
    if statement.data is not None:
        _report_accuracy(out, statement.data)
    return out


def _with_source(statement: Statement, source: str, shape: tuple[int | str, ...]) -> Statement:
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
    if len(shape) == 4 and all(isinstance(side, int) for side in shape[2:4]):
        stated.pop("size", None)
    if statement.data is not None:  # the data set names the classes
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


def _with_metadata(statement: Statement, graph: onnx.ModelProto) -> tuple[Statement, list[str]]:
    """Return the statement with the classes that the file's own metadata name, and a note.

    Ultralytics writes `names`, a mapping of ids to names as Python writes it.
    """
    known = statement.like or statement.data or statement.num_classes
    if known or "classes" in statement.preprocessing:
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
    stated = {"classes": classes, "palette": palette, "ignore_index": ignored}
    note = f"its metadata names {len(classes)} classes ({', '.join(classes[:3])}, ...)"
    return replace(statement, preprocessing={**stated, **statement.preprocessing}), [note, *notes]


def _check_embedded(file: Path, contract: Contract, statement: Statement) -> None:
    """Refuse to restate what the graph itself computes.

    Raises:
        InputError: naming the first such field.
    """
    embedded: set[str] = set()
    if contract.layout == "NHWC":
        embedded |= {"dtype", "scale", "mean", "std", "mean_255", "std_255", "normalization"}
    if contract.source_size is not None:
        embedded |= {"fit", *FIT_EXAMPLES, "pad_normalized", "resize", "gray"}
    for name in statement.preprocessing:
        if name in embedded:
            raise InputError(
                f"{file}: its graph computes what {option_of(name)} states, so a copy of the graph "
                f"cannot have another value; leave {option_of(name)} out"
            )


def _report_accuracy(adopted: Path, data: Path) -> None:
    """Log the mIoU on a few frames, which a wrong statement of the preprocessing ruins."""
    splits = open_dataset(data).splits
    split = "val" if "val" in splits else splits[-1]
    try:
        found = evaluate(adopted, data, split=split, limit=_FRAMES)
    except InputError as error:  # the file is written, and a broken frame does not change it
        _LOG.info(f"{adopted}: its accuracy was not measured ({error})")
        return
    if found.miou is not None:
        _LOG.info(
            f"{adopted}: has {100 * found.miou:.2f} % mIoU on {found.frames} frames of '{split}'; "
            "a value far below the network's own shows a wrong --channels, --mean, --std, --fit or "
            "--resize"
        )


def _conformed(
    graph: onnx.ModelProto, statement: Statement, file: Path
) -> tuple[Contract, list[str]]:
    """Run the graph, and bring its ends to the form of a contract, in place.

    Return the contract and what was done.
    """
    shape, kind = tensor_shape(graph.graph.input[0]), input_type(graph)
    if kind not in (*_FLOATS, *_INTEGERS):
        raise InputError(
            f"{file}: its input is {kind}; an image is one of {', '.join((*_FLOATS, *_INTEGERS))}"
        )
    if isinstance(shape[0] if shape else 1, int) and shape[:1] not in ((), (1,)):
        raise InputError(
            f"{file}: takes batches of {shape[0]} alone; give a file for one image, or one with a "
            "dynamic batch"
        )
    is_nhwc = _is_nhwc(statement, shape)
    stated = dict(statement.preprocessing)
    if kind not in _FLOATS:  # a graph that takes whole numbers normalizes them by itself
        stated.setdefault("normalization", "none")
    layout = "NHWC" if is_nhwc and kind == "uint8" else "NCHW"
    known = replace(statement, layout=layout, preprocessing=stated)
    contract = _contract(file, known, shape, is_nhwc=is_nhwc)
    given = _run(graph, _probe(contract, kind, is_nhwc=is_nhwc), file)
    done = conform_input(graph, is_nhwc=is_nhwc)
    contract, more = _with_output(graph, contract, given, statement, file)
    probe = _probe(contract, input_type(graph), is_nhwc=contract.layout == "NHWC")
    found = _run(graph, probe, file)
    _check_same(found, given, file)
    if contract.output != "labels":
        contract, notes = _with_kind(contract, found, statement, file)
        more += notes
    return contract, done + more


def _with_dilations(
    graph: onnx.ModelProto, contract: Contract
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph with the dilated convolutions that TensorFlow split, and what was done."""
    passes = (("fold constants", fold_constants), ("restore dilations", restore_dilations))
    found, report = optimize_graph(graph, passes=passes)
    restored = report.steps[-1].rewrites
    if not restored:
        return graph, []
    kind = input_type(graph)
    image = _probe(contract, kind, is_nhwc=contract.layout == "NHWC")
    found, report = optimize_graph(graph, passes=passes, check=against_itself(graph, [image]))
    return (found, list(report.steps[-1].rewrites)) if report.steps[-1].rewrites else (graph, [])


def _is_nhwc(statement: Statement, shape: tuple[int | str, ...]) -> bool:
    """Return whether the channels are the last axis of an input of this shape."""
    if statement.layout is not None:
        return statement.layout == "NHWC"
    count = len(statement.preprocessing.get("channels", RGB))
    return shape[3:] in ((count,), (1,)) and shape[1:2] != (count,)


# ONNX's names of float types, and the types of the arrays that ONNX Runtime takes.
_FLOATS = {"float": "float32", "float16": "float16", "double": "float64"}
_INTEGERS = ("uint8", "uint16", "int32", "int64")


def _probe(contract: Contract, kind: str, *, is_nhwc: bool) -> NDArray[Any]:
    """Return a noise image as a graph takes it, with an input of this type and layout."""
    image = ordered(noise_image(contract), contract)
    values = image[None].transpose(0, 3, 1, 2)
    if kind in _FLOATS:
        values = exact_input(image, contract)
    if is_nhwc:
        values = values.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(values, _FLOATS.get(kind, kind))


def _check_same(found: NDArray[Any], given: NDArray[Any], file: Path) -> None:
    """Refuse edited ends that changed a value: they move and convert values alone.

    `found` is the output of the edited graph, `given` that of the file. Scores that were enlarged
    are new values, and are not compared.

    Raises:
        CheckFailed: if the edited graph gives another value for the same image.
    """
    if found.size != given.size:
        return
    expected = given
    if given.ndim == 4 and found.ndim == 4 and given.shape != found.shape:
        expected = given.transpose(0, 3, 1, 2)
    if not np.allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5):
        raise CheckFailed(f"{file}: the copy gives other values than the file for the same image")


def _run(graph: onnx.ModelProto, image: NDArray[Any], file: Path) -> NDArray[Any]:
    """Run the graph once, since its stated shapes and types may be wrong or missing.

    Raises:
        InputError: if the graph cannot be run on the image, or gives NaN or infinity.
    """
    try:
        output = runner(graph)(image)
    except CheckFailed as error:
        raise InputError(
            f"{file}: cannot be run on an image of shape {shape_text(image.shape)} ({error}); "
            "state its --size, --channels and --layout"
        ) from error
    if not np.isfinite(output).all():
        raise InputError(f"{file}: gives NaN or infinity for an image of noise")
    return output


def _with_output(
    graph: onnx.ModelProto,
    contract: Contract,
    given: NDArray[Any],
    statement: Statement,
    file: Path,
) -> tuple[Contract, list[str]]:
    """Edit the graph's output to the form of a contract; return the contract and what was done.

    Raises:
        InputError: if the output that the run gave contradicts the statement.
    """
    count, shown = contract.score_channels, shape_text(given.shape)
    if given.ndim not in (2, 3, 4):
        raise InputError(f"{file}: gives an output of shape {shown}; {_EXPECTED}")
    if is_label_map(given, count):
        if statement.output not in (None, "labels"):
            raise InputError(
                f"{file}: gives labels of shape {shown}, not {statement.output}; leave --output out"
            )
        most = 1 << len(contract.classes) if contract.has_bit_planes else len(contract.classes)
        if given.max(initial=0) >= most:
            raise InputError(
                f"{file}: gives the label {int(given.max())}, and {len(contract.classes)} classes "
                "are stated; state all classes with --num-classes or --data"
            )
        if "threshold" in statement.preprocessing:
            raise InputError(_DECIDED.format(file=file))
        done = conform_labels(graph, given)
        return with_stated(contract, {"output": "labels"}), done
    found = {given.shape[1], given.shape[3]} if given.ndim == 4 else {given.shape[0]}
    if count not in found:
        raise InputError(
            f"{file}: gives an output of shape {shown}, and {count} channel"
            f"{'s are' if count != 1 else ' is'} stated; {_mend_of_channels(given)}"
        )
    if statement.output == "labels":
        raise InputError(f"{file}: gives scores of shape {shown}, not labels; leave --output out")
    return contract, conform_scores(graph, given, count, contract.size, statement.upsampling)


def _with_kind(
    contract: Contract, scores: NDArray[Any], statement: Statement, file: Path
) -> tuple[Contract, list[str]]:
    """Return the contract with the kind of the edited graph's scores, and what was found.

    Raises:
        InputError: for maps of another size than the input's, or another kind than stated.
    """
    if scores.shape[2:] != contract.size:
        sides = "x".join(map(str, scores.shape[2:]))
        raise InputError(
            f"{file}: gives maps of {sides} for an input of {contract.size[0]}x{contract.size[1]}; "
            "state how they are enlarged: --upsampling half-pixel (PyTorch's default) or "
            "align-corners"
        )
    kind = _kind_of(contract, scores)
    if statement.output not in (None, kind):
        raise InputError(
            f"{file}: {_KINDS[kind]}, so its output is {kind}; leave --output {statement.output} "
            "out"
        )
    notes = []
    if kind == "probabilities" and statement.output is None:
        notes.append(f"its output is taken as probabilities, since {_KINDS[kind]}")
    return replace(contract, output=kind), notes


_DECIDED = "{file}: gives labels, which its own threshold has decided; leave --threshold out"
_EXPECTED = "scores are (N, C, H, W) and labels (N, H, W)"
_KINDS = {
    "probabilities": "the scores of a pixel are within 0 and 1 as those of a softmax or sigmoid",
    "logits": "the scores of a pixel are not those of a softmax or sigmoid",
}


def _mend_of_channels(given: NDArray[Any]) -> str:
    if given.ndim == 4 and given.shape[1] == 1:
        return "it is a binary network: give --num-classes 1, or --data with --foreground"
    return "state the number of its classes with --num-classes or --data"


def _kind_of(contract: Contract, scores: NDArray[Any]) -> str:
    """Return `probabilities` for scores that a softmax or a sigmoid ended in, else `logits`."""
    if scores.min() < 0 or scores.max() > 1:
        return "logits"
    if contract.head == "multiclass":
        sums = scores.astype(np.float64).sum(1)
        return "probabilities" if np.abs(sums - 1).max() < 1e-2 else "logits"
    return "probabilities"


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
    if statement.source is not None:
        statement = _with_source(statement, statement.source, ())
    contract = _contract(file, statement, (), is_nhwc=statement.layout == "NHWC")
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


def _contract(
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

"""`segdeploy serve-repo`: write a model repository for Triton Inference Server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdeploy.artifact import Artifact, EngineFile, OnnxFile, open_artifact
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.files import check_folder, check_input, write_atomically
from segdeploy.models.files import temporary_folder
from segdeploy.onnx_graph.model_file import (
    external_files,
    save_onnx,
)
from segdeploy.output_lock import one_writer
from segdeploy.profiles import route
from segdeploy.runtime.session import check_tensors
from segdeploy.serve.client import client_source, takes_files
from segdeploy.serve.config import Served, ensemble, validate
from segdeploy.serve.pre_post_processing import labels_graph, preprocessing_graph
from segdeploy.tensor_spec import TensorSpec, onnx_name

_MOST_BATCH = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Repository:
    """The written repository: the model to request, its version, and the folders of all models.

    `takes_files` states whether the client reads JPEG and PNG files, which hold 8-bit RGB; others
    come as NPY. `validated` states whether Triton's own protobuf parsed the configurations.
    """

    path: Path
    model: str
    version: int
    models: tuple[str, ...]
    batch: int
    validated: bool
    takes_files: bool


@one_writer
def serve_repo(
    model: Path | str,
    out: Path | str,
    *,
    name: str | None = None,
    instances: int = 1,
    batch: int | None = None,
    delay_us: int = 100,
    on_gpu: bool | None = None,
) -> Repository:
    """Write MODEL into the repository `out`, with the preprocessing and argmax that it lacks.

    The served model `NAME` takes images `(N, H, W, C)` of the contract's size, `(N, H, W, 3) uint8`
    RGB for most networks, and returns `labels` `(N, H, W) uint8`. It is an ensemble if the graph
    lacks preprocessing or argmax. An existing model gets a new version. The repository also holds
    `labels.txt` and an example client.

    Raises:
        InputError: for a model that Triton cannot serve, or a name that another model has.
    """
    opened = open_artifact(model)
    model, out = opened.path, Path(out)
    name = name or model.name.split(".")[0]
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name}: must be up to 100 letters, digits, '_', '-' and '.', and begin with a "
            "letter, a digit or '_'"
        )
    if instances < 1 or delay_us < 0:
        raise InputError("--instances must be 1 or more, --delay 0 or more")
    served, contract = _described(opened, name, batch)
    gpu = served.on_gpu if on_gpu is None else on_gpu
    served = replace(served, instances=instances, delay_us=delay_us, on_gpu=gpu)
    check_folder(out)
    out.mkdir(exist_ok=True)
    chain = _chain(name, served, contract, opened)
    configs = {step.name: step.config() for step, _ in chain}
    if len(chain) > 1:
        configs[name] = ensemble(name, served.batch, [step for step, _ in chain])
    validated = [validate(text, f"{folder}/config.pbtxt") for folder, text in configs.items()]
    labels = "".join(f"{one}\n" for one in contract.classes).encode()
    version = _next_version(out, configs, labels)
    parts = [_Part(step.name, configs[step.name], step.file, write) for step, write in chain]
    if len(chain) > 1:  # last, so that a server never sees the ensemble without its models
        parts.append(_Part(name, configs[name], None, None))
    _add(out, parts, version, labels)
    write_atomically(out / f"{name}_client.py", client_source(name, contract, version).encode())
    return Repository(
        out, name, version, tuple(configs), served.batch, all(validated), takes_files(contract)
    )


Write = Callable[[Path], object]


def _chain(
    name: str, served: Served, contract: Contract, opened: Artifact
) -> list[tuple[Served, Write]]:
    """Return the models from the image to the labels, in order, each with its file writer."""

    def copy(path: Path) -> None:
        model = opened.path
        write_atomically(path, model.read_bytes())
        for beside in external_files(model) if isinstance(opened, OnnxFile) else ():
            place = path.parent / beside.relative_to(model.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, beside.read_bytes())

    steps: list[tuple[Served, Write]] = []
    height, width = contract.size
    first = () if served.batch else (1,)  # without batching, dims includes the batch dimension
    ends = replace(served, platform="onnxruntime_onnx", file="model.onnx", profile=None)
    if contract.layout == "NCHW":
        if contract.normalization == "per-image":
            raise InputError(
                f"{opened.path}: normalizes by the mean of each image, which the server's "
                "preprocessing does not compute; serve the network with your own preprocessing"
            )
        graph, count = preprocessing_graph(contract), len(contract.image_channels)
        before = replace(
            ends,
            name=f"{name}_preprocessing",
            input=TensorSpec("bytes", (*first, height, width, count), onnx_name(contract.dtype)),
            output=TensorSpec("image", (*first, *contract.image_shape), "float"),
            labels=None,
        )
        steps.append((before, lambda path: save_onnx(graph, path)))
    needs_labels = contract.output != "labels"
    if contract.min_confidence is not None:
        raise InputError(
            f"{opened.path}: gives unsure pixels the ignore index (min_confidence), which the "
            "server's graph of labels does not; state the contract without it"
        )
    alone = not steps and not needs_labels
    steps.append((served if alone else replace(served, name=f"{name}_network"), copy))
    if needs_labels:
        last = labels_graph(contract)
        behind = replace(
            ends,
            name=f"{name}_labels",
            input=TensorSpec("scores", (*first, contract.score_channels, height, width), "float"),
            output=TensorSpec("labels", (*first, height, width), "uint8"),
            labels=None if contract.has_bit_planes else "labels.txt",
        )
        steps.append((behind, lambda path: save_onnx(last, path)))
    return steps


def _described(opened: Artifact, name: str, batch: int | None) -> tuple[Served, Contract]:
    model, profile = opened.path, None
    if isinstance(opened, OnnxFile):
        opened.check()
    contract, input_spec, output_spec = opened.contract, opened.input, opened.output
    if isinstance(opened, EngineFile):
        manifest = opened.manifest
        if manifest.backend != "tensorrt":
            raise InputError(
                f"{model}: is an engine of {manifest.backend}, but Triton loads TensorRT engines; "
                "serve the .onnx, or build with --backend tensorrt on the server's GPU"
            )
        platform, file, largest = "tensorrt_plan", "model.plan", 1
        if manifest.profiles:
            profile = route(manifest.profiles, (1, *contract.size))
            largest = manifest.profiles[profile].maximum[0]
    else:
        check_tensors(model, contract, input_spec.shape, output_spec.shape)
        platform, file = "onnxruntime_onnx", "model.onnx"
        largest = contract.bounds[2] if contract.bounds else _MOST_BATCH
    _check_io_tensors(model, input_spec, output_spec)
    if contract.upsampling:
        raise InputError(
            f"{model}: ends in low-resolution logits, which Triton cannot upsample; export it "
            "without --late-upsampling"
        )
    is_batched = isinstance(input_spec.shape[0], str)
    if batch is not None and batch > (largest if is_batched else 1):
        raise InputError(
            f"--batch {batch}: {model} takes {largest if is_batched else 1} at most; export it "
            "with --dynamic and a larger --max-batch"
        )
    most = (batch or largest) if is_batched else 0
    # The preprocessing and argmax models of the ensemble have the contract's size.
    height, width = contract.size
    scores = (
        (height, width) if contract.output == "labels" else (contract.score_channels, height, width)
    )
    first = () if is_batched else (1,)
    has_ids = contract.output == "labels" and not contract.has_bit_planes
    labels = "labels.txt" if has_ids else None
    served = Served(
        name=name,
        platform=platform,
        file=file,
        batch=most,
        input=replace(input_spec, shape=(*first, *contract.image_shape)),
        output=replace(output_spec, shape=(*first, *scores)),
        labels=labels,
        instances=1,
        on_gpu=platform == "tensorrt_plan",
        delay_us=0,
        profile=profile,
    )
    return served, contract


def _check_io_tensors(model: Path, input_spec: TensorSpec, output_spec: TensorSpec) -> None:
    """Refuse a model that cannot be chained with preprocessing and argmax models.

    Raises:
        InputError: for an input or output other than float32 and uint8, or an engine whose tensor
            names are unknown.
    """
    if input_spec.name is None or output_spec.name is None:
        raise InputError(
            f"{model}: was adopted, so the names of its tensors are unknown; build it with "
            "segdeploy, or serve the .onnx"
        )
    for end in (input_spec, output_spec):
        if end.dtype not in ("float", "uint8"):
            raise InputError(
                f"{model}: its tensor {end.name} is {end.dtype}, but only float and uint8 can be "
                "served; calibrate it without --fp16-io"
            )


def _next_version(out: Path, configs: dict[str, str], labels: bytes) -> int:
    """Return 1 for new models, else the latest version plus 1.

    Raises:
        InputError: if one of the models exists with another configuration or other classes.
    """
    versions = [0]
    for folder, text in configs.items():
        path = out / folder / "config.pbtxt"
        if not path.exists():
            continue
        if check_input(path).read_bytes() != text.encode():
            raise InputError(
                f"{path}: belongs to another model, or was changed; give another --name, or remove "
                "it"
            )
        known = path.with_name("labels.txt")
        if known.exists() and check_input(known).read_bytes() != labels:
            raise InputError(
                f"{known}: lists other classes; give another --name, or remove {path.parent}"
            )
        found = (one.name for one in (out / folder).iterdir() if one.is_dir())
        versions += [int(one) for one in found if one.isdigit()]
    return max(versions) + 1


@dataclass(frozen=True)
class _Part:
    """A model of the repository: folder name, configuration, and the model file with its writer."""

    name: str
    config: str
    file: str | None
    write: Write | None


def _add(out: Path, parts: Sequence[_Part], version: int, labels: bytes) -> None:
    """Add one version of every model, or nothing if a step fails.

    All files are first written to a folder that a server does not read. A new model's folder is
    then moved as a whole. For an existing model, only the folder of the new version is moved.
    """
    unfinished = Path(temporary_folder(out / "unfinished"))
    added: list[Path] = []
    try:
        moves: list[tuple[Path, Path]] = []
        for part in parts:
            folder = unfinished / part.name
            (folder / str(version)).mkdir(parents=True)
            if part.file and part.write:
                part.write(folder / str(version) / part.file)
            write_atomically(folder / "config.pbtxt", part.config.encode())
            write_atomically(folder / "labels.txt", labels)
            is_new = not (out / part.name / "config.pbtxt").exists()
            at = Path(part.name) if is_new else Path(part.name, str(version))
            moves.append((unfinished / at, out / at))
        for made, place in moves:
            made.rename(place)
            added.append(place)
    except BaseException:
        for place in added:
            shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

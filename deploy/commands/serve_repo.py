"""`segdeploy serve-repo`: a model repository that Triton Inference Server loads as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdeploy.contract import Contract
from segdeploy.engine.manifest import TensorInfo, end_of, read_manifest
from segdeploy.errors import InputError
from segdeploy.files import check_folder, check_input, write_atomically
from segdeploy.models import image_file
from segdeploy.models.files import temporary_folder
from segdeploy.onnx_graph.model_file import contract_of, external_files, load_onnx, save_onnx
from segdeploy.output_lock import one_writer
from segdeploy.profiles import route
from segdeploy.runtime.session import ENGINE_SUFFIXES, check_tensors
from segdeploy.serve.config import Served, Tensor, ensemble, validate
from segdeploy.serve.pre_post_processing import labels_graph, preprocessing_graph

_MOST_BATCH = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Repository:
    """What was written: the model to ask for, its version, and all models' folders.

    `validated` says whether Triton's own protobuf has parsed the configurations.
    """

    path: Path
    model: str
    version: int
    models: tuple[str, ...]
    batch: int
    validated: bool


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
    """Write MODEL into the repository `out`, with all that it takes from bytes to labels.

    `NAME` takes `(N, H, W, 3) uint8` RGB of the contract's size and gives `labels` `(N, H, W)
    uint8`: an ensemble, where the graph lacks one of the ends. A model that is there already gets a
    new version. Beside it lie `labels.txt` and an example of a client.

    Raises:
        InputError: for a model that Triton could not serve, or a name that is taken by another.
    """
    model = check_input(Path(model))
    out = Path(out)
    name = name or model.name.split(".")[0]
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name}: must be letters, digits, '_', '-' and '.' alone, no '.' first"
        )
    if instances < 1 or delay_us < 0:
        raise InputError("--instances must be 1 or more, --delay 0 or more")
    served, contract = _described(model, name, batch)
    gpu = served.on_gpu if on_gpu is None else on_gpu
    served = replace(served, instances=instances, delay_us=delay_us, on_gpu=gpu)
    check_folder(out)
    out.mkdir(exist_ok=True)
    chain = _chain(name, served, contract, model)
    configs = {step.name: step.config() for step, _ in chain}
    if len(chain) > 1:
        configs[name] = ensemble(name, served.batch, [step for step, _ in chain])
    validated = [validate(text, f"{folder}/config.pbtxt") for folder, text in configs.items()]
    labels = "".join(f"{one}\n" for one in contract.classes).encode()
    version = _next_version(out, configs, labels)
    parts = [_Part(step.name, configs[step.name], step.file, write) for step, write in chain]
    if len(chain) > 1:  # last, so that a server never sees it without its steps
        parts.append(_Part(name, configs[name], None, None))
    _add(out, parts, version, labels)
    write_atomically(out / f"{name}_client.py", _client(name, contract, version).encode())
    return Repository(out, name, version, tuple(configs), served.batch, all(validated))


Write = Callable[[Path], object]


def _chain(
    name: str, served: Served, contract: Contract, model: Path
) -> list[tuple[Served, Write]]:
    """The models from bytes to labels, in order, and how each one's file is written."""

    def copy(path: Path) -> None:
        write_atomically(path, model.read_bytes())
        for beside in external_files(model) if model.suffix == ".onnx" else ():
            place = path.parent / beside.relative_to(model.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, beside.read_bytes())

    steps: list[tuple[Served, Write]] = []
    height, width = contract.size
    first = () if served.batch else (1,)  # a model without batches has all its dimensions in dims
    ends = replace(served, platform="onnxruntime_onnx", file="model.onnx", profile=None)
    if contract.layout == "NCHW":
        graph = preprocessing_graph(contract)
        before = replace(
            ends,
            name=f"{name}_preprocessing",
            input=Tensor("bytes", "uint8", (*first, height, width, 3)),
            output=Tensor("image", "float", (*first, 3, height, width)),
        )
        steps.append((before, lambda path: save_onnx(graph, path)))
    needs_labels = contract.output != "labels"
    alone = not steps and not needs_labels
    steps.append((served if alone else replace(served, name=f"{name}_network"), copy))
    if needs_labels:
        last = labels_graph(contract)
        behind = replace(
            ends,
            name=f"{name}_labels",
            input=Tensor("scores", "float", (*first, len(contract.classes), height, width)),
            output=Tensor("labels", "uint8", (*first, height, width), "labels.txt"),
        )
        steps.append((behind, lambda path: save_onnx(last, path)))
    return steps


def _described(model: Path, name: str, batch: int | None) -> tuple[Served, Contract]:
    profile = None
    if model.suffix in ENGINE_SUFFIXES:
        manifest = read_manifest(model)
        if manifest.backend != "tensorrt":
            raise InputError(
                f"{model}: is an engine of {manifest.backend}, and Triton loads those of TensorRT; "
                "serve the .onnx, or build with --backend tensorrt on the server's GPU"
            )
        contract, taken, given = manifest.contract, manifest.input, manifest.output
        platform, file, largest = "tensorrt_plan", "model.plan", 1
        if manifest.profiles:
            profile = route(manifest.profiles, (1, *contract.size))
            largest = manifest.profiles[profile].maximum[0]
    elif model.suffix == ".onnx":
        graph = load_onnx(model)
        contract = contract_of(graph, model)
        taken, given = (end_of(end) for end in (graph.graph.input[0], graph.graph.output[0]))
        check_tensors(model, contract, taken.shape, given.shape)
        platform, file = "onnxruntime_onnx", "model.onnx"
        largest = contract.bounds[2] if contract.bounds else _MOST_BATCH
    else:
        raise InputError(f"{model}: is neither an .onnx file nor an .engine")
    _check_ends(model, taken, given)
    if contract.upsampling:
        raise InputError(
            f"{model}: ends in a small map, which a server cannot finish; export it without "
            "--late-upsampling"
        )
    is_batched = isinstance(taken.shape[0], str)
    if batch is not None and batch > (largest if is_batched else 1):
        raise InputError(
            f"--batch {batch}: {model} takes {largest if is_batched else 1} at most; export it "
            "--dynamic with a larger --max-batch"
        )
    most = (batch or largest) if is_batched else 0
    # Sizes are the contract's: the ensemble's ends are made for it.
    height, width = contract.size
    scores = (
        (height, width) if contract.output == "labels" else (len(contract.classes), height, width)
    )
    first = () if is_batched else (1,)
    labels = "labels.txt" if contract.output == "labels" else None
    served = Served(
        name=name,
        platform=platform,
        file=file,
        batch=most,
        input=Tensor(taken.name or "", taken.dtype, (*first, *contract.picture_shape)),
        output=Tensor(given.name or "", given.dtype, (*first, *scores), labels),
        instances=1,
        on_gpu=platform == "tensorrt_plan",
        delay_us=0,
        profile=profile,
    )
    return served, contract


def _check_ends(model: Path, taken: TensorInfo, given: TensorInfo) -> None:
    """Refuse what a chain of models could not be joined to.

    Raises:
        InputError: for half ends, or an engine whose tensors' names nobody knows.
    """
    if taken.name is None or given.name is None:
        raise InputError(
            f"{model}: was adopted, and the names of its tensors are not known; build it with "
            "segdeploy, or serve the .onnx"
        )
    for end in (taken, given):
        if end.dtype not in ("float", "uint8"):
            raise InputError(
                f"{model}: its tensor {end.name} is {end.dtype}, which nothing here stands before "
                "or behind; calibrate it without --half-io"
            )


def _next_version(out: Path, configs: dict[str, str], labels: bytes) -> int:
    """1, or one more than the model's last version.

    Raises:
        InputError: if one of the models is there with another configuration or other classes.
    """
    versions = [0]
    for folder, text in configs.items():
        path = out / folder / "config.pbtxt"
        if not path.exists():
            continue
        if check_input(path).read_bytes() != text.encode():
            raise InputError(
                f"{path}: is of another model, or was changed; give another --name, or remove it"
            )
        known = path.with_name("labels.txt")
        if known.exists() and check_input(known).read_bytes() != labels:
            raise InputError(
                f"{known}: names other classes; give another --name, or remove {path.parent}"
            )
        found = (one.name for one in (out / folder).iterdir() if one.is_dir())
        versions += [int(one) for one in found if one.isdigit()]
    return max(versions) + 1


@dataclass(frozen=True)
class _Part:
    """A model of the repository: its folder's name, its configuration, and how its file is made."""

    name: str
    config: str
    file: str | None
    write: Write | None


def _add(out: Path, parts: Sequence[_Part], version: int, labels: bytes) -> None:
    """Add a version of every model, or nothing.

    All is written into folders that a server does not read, and then renamed: a new model as a
    whole, a new version of a model that is there as its version's folder.
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


def _client(name: str, contract: Contract, version: int) -> str:
    """A program that reads pictures as every other reader here does."""
    template = Path(__file__).with_name("client.py.in").read_text(encoding="utf-8")
    reader = Path(image_file.__file__).read_text(encoding="utf-8")
    code = reader.split("from __future__", 1)[1]  # behind its docstring
    height, width = contract.size
    values = {"NAME": name, "VERSION": str(version), "HEIGHT": str(height), "WIDTH": str(width)}
    values["CLASSES"] = str(len(contract.classes))
    for key, value in values.items():
        template = template.replace(f"@{key}@", value)
    return template.replace("@READER@", f"from __future__{code}")

"""`segdeploy adopt`: add a contract, stated by the user, to a file from another tool."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.adoption.conform import DECIDED, conformed, probe, run_once, with_kind
from segdeploy.adoption.normalization import with_normalization
from segdeploy.adoption.statement import (
    Statement,
    stated_contract,
    with_metadata,
    with_size,
    with_source,
)
from segdeploy.artifact import EngineFile, OnnxFile, open_artifact
from segdeploy.commands.evaluate import evaluate
from segdeploy.contract import FIT_EXAMPLES, Contract
from segdeploy.contract_statement import option_of
from segdeploy.device import host_platform
from segdeploy.engine.bindings import BACKENDS, open_bindings
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.engine.options import BuildOptions
from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.foreign_ends import add_batch_axis, input_type, repair, take_output
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
from segdeploy.packages import require
from segdeploy.profiles import Profile
from segdeploy.proof.accuracy import Accuracy
from segdeploy.proof.dynamic_sizes import with_bounds
from segdeploy.runtime.session import check_tensors
from segdeploy.tensor_spec import TensorSpec, onnx_name

if TYPE_CHECKING:
    import onnx

_FRAMES, _TRIED_FRAMES = 8, 4
_LOG = logging.getLogger(__name__)


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
    the engine was adopted. For a dynamic graph, one profile states the sizes and batches that it
    may take; its optimum is the size. The graph is run at several of them.

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
    if backend or version or targets or version_compatible or hardware_compatible:
        raise InputError(
            f"{file}: --backend, --built-by, --target, --version-compatible and "
            "--hardware-compatible apply only to an engine; leave them out"
        )
    if len(profiles) > 1:
        raise InputError(f"{file}: give --min, --opt and --max once: the sizes that it may take")
    with output_lock(Path(out)):
        path = check_output(Path(out), ".onnx", read_from=file)
        return _adopt_graph(opened, statement, path, profiles[0] if profiles else None)


def _adopt_graph(
    opened: OnnxFile, statement: Statement, out: Path, profile: Profile | None
) -> Path:
    require("onnxruntime")
    graph, file = opened.graph, opened.path
    done = _repaired(graph, statement, file)
    if profile is not None:
        statement = with_size(statement, profile)
    if statement.source is not None:
        shape = tensor_shape(graph.graph.input[0])
        statement = with_source(statement, statement.source, shape)
    statement, told = with_metadata(statement, graph)
    done += told
    if statement.like is not None:
        contract = _restated(graph, statement, file)
    else:
        if opened.own_contract is not None:
            done.append("its own contract is replaced by the stated one; --like keeps its fields")

        def miou_of(tried: Path) -> float | None:
            assert statement.data is not None
            return _evaluated(tried, statement.data, _TRIED_FRAMES)[0].miou

        statement, told = with_normalization(statement, graph, file, miou_of)
        contract, more = conformed(graph, statement, file)
        done += told + more
        check_graph(graph, file)
    graph, more = _with_dilations(graph, contract)
    done += more
    if profile is not None:
        contract, note = with_bounds(graph, contract, profile, file)
        done.append(note)
    contract = replace(contract, precision=statement.precision or precision_of(graph, None))
    check_tensors(
        file,
        contract,
        tensor_shape(graph.graph.input[0]),
        tensor_shape(graph.graph.output[0]),
        ("state its --size and --channels", "state its --output and the number of its classes"),
    )
    sides = tensor_shape(graph.graph.input[0])
    dynamic = [side for side in sides[1:] if isinstance(side, str)]
    if dynamic and contract.bounds is None:
        done.append(
            f"is dynamic in {', '.join(dynamic)}; --min, --opt and --max state the sizes that it "
            "may take"
        )
    for line in done:
        _LOG.info(f"{file}: {line}")
    if contract.doubt:
        _LOG.info(f"{file}: {contract.doubt}")
    if contract.assumed:
        _LOG.info(contract.assumption_note(str(file)))
    set_contract(graph, contract)
    save_onnx(graph, out)
    if statement.data is not None:
        _report_accuracy(out, statement.data)
    return out


def _repaired(graph: onnx.ModelProto, statement: Statement, file: Path) -> list[str]:
    """Make a graph sound, of one input and one output, in place; return what was done.

    Raises:
        InputError: for a graph of several inputs, or of several outputs if none is named.
    """
    done = repair(graph)
    check_graph(graph, file)
    if len(graph.graph.input) != 1:
        raise InputError(
            f"{file}: has {len(graph.graph.input)} inputs; a segmentation network has one, the "
            "image"
        )
    notes = (take_output(graph, statement.take, file), add_batch_axis(graph))
    return [*done, *(note for note in notes if note)]


def _restated(graph: onnx.ModelProto, statement: Statement, file: Path) -> Contract:
    """Return the contract of the file `--like` with the stated fields.

    Raises:
        InputError: for a statement that the graph contradicts.
    """
    contract = stated_contract(file, statement, tensor_shape(graph.graph.input[0]), is_nhwc=False)
    _check_embedded(file, contract, statement)
    if statement.output is not None and contract.output in ("logits", "probabilities"):
        kind, is_nhwc = input_type(graph), contract.layout == "NHWC"
        found = run_once(graph, probe(contract, kind, is_nhwc=is_nhwc), file)
        contract, _ = with_kind(graph, contract, found, statement, file)
    is_decided = contract.output == "labels" and contract.upsampling is None
    if is_decided and "threshold" in statement.preprocessing:
        raise InputError(DECIDED.format(file=file))
    return contract


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
    try:
        found, split = _evaluated(adopted, data, _FRAMES)
    except InputError as error:  # the file is written, and a broken frame does not change it
        _LOG.info(f"{adopted}: its accuracy was not measured ({error})")
        return
    if found.miou is not None:
        _LOG.info(
            f"{adopted}: has {100 * found.miou:.2f} % mIoU on {found.frames} frames of "
            f"'{split}'; a value far below the network's own shows a wrong --channels, --mean, "
            "--std, --fit or --resize"
        )


def _evaluated(file: Path, data: Path, frames: int) -> tuple[Accuracy, str]:
    """Return the accuracy on the first frames of the split to validate on, and the split."""
    splits = open_dataset(data).splits
    split = "val" if "val" in splits else splits[-1]
    return evaluate(file, data, split=split, limit=frames), split


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
    image = probe(contract, kind, is_nhwc=contract.layout == "NHWC")
    _, problem = against_itself(graph, [image])(found)
    return (graph, []) if problem else (found, list(restored))


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
        statement = with_source(statement, statement.source, ())
    contract = stated_contract(file, statement, (), is_nhwc=statement.layout == "NHWC")
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

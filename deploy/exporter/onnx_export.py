"""`segdeploy export`: trace, annotate, prove, and only then write."""

from __future__ import annotations

import ast
import io
import time
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.errors import CheckFailed, InputError
from segdeploy.exporter.dilation import ConvProof, DilationProof, prove_dilations
from segdeploy.exporter.parity import SMALLEST_SIDE, Parity, check_parity, probe_shapes
from segdeploy.files import check_output
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import first_line
from segdeploy.network import LoadedNetwork, ModelSpec, load_network
from segdeploy.onnx_file import save_onnx, set_contract
from segdeploy.optimizer.optimize import Account, optimize_graph
from segdeploy.packages import require, versions
from segdeploy.spec import MODULE_KEY

if TYPE_CHECKING:
    import onnx

    from segdeploy.models.network import Network

OPSET = 20
# The attribute under which `Network` holds the user's own network.
_WRAPPER = "module."
_LARGEST_BATCH = 32
# Bounds of a dynamic graph, unless its own size lies outside.
_LARGEST_SIDE = 8192


@dataclass(frozen=True)
class ExportReport:
    """What `export` proved of the file that it wrote.

    `strangers` are convolutions of the graph that no module made: parity alone speaks for them.
    """

    path: Path
    bytes: int
    seconds: float
    convolutions: tuple[ConvProof, ...]
    strangers: tuple[str, ...]
    parity: tuple[Parity, ...]
    account: Account | None


def export(
    model: str | Path | ModelSpec,
    out: Path | str,
    *,
    dynamic: bool = False,
    optimized: bool = True,
    data: Path | str | None = None,
) -> ExportReport:
    """Export a network to ONNX, opset 20, input `image` (N, 3, H, W) float32, output `logits`.

    The graph is static at the contract's size and batch 1, or `dynamic` in batch, height and
    width; `optimized` applies the exact rewrites. Every convolution is compared with its PyTorch
    module and the outputs with PyTorch's, at several shapes where the graph is dynamic. `data` is
    a data set that names the classes of a network without a checkpoint.

    Raises:
        InputError, ModelInputError: for a network that cannot be made or exported.
        CheckFailed: if a proof fails; the graph is then kept as `NAME.rejected.onnx`.
    """
    started = time.perf_counter()
    out = check_output(Path(out), ".onnx")
    spec = ModelSpec.of(model)
    require("torch", "onnxscript", "onnxruntime")
    loaded = load_network(spec, open_dataset(Path(data)) if data else None)
    probed = {shape[2:] for shape in probe_shapes(loaded.contract.size, dynamic=dynamic)}
    for size in sorted(probed - {loaded.contract.size}):  # its own was tried when it was loaded
        loaded.network.fit(size)
    graph = trace(loaded.network, loaded.contract.size, dynamic=dynamic, name=spec.model)
    account = None
    if optimized:
        graph, account = optimize_graph(graph)
    contract = loaded.contract.derived(loaded.sha256 or "", versions("torch", "onnx", "onnxscript"))
    set_contract(graph, contract)
    dilations, parity = prove(loaded, graph, dynamic=dynamic)
    if failures := _failures(dilations.convolutions, parity):
        rejected = out.with_name(f"{out.stem}.rejected.onnx")
        save_onnx(graph, rejected)
        raise CheckFailed(f"{out}: not written; {failures}; the graph is kept as {rejected}")
    written = len(save_onnx(graph, out))
    return ExportReport(
        path=out,
        bytes=written,
        seconds=time.perf_counter() - started,
        convolutions=dilations.convolutions,
        strangers=dilations.strangers,
        parity=parity,
        account=account,
    )


def trace(network: Network, size: tuple[int, int], *, dynamic: bool, name: str) -> onnx.ModelProto:
    """Trace a network into ONNX; every node says which PyTorch module it came from.

    Raises:
        InputError: if PyTorch cannot express the network, with its own reason.
    """
    import torch
    from torch.export import Dim

    # Batch 1 would be specialised by torch.export, so a dynamic graph is traced with 2.
    sample = torch.zeros(2 if dynamic else 1, 3, *size)
    dynamic_shapes = None
    if dynamic:
        batch = Dim("batch", min=1, max=_LARGEST_BATCH)
        height, width = (
            Dim(name, min=min(SMALLEST_SIDE, side), max=max(_LARGEST_SIDE, side))
            for name, side in zip(("height", "width"), size, strict=True)
        )
        dynamic_shapes = ({0: batch, 2: height, 3: width},)
    network.eval()
    try:
        # PyTorch prints a failing graph, with the user's paths, before it raises the reason.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (sample,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"{name}: cannot be exported to ONNX: {_reason(error)}") from error
    if program is None:
        raise InputError(f"{name}: PyTorch's exporter returned no program")
    graph: onnx.ModelProto = program.model_proto
    _annotate(graph)
    return graph


def prove(
    loaded: LoadedNetwork, graph: onnx.ModelProto, *, dynamic: bool
) -> tuple[DilationProof, tuple[Parity, ...]]:
    """Compare a graph with the network it came from: convolution by convolution, and in numbers."""
    size = loaded.contract.size
    dilations = prove_dilations(loaded.network.module, size, graph)
    parity = check_parity(loaded.network, graph, probe_shapes(size, dynamic=dynamic))
    return dilations, tuple(parity)


def _failures(convolutions: tuple[ConvProof, ...], parity: tuple[Parity, ...]) -> str:
    said = [proof.complaint() for proof in convolutions if not proof.holds]
    said += [result.complaint() for result in parity if not result.holds]
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def _annotate(graph: onnx.ModelProto) -> None:
    """Name weights as the user's state dict does, and keep of the exporter's notes the module.

    The rest of the notes holds stack traces with the user's paths, which must not be shipped.
    """
    for node in graph.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        del node.metadata_props[:]
        module = _module_path(notes.get("pkg.torch.onnx.name_scopes"))
        if module is not None:
            node.metadata_props.add(key=MODULE_KEY, value=module)
        node.doc_string = ""
        node.input[:] = [_own_name(name) for name in node.input]
    for tensor in graph.graph.initializer:
        tensor.name = _own_name(tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    values: list[Any] = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    for value in values:
        value.name = _own_name(value.name)
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    graph.graph.doc_string = ""
    graph.doc_string = ""
    graph.graph.name = "segdeploy"


def _own_name(name: str) -> str:
    """A weight's name in the user's state dict, unless it is one that the graph's ends have."""
    own = name.removeprefix(_WRAPPER)
    return name if own in ("image", "logits") else own


def _module_path(scopes: str | None) -> str | None:
    if scopes is None:
        return None
    # A list's repr: the modules from the outermost in, then the operation itself.
    path = ast.literal_eval(scopes)
    if len(path) < 2:
        return None
    return str(path[-2]).removeprefix(_WRAPPER.rstrip(".")).removeprefix(".")

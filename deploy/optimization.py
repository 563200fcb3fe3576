"""`segdeploy optimize`: the exact rewrites on any ONNX file, ours or another exporter's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file
from segdeploy.onnx_check import check_graph
from segdeploy.onnx_file import find_contract, load_onnx, save_onnx, set_contract
from segdeploy.optimizer.optimize import Account, optimize_graph
from segdeploy.packages import require, versions

if TYPE_CHECKING:
    import onnx

# Of a dynamic graph that says nothing of its size.
_SIDE = 64


@dataclass(frozen=True)
class OptimizationReport:
    """What `optimize` did to a file; `bytes_before` counts weights that lay beside it, too."""

    path: Path
    bytes_before: int
    bytes: int
    seconds: float
    account: Account


def optimize(
    model: Path | str, out: Path | str, *, size: tuple[int, int] | None = None
) -> OptimizationReport:
    """Rewrite an ONNX file into a cheaper one with the same outputs, compared behind every pass.

    `size` is the (H, W) to compare a graph with dynamic height and width at, besides one more.

    Raises:
        InputError: for a file that cannot be read or run, or that has not one image input.
        CheckFailed: if a pass changed the outputs; nothing is written.
    """
    started = time.perf_counter()
    model = Path(model)
    out = check_output(Path(out), ".onnx", read_from=model)
    graph = load_onnx(model)
    check_graph(graph, model)
    require("onnxslim", "onnxruntime")
    contract = find_contract(graph, model)
    shapes = _shapes(model, graph, size or (contract.size if contract else None))
    rewritten, account = optimize_graph(graph, checked_at=shapes)
    if contract is not None:
        set_contract(
            rewritten, contract.derived(sha256_of_file(model), versions("onnx", "onnxslim"))
        )
    written = len(save_onnx(rewritten, out))
    return OptimizationReport(
        out, graph.ByteSize(), written, time.perf_counter() - started, account
    )


def _shapes(
    path: Path, graph: onnx.ModelProto, size: tuple[int, int] | None
) -> tuple[tuple[int, ...], ...]:
    """Input shapes to compare outputs at: the graph's own, or two where it leaves sizes open."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise InputError(f"{path}: has {len(inputs)} inputs; a segmentation network has one image")
    dims = inputs[0].type.tensor_type.shape.dim
    fixed = [d.dim_value for d in dims]  # 0 where it is dynamic
    if len(fixed) != 4:
        raise InputError(f"{path}: its input has {len(fixed)} dimensions; an image has four")
    if all(fixed):
        return (tuple(fixed),)
    height, width = size or (_SIDE, _SIDE)
    shapes = []
    for batch, more in ((1, 0), (2, 13)):
        if fixed[3] in (1, 3):
            open_sides = (batch, height + more, width + more, 3)
        else:
            open_sides = (batch, 3, height + more, width + more)
        shapes.append(tuple(side or free for side, free in zip(fixed, open_sides, strict=True)))
    return tuple(shapes)

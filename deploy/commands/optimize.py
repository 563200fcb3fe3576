"""`segdeploy optimize`: apply the exact rewrites to an ONNX file of any exporter."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdeploy.artifact import open_graph
from segdeploy.contract import MOST_CHANNELS
from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file
from segdeploy.models.errors import first_line
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.model_file import (
    keep_weights_in,
    save_onnx,
    set_contract,
)
from segdeploy.optimizer.optimize import RewriteReport, against_itself, optimize_graph
from segdeploy.output_lock import one_writer
from segdeploy.packages import require, versions
from segdeploy.proof.graph_session import random_input, run_graph

if TYPE_CHECKING:
    import onnx

# Height and width to compare a dynamic graph at, if its size is unknown.
_SIDE = 64
_LARGEST_INPUT = 1 << 28


@dataclass(frozen=True)
class OptimizationReport:
    """The result of `optimize`; `bytes_before` includes the external weight files."""

    path: Path
    bytes_before: int
    bytes: int
    seconds: float
    optimization: RewriteReport


@one_writer
def optimize(
    model: Path | str, out: Path | str, *, size: tuple[int, int] | None = None
) -> OptimizationReport:
    """Rewrite an ONNX file into a cheaper one with the same outputs, and compare the outputs.

    `size` is the (H, W) at which a graph with dynamic height and width is compared, besides a
    second size.

    Raises:
        InputError: for a file that cannot be read or run, or whose only input is not an image.
    """
    started = time.perf_counter()
    file = open_graph(model)
    model, graph = file.path, file.graph
    out = check_output(Path(out), ".onnx", read_from=model)
    check_graph(graph, model)
    require("onnxscript", "onnxruntime")
    contract = file.own_contract
    keep_weights_in(graph)
    size = size or (contract.size if contract else None)
    shapes = _runnable(model, graph, _shapes(model, graph, size))
    rewritten, optimization = optimize_graph(
        graph, check=against_itself(graph, [random_input(graph, one) for one in shapes])
    )
    check_graph(rewritten, model)
    if contract is not None:
        set_contract(
            rewritten, contract.derived(sha256_of_file(model), versions("onnx", "onnxscript"))
        )
    written = save_onnx(rewritten, out)
    return OptimizationReport(
        out, graph.ByteSize(), written, time.perf_counter() - started, optimization
    )


def _shapes(
    path: Path, graph: onnx.ModelProto, size: tuple[int, int] | None
) -> list[list[tuple[int, ...]]]:
    """Return the input shapes to compare outputs at: one for a static graph, two for a dynamic one.

    Each entry is a list of alternatives, since not every network takes an odd size or a batch of
    more than one image.
    """
    inputs = graph.graph.input
    if len(inputs) != 1:
        raise InputError(f"{path}: has {len(inputs)} inputs; a segmentation network has one input")
    taken = inputs[0].type.tensor_type
    if taken.elem_type not in (1, 2):  # TensorProto.FLOAT, UINT8
        raise InputError(f"{path}: its input is neither float32 nor uint8")
    fixed = [max(0, d.dim_value) for d in taken.shape.dim]  # 0 where it is dynamic
    if len(fixed) != 4:
        raise InputError(f"{path}: its input has {len(fixed)} dimensions; an image has four")
    if math.prod(side or 1 for side in fixed) > _LARGEST_INPUT:
        raise InputError(f"{path}: its input {fixed} is too large to be run here")
    height, width = size or (_SIDE, _SIDE)

    def shape(batch: int, more: int) -> tuple[int, ...]:
        sides = (height + more, width + more)
        free = (batch, *sides, 3) if 0 < fixed[3] <= MOST_CHANNELS else (batch, 3, *sides)
        return tuple(side or other for side, other in zip(fixed, free, strict=True))

    if all(fixed):
        return [[tuple(fixed)]]
    return [[shape(1, 0)], [shape(2, 13), shape(2, 32), shape(1, 13), shape(1, 32)]]


def _runnable(
    path: Path, graph: onnx.ModelProto, choices: list[list[tuple[int, ...]]]
) -> tuple[tuple[int, ...], ...]:
    """Return the first shape of each list at which the original graph runs.

    Raises:
        InputError: if the graph runs at no shape of the first list, or an output is not finite.
    """
    chosen = []
    for shapes in choices:
        problem = Exception("no shape to try")
        for shape in shapes:
            try:
                finite = all(
                    np.isfinite(output).all()
                    for output in run_graph(graph, [random_input(graph, shape)])[0]
                )
            except Exception as error:  # ONNX Runtime's classes share no base below Exception
                problem = error
                continue
            if not finite:
                raise InputError(f"{path}: the graph as given yields NaN or infinity for noise")
            chosen.append(shape)
            break
        if not chosen:
            raise InputError(
                f"{path}: cannot be run at {'x'.join(map(str, shapes[0]))} "
                f"({first_line(problem)}); give another --size"
            )
    return tuple(chosen)

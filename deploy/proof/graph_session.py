"""ONNX Runtime sessions of graphs in memory, for the proofs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.calibration.session import session_options
from segdeploy.contract import CALL_KEY, MODULE_KEY
from segdeploy.errors import CheckFailed
from segdeploy.onnx_graph.external_data import is_too_large, save_with_external_data
from segdeploy.onnx_graph.model_file import note_of
from segdeploy.proof.test_inputs import random_bytes, random_images

if TYPE_CHECKING:
    import onnx

Outputs = list[NDArray[Any]]


def runner(graph: onnx.ModelProto) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function that runs a graph of one input and returns the first output.

    Raises:
        CheckFailed: if the runtime refuses the graph. The returned function raises it, too, if the
            runtime cannot run the graph. The message names the node, its module and, for a run, the
            input's shape.
    """
    with _failing(graph):
        session = open_graph(graph)
    name = session.get_inputs()[0].name

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with _failing(graph, images):
            output: NDArray[Any] = session.run(None, {name: images})[0]
        return output

    return run


def run_values(
    graph: onnx.ModelProto, names: Sequence[str], images: NDArray[np.float32]
) -> Outputs:
    """Return the values of the tensors `names` inside a graph, for one input.

    Raises:
        CheckFailed: if the runtime refuses the graph or cannot run it.
    """
    with _failing(graph, images):
        session = open_graph(graph, names)
        outputs: Outputs = session.run(names, {session.get_inputs()[0].name: images})
    return outputs


@contextmanager
def _failing(graph: onnx.ModelProto, images: NDArray[Any] | None = None) -> Iterator[None]:
    """Convert every exception of the runtime to `CheckFailed`."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's classes share no base below Exception
        at = "" if images is None else f"at input {'x'.join(map(str, images.shape))} "
        raise CheckFailed(at + runtime_error(error, graph)) from error


def runtime_error(error: Exception, graph: onnx.ModelProto) -> str:
    """Return ONNX Runtime's error as one line, with the node and module that it concerns."""
    message = " ".join(str(error).split())
    named = next(
        (n for n in graph.graph.node if n.name and re.search(_named(n.name), message)), None
    )
    where = ""
    if named is not None:
        module = note_of(named, CALL_KEY) or note_of(named, MODULE_KEY)
        where = f" at node {named.name} ({named.op_type})" + (f" of {module}" if module else "")
    return f"ONNX Runtime cannot run the graph{where}: {message[:300]}"


def _named(node: str) -> str:
    return rf"(?<![\w.]){re.escape(node)}(?![\w.])"


def run_graph(graph: onnx.ModelProto, inputs: Sequence[NDArray[Any]]) -> list[Outputs]:
    """Return all outputs of a graph for each input."""
    session = open_graph(graph)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: given}) for given in inputs]


def random_input(graph: onnx.ModelProto, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return noise of a shape, or random bytes if the graph's input is uint8."""
    takes_bytes = graph.graph.input[0].type.tensor_type.elem_type == 2  # TensorProto.UINT8
    return random_bytes(shape) if takes_bytes else random_images(shape)


def open_graph(graph: onnx.ModelProto, values: Iterable[str] = ()) -> Any:
    """Open an ONNX Runtime session on a graph in memory; `values` become additional outputs."""
    import onnx
    import onnxruntime as ort

    there = {output.name for output in graph.graph.output}
    if wanted := [onnx.ValueInfoProto(name=value) for value in values if value not in there]:
        copied = onnx.ModelProto()
        copied.CopyFrom(graph)
        copied.graph.output.extend(wanted)
        graph = copied
    options = session_options()
    providers = ["CPUExecutionProvider"]
    if not is_too_large(graph):
        return ort.InferenceSession(graph.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        save_with_external_data(graph, path)
        return ort.InferenceSession(path, options, providers=providers)

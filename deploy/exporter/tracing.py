"""Tracing of a PyTorch module to an ONNX graph in which every node names its source module."""

from __future__ import annotations

import ast
import io
import re
import traceback
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import MODULE_KEY
from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.onnx_graph.model_file import all_graphs
from segdeploy.profiles import Bounds

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET = 20
OPSETS = range(18, 24)  # the opsets that PyTorch's exporter writes
# Attribute paths of the user's network in `MultiScaleInput` around `Network`, and in `Network`.
_WRAPPERS = ("base_model.module.", "module.")


def trace(
    network: nn.Module,
    size: tuple[int, int],
    *,
    dynamic: bool,
    name: str,
    channels: int = 3,
    bounds: Bounds | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Trace a network into ONNX; every node names its source PyTorch module.

    The exporter's own optimizer is off. The graph has a node for every operator that ran, and
    segdeploy proves every later rewrite itself.

    Raises:
        InputError: if PyTorch cannot export the network, with PyTorch's reason.
    """
    import torch
    from torch.export import Dim

    from segdeploy.exporter.translations import translations

    # torch.export specializes a batch of 1, so a dynamic graph is traced with a batch of 2.
    sample = torch.zeros(2 if dynamic else 1, channels, *size)
    dynamic_shapes = None
    if dynamic:
        bounds = bounds or Bounds().around(size)
        batch = Dim("batch", min=1, max=bounds.batch)
        step = bounds.multiple
        height, width = (
            step * Dim(f"{name}_over_{step}", min=low // step, max=high // step)
            if step > 1
            else Dim(name, min=low, max=high)
            for name, low, high in zip(
                ("height", "width"), bounds.smallest, bounds.largest, strict=True
            )
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
                opset_version=opset,
                optimize=False,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"{name}: cannot be exported to ONNX: {_reason(error)}") from error
    if program is None:
        raise InputError(f"{name}: PyTorch's exporter returned no program")
    graph: onnx.ModelProto = program.model_proto
    if dynamic:
        assert bounds is not None
        _check_dynamic(program, graph, bounds, name)
    _annotate(graph)
    return graph


def _check_dynamic(program: Any, graph: onnx.ModelProto, bounds: Bounds, name: str) -> None:
    """Refuse a graph whose sizes PyTorch narrowed silently, because the code depends on them.

    Raises:
        InputError: with the dimension, and the sizes that PyTorch traced.
    """
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    fixed = [
        f"{what} {dims[axis].dim_value}"
        for axis, what in ((0, "batch"), (2, "height"), (3, "width"))
        if dims[axis].HasField("dim_value")
    ]
    if fixed:
        raise InputError(
            f"{name}: the network's code needs a fixed size, and PyTorch traced only "
            f"{', '.join(fixed)}; export it without --dynamic"
        )
    for axis, what in ((2, "height"), (3, "width")):  # instead of `32*height_over_32`
        if bounds.multiple > 1:
            dims[axis].dim_param = what
    limits = program.exported_program.range_constraints
    sample = next(
        node.meta["val"]
        for node in program.exported_program.graph.nodes
        if node.op == "placeholder"
        and node.meta["val"].ndim == 4
        and node.users
        and not isinstance(node.meta["val"].shape[2], int)
    )
    wanted = ((2, "height", 0), (3, "width", 1))
    for axis, what, place in wanted:
        low = bounds.smallest[place] // bounds.multiple
        high = bounds.largest[place] // bounds.multiple
        symbol = sample.shape[axis].node.expr / bounds.multiple
        allowed = limits.get(symbol)
        if allowed is None:
            raise InputError(
                f"{name}: the network's code takes only a {what} of the form {symbol}; "
                "export it without --dynamic"
            )
        if allowed.lower > low or allowed.upper < high:
            raise InputError(
                f"{name}: the network's code branches on the {what}, and PyTorch traced it for "
                f"{allowed.lower} to {allowed.upper}; give --min-size and --max-size within this "
                "range, or export it without --dynamic"
            )


def _reason(error: BaseException) -> str:
    """Return PyTorch's reason, and the line of the user's code that caused the error."""
    import torch

    cause = error.__cause__ or error
    missing = _missing_operator(cause)
    if missing:
        return missing
    message = f"{type(cause).__name__}: {first_line(cause)}"
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent), "<")
    frames = traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    if own:
        message += f"; at {Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}"
    return message


def _missing_operator(error: BaseException) -> str | None:
    """Return the operator that PyTorch cannot export to ONNX, and the user's line that calls it.

    The exception contains neither. The exporter's own stack frames still hold the node.
    """
    import torch

    frames = traceback.walk_tb(error.__traceback__)
    nodes = [v for f, _ in frames for v in f.f_locals.values() if isinstance(v, torch.fx.Node)]
    if not nodes:
        return None
    message = (
        f"operator {nodes[-1].target} has no ONNX form for its arguments; "
        "rewrite the code with other operators"
    )
    places = re.findall(r'File "(.+)", line (\d+), .*\n(.*)', str(nodes[-1].stack_trace))
    if places:
        path, number, line = places[-1]
        message += f"; at {Path(path).name}, line {number}: {line.strip()}"
    return message


def _annotate(graph: onnx.ModelProto) -> None:
    """Rename weights as in the user's state dict; keep only the module of the exporter's metadata.

    The other metadata contains stack traces with the user's paths, which must not be shipped.
    """
    for inner in all_graphs(graph.graph):  # a branch's subgraph reads weights of the outer graph
        for node in inner.node:
            notes = {entry.key: entry.value for entry in node.metadata_props}
            del node.metadata_props[:]
            module = _module_path(notes.get("pkg.torch.onnx.name_scopes"))
            if module is not None:
                node.metadata_props.add(key=MODULE_KEY, value=module)
            node.doc_string = ""
            node.input[:] = [_own_name(name) for name in node.input]
        del inner.metadata_props[:]
        inner.doc_string = ""
    for tensor in graph.graph.initializer:
        tensor.name = _own_name(tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    values: list[Any] = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    for value in values:
        value.name = _own_name(value.name)
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    graph.graph.name = "segdeploy"


def _own_name(name: str) -> str:
    """Return a weight's name in the user's state dict, unless a graph input or output has it."""
    own = _unwrapped(name)
    return name if own in ("image", "logits") else own


def _module_path(scopes: str | None) -> str | None:
    if scopes is None:
        return None
    # The repr of a list: the modules from outermost to innermost, then the operation itself.
    path = ast.literal_eval(scopes)
    if len(path) < 2:
        return None
    return _unwrapped(f"{path[-2]}.").rstrip(".")


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper):
            return name.removeprefix(wrapper)
    return name

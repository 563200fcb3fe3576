"""FP16 and BF16: a typed graph, with FP32 islands where a value would not fit.

Every floating-point value gets the type of the node that gives it, and a Cast stands where a node
of one type reads a value of the other. TensorRT's strongly typed networks compute what is written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from segdeploy.calibration.errors import CalibrationInputError

FP16_LARGEST = 65504.0
_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# Inputs that the operator's definition wants in float32, whatever its data is.
_ALWAYS_FLOAT = {"Resize": (1, 2)}
_BF16_OPSET = 22
_HALF_SCALES_OPSET = 19
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_NOT_IN_BF16 = ("HardSwish",)  # TensorRT-RTX 1.7


@dataclass(frozen=True)
class HalfGraph:
    """A typed graph, the nodes that stayed FP32, and the constants that had to be clamped."""

    model: onnx.ModelProto
    kept: tuple[str, ...]
    clamped: tuple[str, ...]


def to_half(
    model: onnx.ModelProto,
    *,
    precision: str = "fp16",
    kept: Collection[str] = (),
    keep_ends: bool = True,
) -> HalfGraph:
    """Convert a copy of an FP32 graph, but for the nodes `kept` by name.

    With `keep_ends` the input and output stay float32. A constant beyond FP16's range is clamped,
    and named. Q/DQ nodes are typed with the rest: their scales become half, their integers stay.

    Raises:
        CalibrationInputError: if the graph is typed already, holds control flow, or has an opset
            without BF16.
    """
    half = _TYPES[precision]
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if precision == "bf16" and opset < _BF16_OPSET:
        raise CalibrationInputError(
            f"half precision: opset {opset} has no BF16 convolution; export with "
            f"--opset {_BF16_OPSET}"
        )
    if opset < _HALF_SCALES_OPSET and any(n.op_type in _QDQ for n in model.graph.node):
        raise CalibrationInputError(
            f"half precision: opset {opset} has no half scales for Q/DQ; export with --opset 20"
        )
    kept = {*kept, *(n.name for n in model.graph.node if _refused(n, precision))}
    # Types are read off the values, so they must all be known.
    typed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    _check(typed.graph)
    kept_nodes = tuple(node.name or "" for node in typed.graph if node.name in kept)
    clamped: list[str] = []
    casts: dict[tuple[str, ir.DataType], ir.Value] = {}
    constants: dict[tuple[str, ir.DataType], ir.Value] = {}
    graph = typed.graph
    outputs = list(graph.outputs)
    for node in list(graph):
        own = ir.DataType.FLOAT if node.name in kept else half
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, half):
                continue
            wanted = own
            if index in _ALWAYS_FLOAT.get(node.op_type, ()):
                wanted = ir.DataType.FLOAT
            if value.dtype is wanted:
                continue
            key = (value.name or "", wanted)
            if value.const_value is not None and value.is_initializer():
                if key not in constants:
                    constants[key] = _constant(graph, value, wanted, clamped)
                node.replace_input_with(index, constants[key])
            else:
                if key not in casts:
                    casts[key] = _cast(graph, node, value, wanted)
                node.replace_input_with(index, casts[key])
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", own)
        for output in node.outputs:
            if output.dtype is ir.DataType.FLOAT and _follows(node):
                output.type = ir.TensorType(own)
    for index, output in enumerate(outputs):
        if output.dtype is half and keep_ends:
            _restore(graph, index, output)
    if not keep_ends:
        for given in graph.inputs:
            if given.dtype is ir.DataType.FLOAT:
                _retype_input(graph, given, half)
    _drop_unused(graph)
    return HalfGraph(ir.to_proto(typed), kept_nodes, tuple(clamped))


def _check(graph: ir.Graph) -> None:
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _own(node)):
            raise CalibrationInputError(
                f"half precision: node '{node.name}' ({node.op_type}) holds a graph of its own, "
                "which is not converted; export without control flow"
            )
        for value in node.outputs:
            if value.dtype is None:
                raise CalibrationInputError(
                    f"half precision: the type of '{value.name}' is not known; run "
                    "`segdeploy optimize` on the graph first"
                )
            if value.dtype in _TYPES.values():
                raise CalibrationInputError(
                    f"half precision: '{value.name}' is {value.dtype.name} already; "
                    "convert the FP32 graph that it came from"
                )


def _own(node: ir.Node) -> Sequence[ir.Attr]:
    return [a for a in node.attributes.values() if isinstance(a, ir.Attr)]


def _refused(node: onnx.NodeProto, precision: str) -> bool:
    """Whether TensorRT's parser takes a node in FP16 alone."""
    return precision == "bf16" and node.op_type in _NOT_IN_BF16


def _follows(node: ir.Node) -> bool:
    """Whether a node's floating-point output has the type of its inputs."""
    return node.op_type not in ("Constant", "ConstantOfShape", "RandomNormal", "RandomUniform")


def _constant(
    graph: ir.Graph, value: ir.Value, wanted: ir.DataType, clamped: list[str]
) -> ir.Value:
    """A copy of an initializer in another type; what is beyond it becomes its largest."""
    assert value.const_value is not None
    values = value.const_value.numpy()
    if wanted is ir.DataType.FLOAT16:
        largest = float(np.abs(values).max()) if values.size else 0.0
        if largest > FP16_LARGEST:
            clamped.append(value.name or "")
            values = np.clip(values, -FP16_LARGEST, FP16_LARGEST)
    name = f"{value.name}_{wanted.name.lower()}"
    tensor = ir.tensor(values.astype(_NUMPY[wanted]), name=name)
    made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted), const_value=tensor)
    graph.register_initializer(made)
    return made


def _cast(graph: ir.Graph, reader: ir.Node, value: ir.Value, wanted: ir.DataType) -> ir.Value:
    name = f"{value.name}_{wanted.name.lower()}"
    made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted))
    node = ir.Node(
        "", "Cast", [value], [ir.AttrInt64("to", wanted)], name=f"{name}_cast", outputs=[made]
    )
    graph.insert_before(reader, node)
    return made


def _restore(graph: ir.Graph, index: int, output: ir.Value) -> None:
    """Let an output be float32 again, under the name that it had."""
    producer = output.producer()
    assert producer is not None
    final = ir.Value(name=output.name, shape=output.shape, type=ir.TensorType(ir.DataType.FLOAT))
    output.name = f"{output.name}_half"
    attribute = ir.AttrInt64("to", ir.DataType.FLOAT)
    node = ir.Node("", "Cast", [output], [attribute], name=f"{output.name}_cast", outputs=[final])
    graph.insert_after(producer, node)
    graph.outputs[index] = final


def _retype_input(graph: ir.Graph, given: ir.Value, half: ir.DataType) -> None:
    """Let an input be half: its Cast to half goes, and FP32 readers get one of their own."""
    given.type = ir.TensorType(half)
    up: ir.Value | None = None
    for use in list(given.uses()):
        node = use.node
        if node.op_type == "Cast" and node.outputs[0].dtype is half:
            node.outputs[0].replace_all_uses_with(given, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        elif node.op_type != "Cast":
            up = up or _cast(graph, next(iter(graph)), given, ir.DataType.FLOAT)
            node.replace_input_with(use.idx, up)


def _drop_unused(graph: ir.Graph) -> None:
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


_NUMPY = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def is_half(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in FP16 or BF16 anywhere."""
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    to_half = (a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute)
    kinds = [t.data_type for t in model.graph.initializer]
    kinds += [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    return any(kind in halves for kind in (*kinds, *to_half))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph that computes what a typed one does: every half value is rounded to half.

    ONNX Runtime has no half kernels on CPUs; it computes such nodes in FP32 and leaves the rounding
    between them out, so that neither their error nor their overflow shows.
    """
    graph_of = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = graph_of.graph
    halves = tuple(_TYPES.values())
    for value in graph.initializers.values():
        if value.dtype in halves:
            assert value.const_value is not None
            values = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(values, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for given in graph.inputs:
        if given.dtype in halves:
            _round(graph, given, next(iter(graph)), after=False)
    for node in list(graph):
        half = next((value.dtype for value in node.outputs if value.dtype in halves), None)
        if half is None:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        for value in node.outputs:
            if value.dtype in halves:
                _round(graph, value, node, after=True)
    return ir.to_proto(graph_of)


def _round(graph: ir.Graph, value: ir.Value, place: ir.Node, *, after: bool) -> None:
    """Retype `value` as float32, and let its readers have it cast to half and back."""
    half = value.dtype
    assert half is not None
    value.type = ir.TensorType(ir.DataType.FLOAT)
    readers = list(value.uses())
    small = ir.Value(name=f"{value.name}_rounded", shape=value.shape, type=ir.TensorType(half))
    back = ir.Value(name=f"{value.name}_read", shape=value.shape, type=value.type)
    casts = [
        ir.Node("", "Cast", [source], [ir.AttrInt64("to", kind)], name=f"{made.name}_cast",
                outputs=[made])
        for source, kind, made in ((value, half, small), (small, ir.DataType.FLOAT, back))
    ]  # fmt: skip
    if after:
        graph.insert_after(place, casts)
    else:
        graph.insert_before(place, casts)
    for use in readers:
        use.node.replace_input_with(use.idx, back)
    if value.is_graph_output():
        index = list(graph.outputs).index(value)
        back.name, value.name = value.name, f"{value.name}_exact"
        graph.outputs[index] = back

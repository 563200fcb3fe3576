"""Conversion of a graph to FP16 or BF16, with FP32 fallbacks for values that do not fit.

Every floating-point tensor gets the type of the node that produces the tensor. A Cast is inserted
where a node of one type reads a tensor of the other. TensorRT's strongly typed networks compute in
these types.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from segdeploy.calibration.errors import CalibrationInputError

FP16_LARGEST = 65504.0
_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# Inputs that the operator defines as float32, whatever the type of its data.
_ALWAYS_FLOAT = {"Resize": (1, 2)}
_BF16_OPSET = 22
_HALF_SCALES_OPSET = 19
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_NOT_IN_BF16 = ("HardSwish",)  # TensorRT-RTX 1.7


@dataclass(frozen=True)
class HalfGraph:
    """A typed graph, the nodes that stayed FP32, and the constants that were clamped, by name."""

    model: onnx.ModelProto
    kept: tuple[str, ...]
    clamped: tuple[str, ...]


def to_half(
    model: onnx.ModelProto,
    *,
    precision: str = "fp16",
    kept: Collection[str] = (),
    keep_io: bool = True,
) -> HalfGraph:
    """Convert a copy of an FP32 graph to `precision`; the nodes named in `kept` stay FP32.

    With `keep_io` the graph input and output stay float32. A constant beyond the FP16 range is
    clamped, and named in the result. Q/DQ nodes are converted as well: their scales become FP16 or
    BF16, and their integers stay.

    Raises:
        CalibrationInputError: if the graph is typed already, holds control flow or a tensor of
            unknown type, or its opset is too old for BF16 or for 16-bit scales.
    """
    half = _TYPES[precision]
    _check_opset(model, precision)
    kept = {*kept, *(n.name for n in model.graph.node if _refused(n, precision))}
    # The type of every tensor must be known.
    typed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = typed.graph
    _check(graph)
    kept_nodes = tuple(node.name or "" for node in graph if node.name in kept)
    outputs, conversion = list(graph.outputs), _Conversion(graph, half)
    for node in list(graph):
        conversion.convert(node, ir.DataType.FLOAT if node.name in kept else half)
    if keep_io:
        for index, output in enumerate(outputs):
            if output.dtype is half:
                _restore(graph, index, output)
    else:
        for given in graph.inputs:
            if given.dtype is ir.DataType.FLOAT:
                _retype_input(graph, given, half)
    RemoveUnusedNodesPass()(typed)
    return HalfGraph(ir.to_proto(typed), kept_nodes, tuple(conversion.clamped))


class _Conversion:
    """Converts the nodes of one graph; each tensor is cast once to each type."""

    def __init__(self, graph: ir.Graph, half: ir.DataType):
        self._graph, self._half = graph, half
        self._converted: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.clamped: list[str] = []

    def convert(self, node: ir.Node, own: ir.DataType) -> None:
        """Give a node inputs and outputs of the type `own`."""
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, self._half):
                continue
            is_float = index in _ALWAYS_FLOAT.get(node.op_type, ())
            wanted = ir.DataType.FLOAT if is_float else own
            if value.dtype is not wanted:
                node.replace_input_with(index, self._cast(node, value, wanted))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", own)
        for output in node.outputs:
            if output.dtype is ir.DataType.FLOAT and _follows(node):
                output.type = ir.TensorType(own)

    def _cast(self, node: ir.Node, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return the value in the type `wanted`: a converted constant, or the output of a Cast."""
        key = (value.name or "", wanted)
        if key not in self._converted:
            is_constant = value.const_value is not None and value.is_initializer()
            self._converted[key] = (
                _constant(self._graph, value, wanted, self.clamped)
                if is_constant
                else _cast(self._graph, node, value, wanted)
            )
        return self._converted[key]


def _check_opset(model: onnx.ModelProto, precision: str) -> None:
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if precision == "bf16" and opset < _BF16_OPSET:
        raise CalibrationInputError(
            f"half precision: opset {opset} has no BF16 convolution; convert the graph to opset "
            f"{_BF16_OPSET}"
        )
    if opset < _HALF_SCALES_OPSET and any(n.op_type in _QDQ for n in model.graph.node):
        raise CalibrationInputError(
            f"half precision: opset {opset} has no 16-bit scales for Q/DQ; convert the graph to "
            f"opset {_HALF_SCALES_OPSET}"
        )


def _check(graph: ir.Graph) -> None:
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _own(node)):
            raise CalibrationInputError(
                f"half precision: node '{node.name}' ({node.op_type}) holds a subgraph, "
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
                    "convert the original FP32 graph"
                )


def _own(node: ir.Node) -> Sequence[ir.Attr]:
    return [a for a in node.attributes.values() if isinstance(a, ir.Attr)]


def _refused(node: onnx.NodeProto, precision: str) -> bool:
    """Return whether TensorRT's parser supports a node in FP16 but not in BF16."""
    return precision == "bf16" and node.op_type in _NOT_IN_BF16


def _follows(node: ir.Node) -> bool:
    """Return whether a node's floating-point output has the type of its inputs."""
    return node.op_type not in ("Constant", "ConstantOfShape", "RandomNormal", "RandomUniform")


def _constant(
    graph: ir.Graph, value: ir.Value, wanted: ir.DataType, clamped: list[str]
) -> ir.Value:
    """Return a copy of an initializer in another type, with values clamped to the FP16 range."""
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
    """Cast a graph output back to float32, under its original name."""
    producer = output.producer()
    assert producer is not None
    final = ir.Value(name=output.name, shape=output.shape, type=ir.TensorType(ir.DataType.FLOAT))
    output.name = f"{output.name}_half"
    attribute = ir.AttrInt64("to", ir.DataType.FLOAT)
    node = ir.Node("", "Cast", [output], [attribute], name=f"{output.name}_cast", outputs=[final])
    graph.insert_after(producer, node)
    graph.outputs[index] = final


def _retype_input(graph: ir.Graph, given: ir.Value, half: ir.DataType) -> None:
    """Retype a graph input; its Cast to `half` is removed, and FP32 readers get a Cast back."""
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


_NUMPY = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def is_half(model: onnx.ModelProto) -> bool:
    """Return whether a graph computes in FP16 or BF16 anywhere."""
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    to_half = (a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute)
    kinds = [t.data_type for t in model.graph.initializer]
    kinds += [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    return any(kind in halves for kind in (*kinds, *to_half))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 graph that emulates a typed one: FP16 and BF16 values are rounded explicitly.

    ONNX Runtime has no FP16 or BF16 kernels on CPUs. It computes such nodes in FP32 and omits the
    rounding between them, which hides their rounding error and their overflow.
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
    """Retype `value` as float32, and insert a cast to its 16-bit type and back for its readers."""
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

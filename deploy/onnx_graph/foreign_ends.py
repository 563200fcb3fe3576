"""Bring the graph of another tool to a form that a contract describes, by exact edits.

The input becomes float32 `(N, C, H, W)`, or stays uint8 `(N, H, W, C)`. The output becomes scores
`(N, C, H, W)` or labels `(N, H, W) uint8`. Casts, transposes, squeezes and a last upsampling are
added. The operators of the network stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.onnx_graph.model_file import (
    all_graphs,
    input_values,
    keep_weights_in,
    opset_of,
    tensor_shape,
)

if TYPE_CHECKING:
    import onnx

_LEAST_IR = 4  # before, every weight had to be an input
_HALVES = ("float16", "bfloat16")
_MODES = {"half-pixel": "half_pixel", "align-corners": "align_corners"}


def repair(graph: onnx.ModelProto) -> list[str]:
    """Sort the nodes and raise an IR version that lists weights as inputs; return what was done."""
    done = []
    if graph.ir_version < _LEAST_IR:
        done.append(f"raised its IR version from {graph.ir_version} to {_LEAST_IR}")
        graph.ir_version = _LEAST_IR
    keep_weights_in(graph)
    if _sort(graph.graph):
        done.append("sorted its nodes, which were not in the order of execution")
    return done


def _sort(graph: onnx.GraphProto) -> bool:
    """Sort the nodes in place, so that every value is computed before it is read.

    Return whether the order changed. Nodes of a cycle stay at the end, for ONNX's checker.
    """
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    reads = [{makers[name] for name in _names_read(node) & makers.keys()} for node in graph.node]
    readers: list[list[int]] = [[] for _ in reads]
    for at, needed in enumerate(reads):
        for maker in needed:
            readers[maker].append(at)
    missing = [len(needed) for needed in reads]
    if all(maker < at for at, needed in enumerate(reads) for maker in needed):
        return False
    order = [at for at, count in enumerate(missing) if not count]
    for at in order:  # grows while it is read
        for reader in readers[at]:
            missing[reader] -= 1
            if not missing[reader]:
                order.append(reader)
    order += [at for at, count in enumerate(missing) if count]
    nodes = [graph.node[at] for at in order]
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those of its subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            for part in all_graphs(inner):
                names |= {name for one in part.node for name in one.input}
                names |= {value.name for value in part.output}
    return names


def take_output(graph: onnx.ModelProto, take: str | None, path: Path) -> str | None:
    """Keep one output of a graph in place; return a note on the others that were cut off.

    Raises:
        InputError: if there are several outputs and `take` names none of them, or no output.
    """
    outputs = {value.name: value for value in graph.graph.output}
    described = ", ".join(f"{name} {shape_text(tensor_shape(v))}" for name, v in outputs.items())
    if take is not None and take not in outputs:
        raise InputError(f"{path}: --take {take}: no such output; the graph has {described}")
    if len(outputs) > 1 and take is None:
        raise InputError(
            f"{path}: has {len(outputs)} outputs ({described}); name the one with the scores or "
            "labels: --take NAME"
        )
    if not outputs:
        raise InputError(f"{path}: has no output")
    if len(outputs) == 1:
        return None
    kept = outputs[take or ""]
    del graph.graph.output[:]
    graph.graph.output.append(kept)
    _remove_unread(graph.graph)
    others = ", ".join(name for name in outputs if name != take)
    return f"took the output {take}; cut off {others}"


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes and weights that no output needs, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= _names_read(node)
            kept.append(node)
    if len(kept) == len(graph.node):
        return
    copies = [type(node)() for node in kept]
    for copy, node in zip(copies, kept, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(reversed(copies))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    held = [type(tensor)() for tensor in weights]
    for one, tensor in zip(held, weights, strict=True):
        one.CopyFrom(tensor)
    del graph.initializer[:]
    graph.initializer.extend(held)


def shape_text(shape: tuple[int | str, ...]) -> str:
    """Return a shape such as `(1, 3, height, width)`."""
    return f"({', '.join(map(str, shape))})"


def add_batch_axis(graph: onnx.ModelProto) -> str | None:
    """Give an input of three axes a batch axis of 1, in place; return what was done."""
    from onnx import helper, numpy_helper

    taken = graph.graph.input[0]
    dims = taken.type.tensor_type.shape.dim
    if len(dims) != 3:
        return None
    inner = _free(graph.graph, f"{taken.name}_as_given")
    _rename(graph.graph, taken.name, inner)
    if opset_of(graph) < 13:  # before, the axes were an attribute
        squeeze = helper.make_node("Squeeze", [taken.name], [inner], inner, axes=[0])
    else:
        axes = _free(graph.graph, f"{taken.name}_axes")
        graph.graph.initializer.append(numpy_helper.from_array(np.array([0]), axes))
        squeeze = helper.make_node("Squeeze", [taken.name, axes], [inner], inner)
    graph.graph.node.insert(0, squeeze)
    dims.insert(0, _dim(1))
    return "added a batch axis to its input"


def input_type(graph: onnx.ModelProto) -> str:
    """Return the type of the graph's input, such as `float` or `uint8`."""
    import onnx

    kind = input_values(graph)[0].type.tensor_type.elem_type
    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def conform_input(graph: onnx.ModelProto, *, is_nhwc: bool) -> list[str]:
    """Make the input float32 `(N, C, H, W)` in place, unless it is uint8 `(N, H, W, C)`.

    `is_nhwc` says that the channels are the last axis. Return what was done. FP16 inputs stay FP16,
    since the runtimes convert them.
    """
    from onnx import TensorProto, helper

    kind = input_type(graph)
    if kind == "uint8" and is_nhwc:
        return ["exchanged a Transpose and the Cast after it, since TensorRT transposes no bytes"
                ] if _exchange_transpose(graph) else []  # fmt: skip
    if kind in ("float", *_HALVES) and not is_nhwc:
        return []
    taken = graph.graph.input[0]
    inner = _free(graph.graph, f"{taken.name}_as_given")
    _rename(graph.graph, taken.name, inner)
    nodes, done, last = [], [], taken.name
    if is_nhwc:
        made = inner
        if kind not in ("float", *_HALVES):
            made = _free(graph.graph, f"{taken.name}_transposed")
        perm = [0, 2, 3, 1]
        nodes.append(helper.make_node("Transpose", [last], [made], made, perm=perm))
        done.append("transposed its input (N, H, W, C) to (N, C, H, W)")
        last = made
    if kind not in ("float", *_HALVES):
        cast = _cast_to_float(graph.graph, inner)
        if cast is not None:  # the graph's own conversion to float is not needed any more
            _rename(graph.graph, cast.output[0], last)
            graph.graph.node.remove(cast)
        else:
            dtype = taken.type.tensor_type.elem_type
            nodes.append(helper.make_node("Cast", [last], [inner], inner, to=dtype))
        done.append(f"converted its {kind} input to float32, whose values stay those of the image")
        taken.type.tensor_type.elem_type = TensorProto.FLOAT
    if is_nhwc:
        _permute(taken, (0, 3, 1, 2))
    for place, node in enumerate(nodes):
        graph.graph.node.insert(place, node)
    return done


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all nodes that read `old` read `new`, in subgraphs, too."""
    for part in all_graphs(graph):
        for node in part.node:
            node.input[:] = [new if name == old else name for name in node.input]


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [node for part in all_graphs(graph) for node in part.node if name in node.input]


def _cast_to_float(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """Return the Cast to float32 that alone reads `name`, or None."""
    from onnx import TensorProto

    readers = _readers(graph, name)
    if len(readers) != 1 or readers[0].op_type != "Cast" or readers[0] not in graph.node:
        return None
    return readers[0] if readers[0].attribute[0].i == TensorProto.FLOAT else None


def _exchange_transpose(graph: onnx.ModelProto) -> bool:
    """Move a Transpose of the input's bytes behind the Cast that follows, if there are these two.

    The two exchange their operators and attributes, so that all names stay.
    """
    first = _readers(graph.graph, graph.graph.input[0].name)
    if len(first) != 1 or first[0].op_type != "Transpose":
        return False
    second = _readers(graph.graph, first[0].output[0])
    if len(second) != 1 or second[0].op_type != "Cast":
        return False
    transpose, cast = first[0], second[0]
    held = type(transpose)()
    held.CopyFrom(transpose)
    for node, other in ((transpose, cast), (cast, held)):
        node.op_type = other.op_type
        attributes = list(other.attribute)
        del node.attribute[:]
        node.attribute.extend(attributes)
    del graph.graph.value_info[:]  # the shape and the type between the two are others now
    return True


def _permute(value: onnx.ValueInfoProto, order: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape.dim
    copies = [type(dim)() for dim in dims]
    for copy, dim in zip(copies, dims, strict=True):
        copy.CopyFrom(dim)
    del dims[:]
    dims.extend(copies[at] for at in order)


def is_label_map(output: NDArray[Any], channels: int) -> bool:
    """Return whether an output holds class ids, as integers or as whole numbers in floats.

    Float scores have `channels` channels. A map of one channel or without channels, of whole
    numbers, holds ids.
    """
    if output.dtype.kind in "iub":
        return True
    has_scores = output.ndim == 4 and channels in (output.shape[1], output.shape[3])
    return not has_scores and bool((output == np.rint(output)).all())


_MOVES = frozenset(
    ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Resize", "Upsample")
)


def _last_operator(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Return the node that computes the only output, before nodes that move or convert values."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    return node


def ends_in_sigmoid(graph: onnx.ModelProto) -> bool:
    """Return whether the scores of a graph are those of a sigmoid."""
    last = _last_operator(graph.graph)
    return last is not None and last.op_type in ("Sigmoid", "HardSigmoid")


def compared_classes(graph: onnx.ModelProto) -> int | None:
    """Return how many scores the ArgMax at the end of a graph compares; None if that is untold."""
    import onnx

    last = _last_operator(graph.graph)
    if last is None or last.op_type != "ArgMax":
        return None
    axis = next((one.i for one in last.attribute if one.name == "axis"), 0)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.input)}
    value = known.get(last.input[0])
    shape = () if value is None else tensor_shape(value)
    count = shape[axis] if -len(shape) <= axis < len(shape) else None
    return count if isinstance(count, int) else None


def conform_labels(graph: onnx.ModelProto, output: NDArray[Any]) -> list[str]:
    """Make an output of class ids `(N, H, W) uint8`, in place; return what was done."""
    done, given = [], graph.graph.output[0]
    axes = [axis for axis in (1, 3) if output.ndim == 4 and output.shape[axis] == 1]
    if axes:
        _append(graph, "Squeeze", "labels_squeezed", axes=axes[:1])
        dims = given.type.tensor_type.shape.dim
        if len(dims) == output.ndim:
            del dims[axes[0]]
        done.append("removed the channel axis of its labels")
    if output.ndim == 2:
        _append(graph, "Unsqueeze", "labels_batch", axes=[0])
        done.append("added a batch axis to its labels")
        given.type.tensor_type.shape.dim.insert(0, _dim(1))
    if output.dtype != np.uint8:
        from onnx import TensorProto

        _append(graph, "Cast", "labels_uint8", to=TensorProto.UINT8)
        given.type.tensor_type.elem_type = TensorProto.UINT8
        done.append(f"converted its labels from {output.dtype} to uint8")
    return done


def conform_scores(
    graph: onnx.ModelProto,
    output: NDArray[Any],
    channels: int,
    size: tuple[int, int],
    upsampling: str | None,
) -> list[str]:
    """Make an output of scores `(N, C, H, W)` of the input's `size`, in place.

    `upsampling` says how smaller maps are enlarged, `half-pixel` or `align-corners`. Return what
    was done.
    """
    done, given = [], graph.graph.output[0]
    shape = output.shape
    if output.ndim == 3:
        _append(graph, "Unsqueeze", "scores_batch", axes=[0])
        given.type.tensor_type.shape.dim.insert(0, _dim(1))
        done.append("added a batch axis to its scores")
        shape = (1, *shape)
    if shape[1] != channels and shape[3] == channels:
        _append(graph, "Transpose", "scores_planes", perm=[0, 3, 1, 2])
        if len(given.type.tensor_type.shape.dim) == len(shape):
            _permute(given, (0, 3, 1, 2))
        done.append("transposed its scores (N, H, W, C) to (N, C, H, W)")
        shape = tuple(shape[at] for at in (0, 3, 1, 2))
    if upsampling is not None and shape[2:] != size:
        _append_resize(graph, upsampling, size)
        done.append(
            f"enlarged its scores from {shape[2]}x{shape[3]} to the input's size ({upsampling})"
        )
    return done


def _dim(side: int) -> onnx.TensorShapeProto.Dimension:
    import onnx

    return onnx.TensorShapeProto.Dimension(dim_value=side)


def _free(graph: onnx.GraphProto, wanted: str) -> str:
    """Return `wanted`, or the name with the first number that no value and no node has."""
    taken = {value.name for value in (*graph.input, *graph.initializer, *graph.output)}
    for part in all_graphs(graph):
        for node in part.node:
            taken |= {node.name, *node.input, *node.output}
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _append(graph: onnx.ModelProto, operator: str, name: str, **attributes: Any) -> None:
    """Append a node to the only output, which keeps its name."""
    from onnx import helper, numpy_helper

    name = _free(graph.graph, name)
    given = graph.graph.output[0]
    inner = _inner_output(graph.graph)
    inputs = [inner]
    if (axes := attributes.pop("axes", None)) is not None:
        if opset_of(graph) < 13:  # before, the axes were an attribute
            attributes["axes"] = axes
        else:
            inputs.append(_free(graph.graph, f"{name}_axes"))
            constant = numpy_helper.from_array(np.array(axes, np.int64), inputs[-1])
            graph.graph.initializer.append(constant)
    graph.graph.node.append(helper.make_node(operator, inputs, [given.name], name, **attributes))


def _append_resize(graph: onnx.ModelProto, upsampling: str, size: tuple[int, int]) -> None:
    from onnx import helper, numpy_helper

    given = graph.graph.output[0]
    inner = _inner_output(graph.graph)
    parts = ("shape", "head", "sides", "size", "zero", "two", "upsampled")
    shape, head, sides, whole, zero, two, resize = (
        _free(graph.graph, f"scores_{part}") for part in parts
    )
    constants = {
        zero: np.array([0], np.int64),
        two: np.array([2], np.int64),
        sides: np.array(size, np.int64),
    }
    graph.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    graph.graph.node.extend(
        [
            helper.make_node("Shape", [inner], [shape], shape),
            helper.make_node("Slice", [shape, zero, two], [head], head),
            helper.make_node("Concat", [head, sides], [whole], whole, axis=0),
            helper.make_node(
                "Resize",
                [inner, "", "", whole],
                [given.name],
                resize,
                mode="linear",
                coordinate_transformation_mode=_MODES[upsampling],
            ),
        ]
    )
    dims = given.type.tensor_type.shape.dim
    if len(dims) == 4:
        del dims[2:]
        dims.extend(_dim(side) for side in size)


def _inner_output(graph: onnx.GraphProto) -> str:
    """Rename the value behind the only output, so that a further node can have its name."""
    name = graph.output[0].name
    inner = _free(graph, f"{name}_as_given")
    for node in graph.node:
        node.output[:] = [inner if one == name else one for one in node.output]
    _rename(graph, name, inner)
    return inner

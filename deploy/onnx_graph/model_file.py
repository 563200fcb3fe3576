"""Read and write ONNX files, and the contract in their metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.contract import (
    CALL_KEY,
    METADATA_KEY,
    MODULE_KEY,
    REJECTED_KEY,
    Contract,
    Precision,
)
from segdeploy.contract_json import read_contract
from segdeploy.errors import InputError
from segdeploy.files import check_input, write_atomically
from segdeploy.models.errors import first_line
from segdeploy.onnx_graph.external_data import LIMIT, is_too_large, save_with_external_data
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import onnx

_LARGEST_NODES = 2**24  # bytes, beside the weights
_MOST_NODES = 200_000
_MOST_LEVELS = 16


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, including its external weights.

    Raises:
        InputError: as in `load_with_external_files`.
    """
    return load_with_external_files(path)[0]


def load_with_external_files(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Return the graph of an ONNX file with its external weights, and their files, sorted.

    Raises:
        InputError: if the file is missing, damaged or empty, failed its proof at export, or
            references data outside its folder.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    model = _parsed(path)
    if not model.graph.node:
        raise InputError(f"{path}: contains no ONNX graph; give a complete ONNX file")
    _check_extent(model, path)
    _check_text(model, path)
    rejected = [e.value for e in model.metadata_props if e.key == REJECTED_KEY]
    check_not_rejected(rejected[0] if rejected else None, path)
    locations = set()
    for tensor, location in _external_tensors(model):
        _check_location(path, location)
        locations.add(location)
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # onnx's own refusals share no base below Exception
            raise InputError(
                f"{path}: weight '{tensor.name}' cannot be read from {location} "
                f"({first_line(error)})"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model, [path.parent / location for location in sorted(locations)]


def external_files(path: Path) -> list[Path]:
    """Return the external weight files of a graph, sorted.

    Raises:
        InputError: if the graph cannot be read, or references a file outside its folder.
    """
    locations = {location for _, location in _external_tensors(_parsed(path))}
    for location in locations:
        _check_location(path, location)
    return [path.parent / location for location in sorted(locations)]


def _external_tensors(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Yield each tensor with external data, and the location of its file."""
    from onnx.external_data_helper import uses_external_data

    for graph in all_graphs(model.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        for tensor in (*graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
            if uses_external_data(tensor):
                entries = {entry.key: entry.value for entry in tensor.external_data}
                yield tensor, entries.get("location", "")


def _parsed(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its external weights.

    Raises:
        InputError: if the file is missing, over 2 GiB or damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if check_input(path).stat().st_size > LIMIT + _LARGEST_NODES:
        raise InputError(
            f"{path}: is over 2 GiB, more than one ONNX file can hold; store its weights as "
            "external data"
        )
    try:
        return onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: is not a readable ONNX file ({error})") from error


def _check_extent(model: onnx.ModelProto, path: Path) -> None:
    """Refuse too many nodes or nested levels; counts without recursion, before any graph walk."""
    waiting, nodes = [(model.graph, 1)], 0
    while waiting:
        graph, level = waiting.pop()
        nodes += len(graph.node)
        if nodes > _MOST_NODES:
            raise InputError(f"{path}: has more than {_MOST_NODES:,} nodes, beyond any network")
        if level > _MOST_LEVELS:
            raise InputError(
                f"{path}: nests If, Loop or Scan more than {_MOST_LEVELS} levels deep, beyond any "
                "network"
            )
        for node in graph.node:
            for attribute in node.attribute:
                inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                waiting += [(one, level + 1) for one in inner]


def _check_text(model: onnx.ModelProto, path: Path) -> None:
    """Refuse names that are not UTF-8; protobuf returns them as bytes or raises on access."""
    try:
        texts: list[object] = [opset.domain for opset in model.opset_import]
        entries = [*model.metadata_props]
        for graph in all_graphs(model.graph):
            for value in (*graph.input, *graph.output, *graph.value_info):
                texts.append(value.name)
                texts += [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            texts += [tensor.name for tensor in graph.initializer]
            for node in graph.node:
                texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
                texts += [attribute.name for attribute in node.attribute]
                entries += node.metadata_props
        texts += [text for entry in entries for text in (entry.key, entry.value)]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a name is not UTF-8 text ({error}); the file is damaged"
        ) from error
    odd = next((text for text in texts if not isinstance(text, str)), None)
    if odd is not None:
        raise InputError(f"{path}: a name is not UTF-8 text ({odd!r:.60}); the file is damaged")


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs: the bodies of If, Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from all_graphs(inner)


def _check_location(path: Path, location: str) -> None:
    folder = path.parent.resolve()
    if not location or not (folder / location).resolve().is_relative_to(folder):
        raise InputError(
            f"{path}: keeps weights at '{location}', outside its own folder; such a file is refused"
        )


def save_onnx(model: onnx.ModelProto, path: Path) -> int:
    """Write a model atomically, with external weights if it is over 2 GiB; return its bytes."""
    if is_too_large(model):
        return save_with_external_data(model, path)
    data = serialized(model, path)
    write_atomically(path, data)
    return len(data)


def serialized(model: onnx.ModelProto, path: Path) -> bytes:
    """Serialize a model that is to be written to `path`.

    Raises:
        InputError: if it is larger than the 2 GiB that one ONNX file can hold.
    """
    check_size(model, path)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def check_size(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model over 2 GiB, for steps whose libraries take one protobuf message.

    Raises:
        InputError: if it is larger than the 2 GiB that a message can hold.
    """
    if is_too_large(model):
        raise InputError(
            f"{path}: is over 2 GiB, which the ONNX tools of this step cannot process; "
            "export and run the model unchanged"
        )


def contract_of(model: onnx.ModelProto, path: Path) -> Contract:
    """Read the contract from `metadata_props`.

    Raises:
        InputError: if there is no contract, or the contract cannot be read.
    """
    contract = find_contract(model, path)
    if contract is None:
        raise InputError(
            f"{path}: carries no segdeploy contract (classes, mean, std, size); "
            "export it with `segdeploy export`, or state one with `segdeploy adopt`"
        )
    return contract


def find_contract(model: onnx.ModelProto, path: Path) -> Contract | None:
    """Read the contract from `metadata_props`, if there is one.

    Raises:
        InputError: if it cannot be read.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_contract(entry.value, str(path))
    return None


def set_contract(model: onnx.ModelProto, contract: Contract) -> None:
    """Write the contract into `metadata_props`, replacing any existing contract."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = contract.to_json()
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, contract.to_json()


def set_rejected(model: onnx.ModelProto, reason: str) -> None:
    """Mark a graph whose proof failed, so that every step refuses it, whatever its file name."""
    model.metadata_props.add(key=REJECTED_KEY, value=reason)


def check_not_rejected(reason: str | None, path: Path) -> None:
    """Refuse a graph whose proof failed; `reason` is the failure in its metadata, None if none.

    Raises:
        InputError: if there is a reason; the message contains it.
    """
    if reason is not None:
        raise InputError(
            f"{path}: failed its proof when it was exported, and is kept to be looked at alone "
            f"({reason[:300]}); mend the network, and export again"
        )


def input_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph's inputs without the weights, which old exporters list as replaceable."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def keep_weights_in(model: onnx.ModelProto) -> None:
    """Remove weights from the graph's inputs, where old exporters list them as replaceable."""
    images = input_values(model)
    del model.graph.input[:]
    model.graph.input.extend(images)


def module_of(node: onnx.NodeProto) -> str | None:
    """Return the PyTorch module that a node came from, or None if its metadata name none."""
    return note_of(node, MODULE_KEY)


def note_of(node: onnx.NodeProto, key: str) -> str | None:
    """Return the value of `key` in a node's `metadata_props`, or None."""
    return next((entry.value for entry in node.metadata_props if entry.key == key), None)


_WEIGHT = re.compile(r"(.+)\.weight(?:_\w+)?")


def convolution_of(node: onnx.NodeProto) -> str:
    """Return the label of a convolution's call, else the module that its weight is named after.

    The module in the metadata comes last: after a BatchNorm was folded in, it names the BatchNorm.
    """
    if call := note_of(node, CALL_KEY):
        return call
    match = _WEIGHT.fullmatch(node.input[1]) if len(node.input) > 1 else None
    return match[1] if match else module_of(node) or node.name


# The operators of quantized graphs: Q/DQ, quantized operators, and dynamic quantization.
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Return whether the graph contains Q/DQ nodes or integer operators."""
    return any(node.op_type in _QUANTIZED for node in model.graph.node)


def precision_of(model: onnx.ModelProto, contract: Contract | None) -> Precision:
    """Return the contract's precision, or `int8` if another tool quantized an `fp32` graph.

    A graph without a contract is `fp16` or `bf16` if most of its weights are, else `fp32`, unless
    it is quantized.
    """
    stated = contract.precision if contract else _precision_of_weights(model)
    is_stated = contract is not None and stated != "fp32"
    return "int8" if not is_stated and is_quantized(model) else stated


def _precision_of_weights(model: onnx.ModelProto) -> Precision:
    """Return the float type that most weights have."""
    from onnx import TensorProto

    kinds: dict[int, Precision] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    held: dict[Precision, int] = {"fp32": 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, *kinds):
            name = kinds.get(tensor.data_type, "fp32")
            held[name] = held.get(name, 0) + math.prod(tensor.dims)
    return max(held, key=lambda name: held[name])


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a graph uses."""
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return int(max(versions, default=1))


def tensor_spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return the `TensorSpec` of a graph input or output."""
    import onnx

    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return TensorSpec(value.name, tensor_shape(value), dtype)


def tensor_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return the shape of a graph's input or output, with the names of dynamic dimensions."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)


def takes_any_size(graph: onnx.ModelProto) -> bool:
    """Return whether the height of the graph's first input `(N, C, H, W)` is dynamic."""
    return isinstance(tensor_shape(graph.graph.input[0])[2], str)

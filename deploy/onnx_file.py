"""Reading and writing ONNX files, and the contract inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.files import check_input, write_atomically
from segdeploy.spec import METADATA_KEY, Contract, read_contract

if TYPE_CHECKING:
    import onnx

# Protobuf's own limit; larger weights need external data.
_MAX_BYTES = 2**31 - 1


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file whole.

    Raises:
        InputError: if it is missing, damaged, empty, or keeps weights outside the file.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import uses_external_data

    check_input(path)
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: is not a readable ONNX file ({error})") from error
    if not model.graph.node:
        raise InputError(f"{path}: holds no ONNX graph; is it an ONNX file, and complete?")
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    if any(uses_external_data(tensor) for tensor in tensors):
        raise InputError(
            f"{path}: keeps weights in another file, which this version does not read; "
            "save it as one file"
        )
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> bytes:
    """Write a model atomically; returns the bytes written.

    Raises:
        InputError: if it is larger than the 2 GiB that one ONNX file can hold.
    """
    data = serialized(model, path)
    write_atomically(path, data)
    return data


def serialized(model: onnx.ModelProto, path: Path) -> bytes:
    """The bytes of a model that is to be written to `path`.

    Raises:
        InputError: if it is larger than the 2 GiB that one ONNX file can hold.
    """
    if model.ByteSize() > _MAX_BYTES:
        raise InputError(f"{path}: the network is over 2 GiB, which one ONNX file cannot hold")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def contract_of(model: onnx.ModelProto, path: Path) -> Contract:
    """Read the contract from `metadata_props`.

    Raises:
        InputError: if there is none or it cannot be read.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_contract(entry.value, str(path))
    raise InputError(
        f"{path}: carries no segdeploy contract (classes, mean, std, size); "
        "export it with `segdeploy export`"
    )


def set_contract(model: onnx.ModelProto, contract: Contract) -> None:
    """Write the contract into `metadata_props`, in place of the one that may be there."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = contract.to_json()
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, contract.to_json()


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph holds Q/DQ nodes."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)


def tensor_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Shape of a graph's input or output; a dynamic dimension is its name."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)

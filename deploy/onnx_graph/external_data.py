"""Weights in a file beside the graph, for models beyond the 2 GiB limit of protobuf.

The file's name contains a hash of its content. A new version therefore never overwrites weights
that the old graph references, and an interrupted write always leaves one complete model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.files import write_atomically

if TYPE_CHECKING:
    import onnx

LIMIT = 2**31 - 2**24  # protobuf's limit, less room for the nodes
_SMALL = 1024  # bytes; shapes and scales stay in the graph
_ALIGNED = 4096  # bytes, so that runtimes can memory-map the weights


def is_too_large(model: onnx.ModelProto) -> bool:
    """Return whether a model is too large for one protobuf message."""
    from onnx.helper import tensor_dtype_to_np_dtype

    # Estimated from the weights, since protobuf finds a message's size only by serializing it.
    weights = 0
    for tensor in model.graph.initializer:
        try:
            size = tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except KeyError:  # not an ONNX data type; the checker reports it
            continue
        weights += max(0, math.prod(tensor.dims)) * size
    return weights > LIMIT


def save_with_external_data(model: onnx.ModelProto, path: Path) -> int:
    """Write large weights to `STEM.HASH.weights` beside `path`, then the graph; return the bytes.

    `model` is not modified. Weight files of older versions stay, since another graph may reference
    them.
    """
    import onnx

    path = path.resolve()  # the weights must lie beside the file, not beside a link to it
    large = [t for t in model.graph.initializer if len(t.raw_data) >= _SMALL]
    digest = hashlib.sha256()
    for tensor in large:
        digest.update(tensor.raw_data)
    name = f"{path.stem}.{digest.hexdigest()[:16]}.weights"
    places, end = [], 0
    for tensor in large:
        places.append((end, len(tensor.raw_data)))
        end += -(-len(tensor.raw_data) // _ALIGNED) * _ALIGNED

    def content() -> Iterator[bytes]:
        for tensor in large:
            yield tensor.raw_data
            yield bytes(-len(tensor.raw_data) % _ALIGNED)

    write_atomically(path.with_name(name), content())
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    moved = [t for t in graph.graph.initializer if len(t.raw_data) >= _SMALL]
    for tensor, (offset, length) in zip(moved, places, strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    data = graph.SerializeToString(deterministic=True)
    write_atomically(path, data)
    return end + len(data)

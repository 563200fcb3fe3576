"""The normalization of a graph from another tool: read in the graph, or found by trying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.adoption.conform import FLOATS, conformed
from segdeploy.adoption.statement import Statement
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, is_color, listed
from segdeploy.errors import InputError
from segdeploy.models.channels import RGB
from segdeploy.onnx_graph.foreign_ends import input_type
from segdeploy.onnx_graph.input_normalization import input_normalization
from segdeploy.onnx_graph.model_file import save_onnx, set_contract, tensor_shape

if TYPE_CHECKING:
    import onnx

MiouOf = Callable[[Path], float | None]
"""Measures the mIoU of an adopted file on a few frames."""


def with_normalization(
    statement: Statement, graph: onnx.ModelProto, file: Path, miou_of: MiouOf
) -> tuple[Statement, list[str]]:
    """Return the statement with the normalization that the graph leaves to do, and a note on it.

    A graph that normalizes by itself takes images of 0 to 255, or of 0 to 1. Without such a graph
    and without a statement, the usual normalizations are tried on the masks of `--data`.

    Raises:
        InputError: if trying does not tell the normalization.
    """
    if input_type(graph) not in FLOATS:
        return statement, []
    own = input_normalization(graph)
    shown = ""
    if own is not None:
        shown = (
            f"its graph normalizes by itself ({own.operator}: mean {listed(own.mean)}, std "
            f"{listed(own.std)})"
        )
    stated = statement.preprocessing
    if {"mean", "std", "mean_255", "std_255", "normalization"} & set(stated):
        return statement, [f"{shown}, after the stated normalization"] if own else []
    if own is None or own.largest_value is None:
        if statement.data is None:
            return statement, []
        return _tried(statement, graph, file, miou_of)
    if own.largest_value > 1:
        fields: dict[str, Any] = {"normalization": "none"}
        told = "takes images of 0 to 255"
    else:
        fields = {"mean": (0.0,), "std": (1.0,)}
        told = "takes images of 0 to 1"
    return replace(statement, preprocessing={**fields, **stated}), [f"{shown}, and so {told}"]


_PLAIN: dict[str, dict[str, Any]] = {
    "0 to 1": {"mean": (0.0,), "std": (1.0,)},
    "-1 to 1": {"mean": (0.5,), "std": (0.5,)},
    "0 to 255": {"normalization": "none"},
}


def _usual(statement: Statement, graph: onnx.ModelProto) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the usual normalizations, of colors in both orders unless the channels are stated."""
    sides, stated = tensor_shape(graph.graph.input[0]), statement.preprocessing.get("channels")
    orders: tuple[tuple[str, ...], ...] = (RGB, RGB[::-1])
    if stated is not None:
        orders = (tuple(stated),) if is_color(stated) else ()
    elif len(RGB) not in (*sides[1:2], *sides[3:4]):
        orders = ()
    if not orders:
        yield from _PLAIN.items()
    for order in orders:
        in_order = f"in {','.join(order)}"
        places = [RGB.index(name) for name in order]
        mean, std = (tuple(one[at] for at in places) for one in (IMAGENET_MEAN, IMAGENET_STD))
        yield f"ImageNet's mean and std {in_order}", {"channels": order, "mean": mean, "std": std}
        for name, fields in _PLAIN.items():
            yield f"{name} {in_order}", {"channels": order, **fields}


def _tried(
    statement: Statement, graph: onnx.ModelProto, file: Path, miou_of: MiouOf
) -> tuple[Statement, list[str]]:
    """Return the statement with the usual normalization that gives the best mIoU on `--data`.

    Raises:
        InputError: if none of them is clearly the best.
    """
    stated = statement.preprocessing
    tried: dict[str, tuple[float, Mapping[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.onnx"
        for name, fields in _usual(statement, graph):
            one: Mapping[str, Any] = {**fields, **stated}
            candidate = type(graph)()
            candidate.CopyFrom(graph)
            contract, _ = conformed(candidate, replace(statement, preprocessing=one), file)
            set_contract(candidate, contract)
            save_onnx(candidate, path)
            tried[name] = (miou_of(path) or 0.0, one)
    ranked = sorted(tried.items(), key=lambda one: -one[1][0])
    shown = ", ".join(f"{name} {100 * miou:.2f} %" for name, (miou, _) in ranked)
    (best, (most, preprocessing)), (_, (second, _)) = ranked[:2]
    if most < _LEAST_MIOU or most < second + _LEAST_LEAD:
        raise InputError(
            f"{file}: its normalization is unknown, and mIoU does not tell it ({shown}); give "
            "--mean and --std of values in 0..1, or --normalization none if the network normalizes "
            "by itself"
        )
    note = f"its normalization was found by trying: {best} has the best mIoU ({shown})"
    return replace(statement, preprocessing=preprocessing), [note]


_LEAST_MIOU, _LEAST_LEAD = 0.2, 0.02

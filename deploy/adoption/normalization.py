"""The normalization of a graph from another tool: read in the graph, or found by trying."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.adoption.conform import FLOATS, conformed
from segdeploy.adoption.statement import Statement
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, listed
from segdeploy.errors import InputError
from segdeploy.onnx_graph.foreign_ends import input_type
from segdeploy.onnx_graph.input_normalization import input_normalization
from segdeploy.onnx_graph.model_file import save_onnx, set_contract

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


_USUAL: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "0 to 1": {"mean": (0.0,), "std": (1.0,)},
    "-1 to 1": {"mean": (0.5,), "std": (0.5,)},
    "0 to 255": {"normalization": "none"},
}


def _tried(
    statement: Statement, graph: onnx.ModelProto, file: Path, miou_of: MiouOf
) -> tuple[Statement, list[str]]:
    """Return the statement with the usual normalization that gives the best mIoU on `--data`.

    Raises:
        InputError: if none of them is clearly the best.
    """
    stated = statement.preprocessing
    orders = [()] if "channels" in stated else [("R", "G", "B"), ("B", "G", "R")]
    tried: dict[str, tuple[float, Mapping[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.onnx"
        for (name, fields), order in itertools.product(_USUAL.items(), orders):
            channels = {"channels": order} if order else {}
            one: Mapping[str, Any] = {**fields, **channels, **stated}
            candidate = type(graph)()
            candidate.CopyFrom(graph)
            contract, _ = conformed(candidate, replace(statement, preprocessing=one), file)
            set_contract(candidate, contract)
            save_onnx(candidate, path)
            label = f"{name} in {','.join(order)}" if order else name
            tried[label] = (miou_of(path) or 0.0, one)
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

"""Tolerances against the reference by precision: of `bench`, and of the golden vectors.

`build-engine` writes the tolerances into the file of golden vectors, from which the self-tests in
Python and C++ read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segdeploy.contract import Precision
from segdeploy.engine.bindings import BACKENDS as ENGINE_BACKENDS


@dataclass(frozen=True)
class Tolerance:
    """Minimum label agreement (0..1), and maximum score difference as a fraction of the range."""

    least_agreement: float
    most_difference: float


# Preprocessing is float32 arithmetic on bytes: a larger difference is another resize, mean or std.
INPUT_DIFFERENCE = 1e-4
_TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(0.999, 1e-3),
    "fp16": Tolerance(0.995, 0.05),
    "bf16": Tolerance(0.98, 0.3),
    "mixed": Tolerance(0.98, 0.5),
    "int8": Tolerance(0.98, 0.5),
}


def tolerance_of(precision: Precision, backend: str) -> Tolerance:
    """Return the tolerance of a graph of `precision` that `backend` runs."""
    if precision == "fp32" and backend in ENGINE_BACKENDS:
        precision = "fp16"  # TensorRT multiplies float32 as TF32, with the mantissa bits of FP16
    return _TOLERANCES[precision]


def described_tolerances() -> dict[str, Any]:
    """Return all tolerances as JSON values: `input`, and by `graph` or `engine` and precision."""
    kinds = {"graph": "onnxruntime", "engine": ENGINE_BACKENDS[0]}
    return {
        "input": INPUT_DIFFERENCE,
        **{
            kind: {
                precision: {"labels": one.least_agreement, "scores": one.most_difference}
                for precision in _TOLERANCES
                for one in [tolerance_of(precision, backend)]
            }
            for kind, backend in kinds.items()
        },
    }


def parsed_tolerance(
    described: Mapping[str, Any], precision: Precision, backend: str
) -> tuple[float, Tolerance]:
    """Read back the largest input difference, and the tolerance of a precision and backend.

    Raises:
        KeyError, TypeError, ValueError: if `described` holds no such numbers.
    """
    kind = "engine" if backend in ENGINE_BACKENDS else "graph"
    one = described[kind][precision]
    return float(described["input"]), Tolerance(float(one["labels"]), float(one["scores"]))

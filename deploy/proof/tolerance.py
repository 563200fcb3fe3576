"""How far from the reference a precision may be: one table for the self-test and for bench."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.engine.bindings import BACKENDS as ENGINE_BACKENDS


@dataclass(frozen=True)
class Tolerance:
    """The least share of equal labels, and the largest difference of a score, of its range."""

    least_agreement: float
    most_difference: float


_TOLERANCES = {
    "fp32": Tolerance(0.999, 1e-3),
    "fp16": Tolerance(0.995, 0.05),
    "bf16": Tolerance(0.98, 0.3),
    "mixed": Tolerance(0.98, 0.5),
    "int8": Tolerance(0.98, 0.5),
}


def tolerance_of(precision: str, backend: str) -> Tolerance:
    """The tolerance of a graph that was typed in `precision`, and is run by `backend`."""
    if precision == "fp32" and backend in ENGINE_BACKENDS:
        precision = "fp16"  # TensorRT multiplies float32 as TF32, which has as many digits
    return _TOLERANCES[precision]

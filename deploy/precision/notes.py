"""What a calibration says besides its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segdeploy.precision.assignment import Assignment
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Accuracy
from segdeploy.precision.frames import FrameSets

if TYPE_CHECKING:
    from segdeploy.calibration.half_precision import HalfGraph

_UINT8 = 2  # onnx.TensorProto.UINT8
_LEAST_KERNELS = 0.985
_LEAST_AGREEMENT = 0.95
_FEW_FRAMES = 8
_SETTLED_SHARE = 0.75  # of the frames; ranges that move later than that are not known


def notes_of(
    frames: FrameSets,
    bad: Sequence[str],
    settled: int,
    source: Source,
    assignment: Assignment,
    typed: HalfGraph,
    accuracy: Accuracy,
    kernels: float | None,
    half_ends: bool,
) -> tuple[str, ...]:
    """A line for each thing that makes the figures worth less than they look."""
    notes = [frames.note] if frames.note and assignment.int8 else []
    notes += [frames.shared] if frames.shared else []
    count = len(frames.calibration)
    if count < _FEW_FRAMES:
        known = f"ranges still moved at frame {settled}" if settled > 1 else "nobody knows more"
        notes.append(
            f"{count} calibration frames are too few to know ranges by ({known}); give "
            f"{_FEW_FRAMES} or more"
        )
    if accuracy.frames < _FEW_FRAMES:
        notes.append(
            f"accuracy is of {accuracy.frames} frames of '{frames.check_split}' alone, and worth "
            "as much; give more"
        )
    if bad:
        notes.append(f"{len(bad)} calibration frames are of one colour, or noise, as {bad[0]} is")
    if accuracy.agreement < _LEAST_AGREEMENT:
        notes.append(
            f"only {accuracy.agreement:.1%} of labels are those of FP32, whatever mIoU says; "
            "see --blame, and --max-miou-drop or --keep"
        )
    if assignment.int8 and count >= _FEW_FRAMES and settled > _SETTLED_SHARE * count:
        notes.append(
            f"ranges still moved by more than 5 % at frame {settled} of {count}; "
            "give more frames (--limit)"
        )
    if half_ends and typed.model.graph.input[0].type.tensor_type.elem_type == _UINT8:
        notes.append("the input takes the camera's bytes, which --half-io leaves alone")
    silent = [
        source.modules()[y.name]
        for y in source.sites.layers
        if y.name in assignment.int8 and not source.statistics[y.data].largest
    ]
    if silent:
        notes.append(
            f"{', '.join(silent[:3])} read nothing but zeros on these frames ({len(silent)} of the "
            "layers in INT8); their scale is a guess"
        )
    if kernels is not None and kernels < _LEAST_KERNELS:
        what = "its speed is not worth that" if source.flavour.unsigned else "TensorRT does not"
        notes.append(
            f"ONNX Runtime, as `predict` opens it, gives {kernels:.2%} of the labels of the graph "
            f"as written; {what}"
        )
    return tuple(notes)

"""Notes of a calibration that qualify its figures."""

from __future__ import annotations

from segdeploy.precision.budget import EvaluatedPlan
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.task import Task

_UINT8 = 2  # onnx.TensorProto.UINT8
_LEAST_KERNELS = 0.985
_LEAST_AGREEMENT = 0.95
_FEW_FRAMES = 8
_STABLE_SHARE = 0.75  # of the frames; ranges that move later are not stable


def notes_of(
    task: Task,
    stable_after: int,
    source: Source,
    plan: EvaluatedPlan,
    kernels: float | None,
    *,
    fp16_io: bool,
) -> tuple[str, ...]:
    """Return one line for each reason why the figures are less reliable than they look."""
    frames, bad, assignment, accuracy = task.frames, task.bad, plan.assignment, plan.accuracy
    notes = [frames.note] if frames.note and assignment.int8 else []
    notes += [frames.shared] if frames.shared else []
    count = len(frames.calibration)
    if count < _FEW_FRAMES:
        known = (
            f"ranges still moved at frame {stable_after}"
            if stable_after > 1
            else "more are unknown"
        )
        notes.append(
            f"{count} calibration frames are too few to determine ranges ({known}); give "
            f"{_FEW_FRAMES} or more"
        )
    if accuracy.frames < _FEW_FRAMES:
        notes.append(
            f"accuracy is measured on only {accuracy.frames} frames of '{frames.check_split}', "
            "too few to be reliable; give more frames"
        )
    if bad:
        notes.append(f"{len(bad)} calibration frames are of one color or noise (such as {bad[0]})")
    if accuracy.agreement < _LEAST_AGREEMENT:
        notes.append(
            f"only {accuracy.agreement:.1%} of labels equal those of FP32, whatever the mIoU; "
            "see --sensitivity, and --max-miou-drop or --exclude"
        )
    if assignment.int8 and count >= _FEW_FRAMES and stable_after > _STABLE_SHARE * count:
        notes.append(
            f"ranges still moved by more than 5 % at frame {stable_after} of {count}; "
            "give more frames (--limit)"
        )
    if fp16_io and plan.typed.model.graph.input[0].type.tensor_type.elem_type == _UINT8:
        notes.append("the input is uint8 image bytes, which --fp16-io does not change")
    silent = [
        source.modules()[y.name]
        for y in source.insertion_points.layers
        if y.name in assignment.int8 and not source.statistics[y.data].largest
    ]
    if silent:
        notes.append(
            f"{', '.join(silent[:3])} read only zeros on these frames ({len(silent)} of the "
            "layers in INT8), so their scale is a guess; give more frames (--limit)"
        )
    if kernels is not None and kernels < _LEAST_KERNELS:
        what = (
            "its speed is not worth that" if source.scheme.unsigned else "TensorRT is not affected"
        )
        notes.append(
            f"ONNX Runtime, as `predict` opens it, gives only {kernels:.2%} of the labels of "
            f"reference Q/DQ execution; {what}"
        )
    return tuple(notes)

"""What a calibration starts from: the optimized graph and its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segdeploy.artifact import OnnxFile
from segdeploy.contract import Contract
from segdeploy.precision.frames import FrameSets

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Task:
    """The optimized FP32 `graph` of `file`, and the frames to calibrate and evaluate on.

    `bytes_before` is the size of the file with external weights. `rewrites` were applied to the
    graph. `bad` names the calibration frames that show one color or noise.
    """

    file: OnnxFile
    graph: onnx.ModelProto
    contract: Contract
    frames: FrameSets
    bytes_before: int
    rewrites: tuple[str, ...]
    bad: tuple[str, ...]

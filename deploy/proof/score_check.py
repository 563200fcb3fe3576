"""Check that class scores are finite, even if a graph's output is their ArgMax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.errors import CheckFailed
from segdeploy.preprocessing.preprocess import preprocess

if TYPE_CHECKING:
    import onnx


def check_scores(
    graph: onnx.ModelProto, contract: Contract, source: str, images: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Run named images `(H, W, 3) uint8` RGB and check the class scores that labels come from.

    Labels do not reveal NaN, since ArgMax still returns a class. The graph is run by reference
    execution, so that an FP16 overflow also shows on a CPU.

    Raises:
        CheckFailed: if the scores are not finite; the message names the tensor and the image.
    """
    from segdeploy.calibration.reference_execution import open_reference_execution, scores_of
    from segdeploy.calibration.session import outputs_of

    tensor = scores_of(graph)
    session = open_reference_execution(graph, tensor)
    taken = session.get_inputs()[0]
    for name, image in images.items():
        array = preprocess(image, contract)
        if taken.type == "tensor(float16)":
            array = array.astype(np.float16)
        (scores,) = outputs_of(session, None, array)
        if not np.isfinite(scores).all():
            raise CheckFailed(
                f"{source}: the scores '{tensor}' hold NaN or infinity for {name}, so its labels "
                "are meaningless; look for a division by zero, or values beyond the FP16 range"
            )

"""Class scores must be finite, also where a graph hides them behind an ArgMax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.errors import CheckFailed
from segdeploy.runtime.preprocess import preprocess

if TYPE_CHECKING:
    import onnx


def check_scores(
    graph: onnx.ModelProto, contract: Contract, source: str, images: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Run named images `(H, W, 3) uint8` RGB, and look at the scores that labels are made of.

    A label says nothing of NaN: ArgMax gives some class. The graph is run as it is written, so that
    the overflow of FP16 shows on a CPU, too.

    Raises:
        CheckFailed: naming the tensor and the image.
    """
    from segdeploy.calibration.reference_execution import open_literal, scores_of
    from segdeploy.calibration.session import outputs_of

    tensor = scores_of(graph)
    session = open_literal(graph, tensor)
    taken = session.get_inputs()[0]
    for name, image in images.items():
        array = preprocess(image, contract)
        if taken.type == "tensor(float16)":
            array = array.astype(np.float16)
        (scores,) = outputs_of(session, None, array)
        if not np.isfinite(scores).all():
            raise CheckFailed(
                f"{source}: the scores '{tensor}' hold NaN or infinity for {name}: the labels mean "
                "nothing there; look for a division by what may be zero, or values beyond FP16"
            )

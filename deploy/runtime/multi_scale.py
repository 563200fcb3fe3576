"""Multi-scale and flip test-time augmentation as repeated runs of one session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.models.scales import checked_scaled_size
from segdeploy.runtime.postprocess import upsample
from segdeploy.runtime.session import Session

Floats = NDArray[np.float32]


def fused_logits(
    session: Session, image: Floats, scales: Sequence[float], *, flip: bool, fuse: str
) -> Floats:
    """Return logits `(C, H, W)` of an image `(1, 3, H, W)`, fused over `scales`.

    With `flip` the mirrored image of every scale is fused as well. The result equals that of
    `models.multi_scale.MultiScaleInput` up to rounding. The image and the logits are resized
    bilinearly with aligned corners. Scaled sizes are rounded down to the contract's multiple.
    `fuse` is the `mean` or `max` per class and pixel.

    Raises:
        InputError: for a session that does not take the scaled sizes or gives no logits, scales
            that are not positive or shrink the image to nothing, or another `fuse`.
    """
    size = (image.shape[2], image.shape[3])
    check_scales(session, size, scales)
    if fuse not in ("mean", "max"):
        raise InputError(f"fuse '{fuse}' is neither mean nor max")
    total: Floats | None = None
    for scale in scales or (1.0,):
        target = _scaled(size, scale, session.contract.multiple)
        scaled = upsample(image[0], target, align_corners=True)[None]
        logits = session.run(scaled)[0]
        if flip:  # before the resize: resizing and maximum do not commute
            mirrored = session.run(np.ascontiguousarray(scaled[..., ::-1]))[0][..., ::-1]
            logits = np.maximum(logits, mirrored) if fuse == "max" else logits + mirrored
        maps = upsample(logits, size, align_corners=True)
        if total is None:
            total = maps
        else:
            total = np.maximum(total, maps) if fuse == "max" else total + maps
    assert total is not None
    if fuse == "mean":
        total /= len(scales or (1.0,)) * (2 if flip else 1)
    return total


def check_scales(session: Session, size: tuple[int, int], scales: Sequence[float]) -> None:
    """Refuse a session that cannot run at these scales of `size` (H, W), without a run.

    Raises:
        InputError: if the session does not take the scaled sizes or gives no logits, or for scales
            that are not positive or shrink the image to nothing.
    """
    contract = session.contract
    if contract.layout != "NCHW" or contract.output != "logits" or contract.upsampling:
        raise InputError(
            f"{session.backend}: scales need float input and logits at run time; export without "
            "--preprocess and --output, or with --scales in the graph"
        )
    if contract.scales != (1.0,) or contract.flip:
        raise InputError(
            f"{session.backend}: the graph fuses scales {contract.scales} already; run it as it is"
        )
    for scale in scales or (1.0,):
        target = _scaled(size, scale, contract.multiple)
        if target != size and not session.takes_any_size:
            raise InputError(
                f"{session.backend}: the graph is static at {size[0]}x{size[1]}, and scale {scale} "
                "is another size; export with --dynamic"
            )
        if session.takes_any_size:
            _check_profiles(target, session, scale)


def _check_profiles(size: tuple[int, int], session: Session, scale: float) -> None:
    profiles = session.profiles
    if not profiles or any(profile.takes((1, *size)) for profile in profiles):
        return
    ranges = " or ".join(
        f"{p.minimum[1]}x{p.minimum[2]} to {p.maximum[1]}x{p.maximum[2]}" for p in profiles
    )
    raise InputError(
        f"scale {scale} gives {size[0]}x{size[1]}, outside the graph's {ranges}; export it with "
        "other --min-size and --max-size, or build it with other profiles"
    )


def _scaled(size: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 100:
        raise InputError(f"scale {scale}: must be positive, and below 100")
    try:
        return checked_scaled_size(size, scale, multiple)
    except ValueError as error:
        raise InputError(str(error)) from error

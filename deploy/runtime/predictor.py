"""`segdeploy.load(...).predict(image)`: a session with the contract's pre- and postprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet
from segdeploy.network import ModelSpec, load_network
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.late_upsampling import labels_of_small_map
from segdeploy.runtime.multi_scale import fused_logits
from segdeploy.runtime.postprocess import labels_at, nearest
from segdeploy.runtime.preprocess import preprocess
from segdeploy.runtime.session import Session, open_session
from segdeploy.spec import Contract


class Predictor(Closing):
    """A network that takes pictures of any size and gives labels of the same size."""

    def __init__(self, session: Session):
        self.session = session

    @property
    def contract(self) -> Contract:
        """What the network expects and gives."""
        return self.session.contract

    def logits(
        self,
        image: NDArray[np.uint8],
        *,
        scales: Sequence[float] = (),
        flip: bool = False,
        fuse: str = "mean",
    ) -> NDArray[np.float32]:
        """Logits `(C, H', W') float32` at the contract's size for `(H, W, 3) uint8` RGB.

        Fused over `scales` and the mirrored image where that is asked for.

        Raises:
            InputError: if a logit is not finite, or the network gives no logits.
        """
        if self.contract.output != "logits":
            raise InputError(
                f"{self.session.backend}: the graph gives {self.contract.output}, not logits; "
                "export it without --output"
            )
        if not scales and not flip:
            return self._run(image)
        batch = preprocess(image, self.contract)
        logits = fused_logits(self.session, batch, scales, flip=flip, fuse=fuse)
        return self._finite(logits)

    def predict(
        self,
        image: NDArray[np.uint8] | Path | str,
        *,
        scales: Sequence[float] = (),
        flip: bool = False,
        fuse: str = "mean",
    ) -> NDArray[np.uint8]:
        """Labels `(H, W) uint8` of the picture's own size.

        `image` is `(H, W, 3) uint8` RGB, or the path of a JPEG or PNG. `scales`, `flip` and `fuse`
        (`mean` or `max`) run a dynamic network several times. Logits are upsampled to the picture's
        size before the best class is taken; a graph that ends in labels can only be enlarged by
        nearest neighbour.

        Raises:
            InputError, ModelInputError: for an array of another shape or dtype, or a bad file.
        """
        if isinstance(image, (str, Path)):
            from segdeploy.models.images import read_image

            image = read_image(Path(image))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"predict: the image has shape {image.shape} and dtype {image.dtype}; "
                "it must be (H, W, 3) uint8 in RGB order"
            )
        size = (image.shape[0], image.shape[1])
        if self.contract.output != "labels":
            if scales or flip or self.contract.output == "logits":
                return labels_at(self.logits(image, scales=scales, flip=flip, fuse=fuse), size)
            return labels_at(self._run(image), size)
        if scales or flip:
            self.logits(image, scales=scales, flip=flip, fuse=fuse)  # which says why not
        found = self._run(image)
        if self.contract.upsampling is None:
            return nearest(found, size)
        aligned = self.contract.upsampling == "align-corners"
        labels = labels_of_small_map(found, self.contract.size, align_corners=aligned)
        return nearest(labels, size)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        return self._finite(self.session.run(preprocess(image, self.contract))[0])

    def _finite(self, output: NDArray[Any]) -> NDArray[Any]:
        if not np.isfinite(output).all():
            raise InputError(
                f"{self.session.backend}: output '{self.session.output.name}' holds NaN or "
                "infinity for this image; look for overflow in the network"
            )
        return output

    def close(self) -> None:
        """Free the session."""
        self.session.close()


def load(
    model: str | Path | ModelSpec,
    *,
    backend: str | None = None,
    literal: bool = False,
    threads: int | None = None,
    dataset: DataSet | None = None,
    default_size: tuple[int, int] | None = None,
) -> Predictor:
    """Open an exported file, a checkpoint or a named network, ready to predict.

    `dataset` and `default_size` complete a named network, as in `load_network`.

    Raises:
        InputError, ModelInputError: if it cannot be found, read or run here.
    """
    spec = ModelSpec.of(model)
    path = Path(spec.model)
    if path.suffix in (".onnx", ".engine", ".plan"):
        spec.refuse_options()
        if spec.size:
            raise InputError(f"{path}: its size stands in the file; export it again with --size")
        return Predictor(open_session(path, backend, literal=literal, threads=threads))
    if backend not in (None, "torch"):
        raise InputError(f"{spec.model}: a PyTorch network runs in torch; export it for {backend}")
    from segdeploy.packages import require

    require("torch")
    from segdeploy.runtime.torch_session import TorchSession

    loaded = load_network(spec, dataset, default_size)
    return Predictor(TorchSession(loaded.network, loaded.contract, threads=threads))

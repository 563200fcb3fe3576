"""`segdeploy.load(...).predict(image)`: a session with preprocessing and postprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as PillowImage

from segdeploy.artifact import Artifact, OnnxFile, artifact_of
from segdeploy.contract import GRAY, Contract, listed
from segdeploy.contract_checks import contradiction
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.channels import RGB
from segdeploy.models.dataset import DataSet
from segdeploy.models.images import of_pillow, read_pixels
from segdeploy.network_loading import load_network
from segdeploy.preprocessing.fit import Placement, check_input_size, placement
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.inference_options import ONE_RUN, InferenceOptions
from segdeploy.runtime.late_upsampling import late_labels
from segdeploy.runtime.multi_scale import check_scales, fused_logits
from segdeploy.runtime.native import open_stages
from segdeploy.runtime.postprocess import (
    best_class,
    bit_planes,
    crop_window,
    labels_at,
    margin,
    nearest,
    sigmoid,
    softmax,
    upsample,
    with_background,
)
from segdeploy.runtime.session import Session, open_session
from segdeploy.runtime.tiling import largest_window, tiled

Image = NDArray[Any] | PillowImage | Path | str
_MOST_BATCH = 8


class Predictor(Closing):
    """A network that takes images of any size and returns labels of the same size.

    Safe to call from several threads, like the sessions.
    """

    def __init__(
        self,
        session: Session,
        size: tuple[int, int] | None = None,
        scales: Sequence[float] = (),
    ):
        self.session = session
        self._closed = False
        self.contract = session.contract
        """The session's contract, with the size (H, W) and scales of this predictor."""
        if size is not None and size != self.contract.size:
            if not session.takes_any_size:
                height, width = self.contract.size
                mend = "leave --size out"
                if not self.contract.is_adopted:
                    mend = "export it with --size, or --dynamic"
                raise InputError(
                    f"{session.backend}: the network is static at {height}x{width}; {mend}"
                )
            if self.contract.follows_image:
                raise InputError(
                    f"{session.backend}: its input follows the image by --fit {self.contract.fit}; "
                    "leave --size out"
                )
            if self.contract.bounds is not None:
                (low, narrow), (high, wide), _ = self.contract.bounds
                if not (low <= size[0] <= high and narrow <= size[1] <= wide):
                    raise InputError(
                        f"{session.backend}: {size[0]}x{size[1]} is outside the graph's "
                        f"{low}x{narrow} to {high}x{wide}; {self.contract.other_bounds}"
                    )
            step = self.contract.multiple
            if any(side % step for side in size):
                raise InputError(
                    f"{session.backend}: the network takes only multiples of {step}; "
                    f"{size[0]}x{size[1]} is not a multiple"
                )
            self.contract = replace(self.contract, size=size)
            if reason := contradiction(self.contract):
                raise InputError(f"{session.backend}: {reason}")
        self.loop: tuple[float, ...] = ()
        """The scales that run one after another outside the graph, if any."""
        if scales and tuple(scales) != self.contract.scales:
            self.loop = tuple(float(scale) for scale in scales)
            check_scales(session, self.contract.size, self.loop)
            self.contract = replace(self.contract, scales=self.loop)
        self._stages = open_stages(self.contract)

    def warm_up(self, runs: int = 3) -> None:
        """Run a gray image `runs` times, to complete the runtime's one-time initialization."""
        contract = self.contract
        gray = np.full((*contract.input_size, len(contract.image_channels)), 127, contract.dtype)
        made = preprocess(gray, contract.stretched_to(contract.size))
        for _ in range(runs):
            self.run(made)

    def prepare(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return the network's input for an image of the contract, as in `preprocess`."""
        if self._stages is not None and self._stages.takes(pixels):
            return self._stages.prepare(pixels)
        size = (pixels.shape[0], pixels.shape[1])
        check_input_size(
            size, self.contract, self.session.backend, any_size=self.session.takes_any_size
        )
        return preprocess(pixels, self.contract)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the raw output of a prepared batch: one run, or a loop over the scales in `loop`.

        The loop takes one image `(1, C, H, W) float32`, and returns `(1, C, H, W) float32`.
        """
        if not self.loop:
            return self.session.run(batch)
        return fused_logits(self.session, batch, self.loop, flip=False, fuse="mean")[None]

    def logits(self, image: Image, options: InferenceOptions = ONE_RUN) -> NDArray[np.float32]:
        """Return an image's logits `(C, H', W') float32` at the contract's size.

        A binary network's have two channels: the threshold's logit and the network's own. With
        `options.tile`, the logits have the image's own size.

        Raises:
            InputError: if a logit is not finite, or the network gives no logits.
        """
        self._check_logits()
        return self.scores(image, options)

    def scores(self, image: Image, options: InferenceOptions = ONE_RUN) -> NDArray[np.float32]:
        """Return an image's logits, as `logits`, or a network's probabilities if it ends in them.

        Raises:
            InputError: as `logits`, but for a graph that gives labels alone.
        """
        pixels = as_image(image, self.contract)
        if self.contract.output == "labels":
            self._check_logits()
        return self._scores(pixels, options)

    def predict(self, image: Image, options: InferenceOptions = ONE_RUN) -> NDArray[np.uint8]:
        """Return labels `(H, W) uint8` at the image's own size.

        The labels of a multilabel network are bit planes: bit k is set where the pixel is of class
        k (`segdeploy.models.bit_planes`).

        `image` is an array `(H, W, C)` of the contract's channels and dtype, `(H, W, 3) uint8` RGB
        for most networks; a Pillow image; or the path of a JPEG, PNG, NPY or TIFF file. Logits are
        upsampled to the image's size before the best class is taken. The labels of a graph that
        ends in labels can only be enlarged by nearest neighbor.

        Raises:
            InputError, ModelInputError: for an array of another shape or dtype, or a bad file.
        """
        pixels = as_image(image, self.contract)
        size = (pixels.shape[0], pixels.shape[1])
        if options.tile:
            labels = np.empty(size, np.uint8)
            for rows, found in self._tiled(pixels, options):
                labels[rows] = found if found.ndim == 2 else self._decided(found)
            return labels
        if self._runs_several(options):
            place = self._place(size)
            return self._ignored_outside_crop(
                labels_at(self._scores(pixels, options), size, place, self._decided), place
            )
        return self.labels_of(self._run(pixels), size)

    def predict_batch(self, images: Sequence[Image]) -> list[NDArray[np.uint8]]:
        """Return the labels of each image; images run in batches if the network takes batches."""
        arrays = [as_image(image, self.contract) for image in images]
        inputs = [self.prepare(pixels) for pixels in arrays]
        labels: list[NDArray[np.uint8]] = []
        while len(labels) < len(inputs):
            start = len(labels)
            together = inputs[start : start + self._batch]
            alike = [one.shape == together[0].shape for one in together]
            count = alike.index(False) if False in alike else len(alike)
            outputs = self.run(np.concatenate(together[:count]))
            for pixels, output in zip(arrays[start:], outputs, strict=False):
                size = (pixels.shape[0], pixels.shape[1])
                labels.append(self.labels_of(self.finite(output), size))
        return labels

    def probabilities(
        self, image: Image, options: InferenceOptions = ONE_RUN
    ) -> NDArray[np.float32]:
        """Return probabilities `(C, H, W) float32` at the image's own size.

        Those of a pixel sum to 1, except for a multilabel network. Pixels outside the
        contract's crop have the probability 0 for every class.

        Raises:
            InputError: if the graph ends in labels.
        """
        pixels = as_image(image, self.contract)
        if self.contract.output == "labels":
            raise InputError(
                f"{self.session.backend}: the graph gives labels; use one that ends in logits or "
                "probabilities"
            )
        scores = self._scores(pixels, options)
        size = (pixels.shape[0], pixels.shape[1])
        place = None if options.tile else self._place(size)
        scores = upsample(scores, size, place=place)
        scores = self.class_probabilities(scores)
        if place is not None and place.is_cropped:
            known = np.zeros_like(scores)
            rows, columns = crop_window(place, size)
            known[:, rows, columns] = scores[:, rows, columns]
            return known
        return scores

    def _scores(self, pixels: NDArray[Any], options: InferenceOptions) -> NDArray[Any]:
        """Return scores `(C, h, w)` of one run, of several fused runs, or of tiles."""
        if options.tile:
            found = self._tiled(pixels, options)
            return np.concatenate([band for _, band in found], axis=-2)
        if not self._runs_several(options):
            return self._run(pixels)
        self._check_logits()
        batch, scales = self.prepare(pixels), options.scales or self.loop
        logits = fused_logits(self.session, batch, scales, flip=options.flip, fuse=options.fuse)
        return self._of_classes(self.finite(logits))

    def _of_classes(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return scores with one channel for each class; those of a binary network have one."""
        if self.contract.head != "binary" or scores.ndim != 3 or len(scores) != 1:
            return scores
        return with_background(scores, self.contract.threshold_scores[0])

    def _decided(self, scores: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the best class of each pixel, or the ignore index where the class is unsure.

        The labels of a multilabel network are bit planes.
        """
        if self.contract.has_bit_planes:
            return bit_planes(scores, self.contract.threshold_scores)
        labels = best_class(scores)
        if self.contract.min_confidence is not None:
            confidence = np.take_along_axis(
                self.class_probabilities(scores), labels[None].astype(np.intp), 0
            )[0]
            labels[confidence < self.contract.min_confidence] = self.contract.ignore_index
        return labels

    def class_probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities `(C, H, W)` of scores with one channel for each class."""
        if self.contract.has_bit_planes:
            return sigmoid(scores) if self.contract.output == "logits" else scores
        if self.contract.head == "binary":
            if self.contract.output == "probabilities":
                return np.concatenate([1 - scores[1:], scores[1:]])
            scores = with_background(scores[1:])
        return softmax(scores) if self.contract.output == "logits" else scores

    def _runs_several(self, options: InferenceOptions) -> bool:
        """Return whether the options ask for more than `run`, which fuses `loop` by the mean."""
        return options.is_augmented or (bool(self.loop) and options.fuse != "mean")

    def _check_logits(self) -> None:
        if self.contract.output != "logits":
            raise InputError(
                f"{self.session.backend}: the graph gives {self.contract.output}, not logits; use "
                "one that ends in logits, without --output and without a softmax or sigmoid"
            )

    def labels_of(self, output: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Convert one image's raw output to labels at `size` (H, W), as the contract specifies.

        Pixels outside the contract's crop get the ignore index.
        """
        if self._stages is not None and output.ndim == 3:
            return self._stages.labels(output, size)
        place = self._place(size)
        output = self._of_classes(output)
        return self._ignored_outside_crop(self._labels(output, size, self.contract, place), place)

    def _ignored_outside_crop(
        self, labels: NDArray[np.uint8], place: Placement | None
    ) -> NDArray[np.uint8]:
        """Return labels with the ignore index where a crop left pixels out."""
        if place is None or not place.is_cropped:
            return labels
        height, width = labels.shape
        known = np.full_like(labels, self.contract.ignore_index)
        rows, columns = crop_window(place, (height, width))
        known[rows, columns] = labels[rows, columns]
        return known

    def best(self, upsampled: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the labels `(H, W)` of scores `(C, H, W)` that `upsampled` returned."""
        _, height, width = upsampled.shape
        return self._ignored_outside_crop(self._decided(upsampled), self._place((height, width)))

    def margins(self, upsampled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how clear the label of each pixel is, `(H, W)`, for scores `(C, H, W)`.

        It is the best score's lead over the second, or for a multilabel network the distance from
        the threshold of the class that is nearest to its threshold.
        """
        if self.contract.has_bit_planes:
            thresholds = np.array(self.contract.threshold_scores, np.float32)
            nearest_threshold: NDArray[np.float32] = np.abs(
                upsampled - thresholds[:, None, None]
            ).min(0)
            return nearest_threshold
        return margin(upsampled)

    def with_label_ids(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return labels with the ids of the contract's `label_ids` instead of the classes' ids.

        The ignore index stays.
        """
        ids = self.contract.label_ids
        if ids is None:
            return labels
        table = np.arange(256, dtype=np.uint8)
        table[: len(ids)] = ids
        return table[labels]

    def crop_window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of an image of `size` (H, W) in the contract's crop, if any.

        The network sees no other pixel of the image.
        """
        return crop_window(placement(size, self.contract), size)

    def upsampled(self, scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Return scores `(C, h, w)` at an image's own `size` (H, W), without the padding."""
        return upsample(scores, size, place=self._place(size))

    def _place(self, size: tuple[int, int]) -> Placement | None:
        """Return where an image of `size` lies on the network's input; None if it covers it."""
        place = placement(size, self.contract)
        return None if place.is_whole else place

    def _labels(
        self,
        output: NDArray[Any],
        size: tuple[int, int],
        contract: Contract,
        place: Placement | None = None,
    ) -> NDArray[np.uint8]:
        if contract.output != "labels":
            return labels_at(output, size, place, self._decided)
        if contract.upsampling is not None:
            output = late_labels(output, placement(size, contract).size, contract)
        return nearest(output, size, place)

    def _tiled(
        self, pixels: NDArray[Any], options: InferenceOptions
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        if options.is_augmented or self.loop:
            raise InputError("tiles go with one scale, and without flip")
        if self.contract.source_size is not None:
            raise InputError(
                f"{self.session.backend}: the graph resizes images of one size; export the network "
                "without --source-size to run tiles"
            )
        contract = self.contract
        window = largest_window(self.session, contract, pixels.shape[:2])
        at_window = contract.stretched_to(window)

        def run(part: NDArray[Any]) -> NDArray[Any]:
            found = self.finite(self.session.run(preprocess(part, at_window))[0])
            found = self._of_classes(found)
            if contract.output == "labels":
                return self._labels(found, window, at_window)
            return found

        return tiled(run, pixels, window)

    @property
    def _batch(self) -> int:
        """The number of images that one run takes."""
        most = 1 if self.loop else self.session.input.shape[0]
        if isinstance(most, int):
            return most
        taking = [p.maximum[0] for p in self.session.profiles if p.takes((1, *self.contract.size))]
        return max(taking, default=_MOST_BATCH)

    def _run(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return self._of_classes(self.finite(self.run(self.prepare(pixels))[0]))

    def finite(self, output: NDArray[Any]) -> NDArray[Any]:
        """Return the output unchanged if all its values are finite.

        Raises:
            InputError: if the output holds NaN or infinity.
        """
        if not np.isfinite(output).all():
            raise InputError(
                f"{self.session.backend}: output '{self.session.output.name}' holds NaN or "
                "infinity for this image; look for overflow in the network"
            )
        return output

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        if not self._closed:
            self.session.close()
        self._closed = True


def as_image(image: Image, contract: Contract) -> NDArray[Any]:
    """Return an array, a Pillow image or a file as the contract's image `(H, W, C)`.

    Where the contract converts RGB to gray, an RGB image is returned as it is. Nothing else is
    converted.

    Raises:
        InputError, ModelInputError: for an array of another shape or dtype, values that are not
            finite, or a bad file.
    """
    channels, dtype = contract.image_channels, contract.dtype
    if isinstance(image, (str, Path)):
        may_be_color = contract.gray is not None
        return read_pixels(Path(image), channels, dtype, may_be_color=may_be_color)
    if isinstance(image, PillowImage):
        image = _of_pillow(image, contract)
    named = "in RGB order" if channels == RGB else f"of {listed(channels)}"
    wanted = f"(H, W, {len(channels)}) {dtype} {named}"
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"predict: the image is a {type(image).__name__}; give an array {wanted}, a Pillow "
            "image or a path"
        )
    if image.ndim == 2 and len(channels) == 1:
        image = image[:, :, None]
    counts = {len(channels)} | ({3} if contract.gray is not None else set())
    if not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="))
    fits = image.ndim == 3 and image.shape[2] in counts and image.dtype == dtype
    if not fits or not image.size:
        raise InputError(
            f"predict: the image has shape {image.shape} and dtype {image.dtype}; it must be "
            f"{wanted}{_mend(image, contract)}"
        )
    if dtype == "float32" and not np.isfinite(image).all():
        raise InputError("predict: the image holds NaN or infinity")
    return image


def _of_pillow(image: PillowImage, contract: Contract) -> NDArray[Any]:
    """Return a Pillow image's pixels; a gray one is not repeated for a contract of one channel."""
    if len(contract.image_channels) == 1:
        if contract.dtype == "uint8" and image.mode == "L":
            return of_pillow(image, "the image")[:, :, :1]
        if contract.dtype == "uint16" and image.mode == "I;16":
            return np.array(image)[:, :, None]
    return of_pillow(image, "the image")


def _mend(image: NDArray[Any], contract: Contract) -> str:
    """Return the advice for an image that the contract could convert, if it said so."""
    if contract.channels == GRAY and image.ndim == 3 and image.shape[2] == len(RGB):
        return "; state a conversion of RGB with --gray pillow or --gray opencv"
    return ""


def load(
    model: str | Path | ModelSpec | Artifact,
    *,
    backend: str | None = None,
    reference_execution: bool = False,
    threads: int | None = None,
    size: tuple[int, int] | None = None,
    scales: Sequence[float] = (),
    dataset: DataSet | None = None,
    default_size: tuple[int, int] | None = None,
) -> Predictor:
    """Open an exported file, an engine, a checkpoint or a named network, ready to predict.

    `size` (H, W) is the size that images are resized to, for a network that takes any size. Every
    image runs at each of `scales`, and the logits are averaged, unless the graph contains the
    scales. `dataset` and `default_size` complete a named network, as in `load_network`.

    Raises:
        InputError, ModelInputError: if the model cannot be found, read or run here.
    """
    file: Artifact | None
    if isinstance(model, Artifact):
        spec, file = ModelSpec(str(model.path)), model
    else:
        spec = ModelSpec.of(model)
        file = artifact_of(spec)
    if file is not None:
        if isinstance(file, OnnxFile):
            file.check()
        session = open_session(
            file, backend, reference_execution=reference_execution, threads=threads
        )
        return Predictor(session, size or spec.size, scales)
    if backend not in (None, "torch"):
        raise InputError(f"{spec.model}: a PyTorch network runs in torch; export it for {backend}")
    from segdeploy.packages import require

    require("torch")
    from segdeploy.runtime.torch_session import TorchSession

    loaded = load_network(replace(spec, size=size) if size else spec, dataset, default_size)
    return Predictor(TorchSession(loaded.network, loaded.contract, threads=threads), None, scales)

"""The contract: the input that a deployed network expects and the output that it returns.

The contract is created once, when a network is trained or loaded. The checkpoint header, the ONNX
`metadata_props` and the engine manifest then carry it, so that the user does not enter it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from segdeploy.errors import InputError
from segdeploy.models.channels import RGB
from segdeploy.models.names import BACKGROUND
from segdeploy.models.palette import voc_color

METADATA_KEY = "segdeploy.contract"
# Metadata key of a graph whose proof failed. The value describes the failures.
REJECTED_KEY = "segdeploy.rejected"
# Metadata keys of an ONNX node: the PyTorch module whose output the node computes, the convolution
# call that the node computes, and the calls (one per line) whose 1x1 convolutions were folded in.
MODULE_KEY = "segdeploy.module"
CALL_KEY = "segdeploy.call"
FOLDED_KEY = "segdeploy.folded"

SCHEMA = 2
# Decided when a file is written, checked when the file is read. "mixed" is INT8 and a float type.
Precision = Literal["fp32", "fp16", "bf16", "int8", "mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OUTPUTS = ("logits", "probabilities", "labels")
# `multiclass` takes the best class. `binary` has one channel, the score of the second class.
# `multilabel` compares the score of each class with a threshold of its own.
HEADS = ("multiclass", "binary", "multilabel")
BINARY_CLASSES = (BACKGROUND, "foreground")
_FILTERS = ("box", "bilinear", "bicubic", "lanczos")
# Resize kernels by the library whose arithmetic they have. Pillow 13 changed the order of its
# passes; `pillow-pre13` is the earlier order.
RESIZE_KERNELS = (
    *("pillow-nearest", *(f"pillow-{name}" for name in _FILTERS)),
    *(f"pillow-pre13-{name}" for name in _FILTERS),
    *("opencv-nearest", "opencv-linear", "opencv-area", "opencv-cubic"),
    *("torch-nearest", "torch-nearest-exact"),
    *("torch-bilinear", "torch-bilinear-align-corners", "torch-bilinear-antialias"),
    *("torch-bicubic", "torch-bicubic-align-corners", "torch-bicubic-antialias"),
    *("torchvision-uint8-bilinear", "torchvision-uint8-bicubic"),
)
MOST_PIXELS = 100_000_000  # limit of H * W of an input, equal to the limit of an image file
MOST_CLASSES = 255  # a label is a byte, and one value of it means "ignored"
MOST_CHANNELS = 64
# Limits of the numbers of preprocessing, which keep float32 results finite.
LEAST, MOST = 1e-9, 1e9

# torchvision's ImageNet statistics of RGB in 0..1, which published weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

GRAY = ("gray",)
GRAY_CONVERSIONS = ("pillow", "opencv")
# The arithmetic of the normalization (`preprocessing.normalization`).
NORMALIZATIONS = (
    *("f32-affine", "f32-div", "f32-mul-inv", "f32-fused-div", "f32-fused-mul"),
    *("f32sub-f64mul", "f64", "per-image", "none"),
)
# The sequences of steps that fit an image to the network's input (`preprocessing.fit`).
FITS = (
    *("stretch", "letterbox", "shortest-edge", "longest-edge", "none"),
    *("shortest-edge,center-crop", "longest-edge,pad", "center-crop"),
    *("shortest-edge,pad-to-multiple", "longest-edge,pad-to-multiple", "pad-to-multiple"),
)
SIZE_FOLLOWS_IMAGE = (
    *("shortest-edge", "longest-edge", "none"),
    *(fit for fit in FITS if fit.endswith("pad-to-multiple")),
)
# The fields that belong to a fit and are stated with it, each with an example.
FIT_EXAMPLES: Mapping[str, Any] = {
    **{"edge": 512, "longest_edge": 2048, "rounding": "mmcv", "side_multiple": 32},
    **{"pad": 114, "pad_side": "center", "pad_multiple": 32},
}
NO_FIT: Mapping[str, Any] = {**dict.fromkeys(FIT_EXAMPLES), "pad_normalized": False}
# The rules for the sides of a resized image and the offset of a crop, by library.
ROUNDINGS = ("torchvision", "huggingface", "albumentations", "mmcv")
PAD_SIDES = ("center", "bottom-right")
# The fields that a file of weights does not tell: how the images were prepared in training.
PREPROCESSING = ("fit", "resize", "channels", "mean", "std")


@dataclass(frozen=True)
class Contract:
    """Preprocessing, output format and classes: all that a caller of the network must know.

    An image is `(H, W, C)` of `dtype`. Its channels are `source_channels` if the contract says so,
    else red, green and blue in this order if `channels` holds these three, else those of
    `channels`. `gray` converts RGB to gray.
    Preprocessing resizes the image with the kernel `resize` and crops or pads it as `fit` says.
    Then it takes the channels in the order of `channels`, which is the network's, multiplies by
    `scale`, and normalizes by `mean` and `std` with the arithmetic that `normalization` names. With
    the layout `NHWC` the network takes the resized image, and the graph contains the rest.

    `edge` and `longest_edge` are the target of an edge in pixels and the limit of the longer one,
    `rounding` is the rule of the other side, `side_multiple` the number to whose multiples the
    sides are rounded up. `pad` holds the values of the padding (before or, with
    `pad_normalized`, after normalization), `pad_side` is its place, and `pad_multiple` the number
    whose multiples the sides are padded to. With `source_size` the graph takes images of this
    (H, W), and resizes, crops and pads them itself.

    The `head` is `multiclass`, or `binary`: two classes and one channel, the score of the second
    class, whose probability (the sigmoid of the logit) is compared with `threshold`; or
    `multilabel`, where the probability of each class is compared with its own `threshold`, and the
    labels are bit planes: bit k is set where the pixel is of class k. A pixel whose class has a
    probability below `min_confidence` gets the ignore index. `label_ids` are the ids that the
    classes have in published label images; classes of one group share an id. Below, C is the number
    of channels of the scores.

    `output` is `logits` or `probabilities` `(N, C, H, W) float32`, or `labels` `(N, H, W) uint8`.
    With `upsampling` (`align-corners` or `half-pixel`) the graph returns low-resolution logits
    `(N, C, h, w)`, and the runtime computes the labels: bilinear upsampling to `size`, then argmax.
    `scales`, `flip` and `fuse` describe the test-time augmentation embedded in the graph. `bounds`
    of a dynamic graph are the smallest (H, W), the largest (H, W) and the largest batch. Height and
    width of the input, at every scale, are multiples of `multiple`. `assumed` names the fields of
    `PREPROCESSING` that nobody stated, so that they hold a default.
    """

    architecture: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    size: tuple[int, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = RGB
    source_channels: tuple[str, ...] | None = None
    dtype: str = "uint8"
    gray: str | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    normalization: str = "f32-affine"
    layout: str = "NCHW"
    fit: str = "stretch"
    edge: int | None = None
    longest_edge: int | None = None
    rounding: str | None = None
    side_multiple: int | None = None
    pad: tuple[float, ...] | None = None
    pad_normalized: bool = False
    pad_side: str | None = None
    pad_multiple: int | None = None
    resize: str = "pillow-bilinear"
    source_size: tuple[int, int] | None = None
    head: str = "multiclass"
    threshold: float | tuple[float, ...] | None = None
    min_confidence: float | None = None
    label_ids: tuple[int, ...] | None = None
    output: str = "logits"
    precision: Precision = "fp32"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: str = "mean"
    upsampling: str | None = None
    bounds: tuple[tuple[int, int], tuple[int, int], int] | None = None
    multiple: int = 1
    provenance: Mapping[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one input: `(C, H, W)`, or `(H, W, C)` for the layout `NHWC`."""
        return self.shape_at(self.input_size)

    @property
    def input_size(self) -> tuple[int, int]:
        """The (H, W) of the graph's input: that of the images if the graph resizes them."""
        return self.source_size or self.size

    def shape_at(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape of one input of `size` (H, W)."""
        height, width = size
        count = len(self.channels)
        return (height, width, count) if self.layout == "NHWC" else (count, height, width)

    @property
    def input_dtype(self) -> str:
        """The network's input dtype: float32, or uint8 where the graph normalizes bytes."""
        return "uint8" if self.layout == "NHWC" and self.dtype == "uint8" else "float32"

    @property
    def score_channels(self) -> int:
        """The number of channels of the network's scores."""
        return 1 if self.head == "binary" else len(self.classes)

    @property
    def has_bit_planes(self) -> bool:
        """Whether a label is a bit plane of several classes instead of one class id."""
        return self.head == "multilabel"

    @property
    def threshold_scores(self) -> tuple[float, ...]:
        """The score of each channel of a binary or multilabel network above which a pixel counts.

        It is the threshold's logit, so that no sigmoid is computed, unless the network gives
        probabilities.
        """
        given = 0.5 if self.threshold is None else self.threshold
        thresholds = given if isinstance(given, tuple) else (given,) * self.score_channels
        if self.output == "probabilities":
            return thresholds
        return tuple(math.log(one / (1 - one)) for one in thresholds)

    @property
    def image_channels(self) -> tuple[str, ...]:
        """The channels of an image, in the order of its file or array."""
        if self.source_channels is not None:
            return self.source_channels
        return RGB if is_color(self.channels) else self.channels

    @property
    def channel_order(self) -> list[int]:
        """The places of the network's channels among those of an image."""
        return [self.image_channels.index(name) for name in self.channels]

    @property
    def follows_image(self) -> bool:
        """Whether the size of the network's input follows the image's own size."""
        return self.fit in SIZE_FOLLOWS_IMAGE

    def derived(self, parent_sha256: str, versions: Mapping[str, str], **changes: Any) -> Contract:
        """Return the contract of a derived file, with the parent's SHA-256 and the tool versions.

        The hashes of older ancestors are listed in `ancestors_sha256`, nearest first.
        """
        provenance = {**self.provenance, **versions, "parent_sha256": parent_sha256}
        if grandparent := self.provenance.get("parent_sha256"):
            older = self.provenance.get("ancestors_sha256")
            provenance["ancestors_sha256"] = f"{grandparent},{older}" if older else grandparent
        return replace(self, provenance=provenance, **changes)

    @property
    def assumptions(self) -> str:
        """The assumed fields with their values, such as `resize pillow-bilinear, mean 0,0,0`."""
        values = ((name, getattr(self, name)) for name in self.assumed)
        return ", ".join(
            f"{name} {value if isinstance(value, str) else listed(value)}" for name, value in values
        )

    @property
    def is_adopted(self) -> bool:
        """Whether the contract is of a file of another tool, which cannot be exported again."""
        return self.architecture == "adopted"

    @property
    def other_bounds(self) -> str:
        """How the graph gets other bounds of its sizes."""
        if self.is_adopted:
            return "adopt the file again with another --min and --max"
        return "export it with --min-size and --max-size"

    @property
    def doubt(self) -> str | None:
        """What the fields state together that is mostly a mistake, as a sentence; None usually."""
        constants = (*self.mean, *self.std)
        usual = (*IMAGENET_MEAN, *IMAGENET_STD)
        are_usual = len(constants) == len(usual) and all(
            math.isclose(one, other, rel_tol=1e-6)
            for one, other in zip(constants, usual, strict=True)
        )
        if self.channels != ("B", "G", "R") or not are_usual:
            return None
        return (
            "the channels are B,G,R, and mean and std are ImageNet's in the order R,G,B, so that "
            "red's constants are applied to blue; state mean and std in the order of the channels, "
            "unless the network was trained so"
        )

    def assumption_note(self, source: str) -> str:
        """Return the note about the fields that nobody stated for the network of `source`."""
        return (
            f"{source}: assumed how its images are prepared: {self.assumptions}; state what its "
            "training did with --fit (and --pad), --resize, --channels, --mean and --std, or with "
            "--contract FILE"
        )

    def stretched_to(self, size: tuple[int, int]) -> Contract:
        """Return the contract of a window or a trial: every image is stretched to `size` (H, W)."""
        return replace(self, size=size, fit="stretch", **NO_FIT)

    def to_json(self) -> str:
        """Serialize as one line of JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)


Classes = tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], int]
"""Names, colors and the ignore index of a data set's or a contract's classes."""


def is_color(channels: Sequence[str]) -> bool:
    """Return whether the channels are red, green and blue, in any order."""
    return sorted(channels) == sorted(RGB)


def listed(values: Sequence[Any]) -> str:
    """Return values as the command line takes them, such as `0.485,0.456,0.406`."""
    return ",".join(one if isinstance(one, str) else f"{one:g}" for one in values)


def check_pixels(size: Sequence[int], what: str) -> None:
    """Refuse an input `size` (H, W) of more than `MOST_PIXELS` pixels.

    Raises:
        InputError: with a message that begins with `what`.
    """
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            f"{what} is {size[0]}x{size[1]}, more than {MOST_PIXELS} pixels; export the network "
            "for a smaller size"
        )


def placeholder_classes(count: int) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return placeholder names and well-separated colors for a network without a data set.

    Raises:
        InputError: for more than `MOST_CLASSES` classes.
    """
    if count > MOST_CLASSES:
        raise InputError(f"{count} classes: labels are uint8, so the maximum is {MOST_CLASSES}")
    names = tuple(f"class_{index}" for index in range(count))
    return names, tuple(voc_color(index) for index in range(count))


def numbered_classes(count: int) -> Classes:
    """Return placeholder classes for `count` output channels; one channel is a binary network's.

    Raises:
        InputError: for more than `MOST_CLASSES` classes.
    """
    if count == 1:
        return BINARY_CLASSES, placeholder_classes(len(BINARY_CLASSES))[1], 255
    return *placeholder_classes(count), 255


def usual_channels(count: int, source: str) -> tuple[str, ...]:
    """Return the usual names of `count` channels: RGB, or gray for one.

    Raises:
        InputError: for another number; the message begins with `source`.
    """
    if count == len(RGB):
        return RGB
    if count == 1:
        return GRAY
    raise InputError(
        f"{source} takes {count} channels; name them in the network's order: --channels "
        f"{','.join(['NAME'] * min(count, 8))}"
    )

"""The contract: the input that a deployed network expects and the output that it returns.

The contract is created once, when a network is trained or loaded. The checkpoint header, the ONNX
`metadata_props` and the engine manifest then carry it, so that the user does not enter it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from segdeploy.errors import InputError
from segdeploy.models.names import are_names, is_line
from segdeploy.models.palette import voc_color
from segdeploy.models.strict_json import parse_json

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

# torchvision's ImageNet statistics of RGB in 0..1, which published weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# The fields that a file of weights does not tell: how the images were prepared in training.
PREPROCESSING = ("fit", "resize", "color", "mean", "std")


# `stretch` ignores the aspect ratio. `letterbox` keeps it, and pads around the image;
# `letterbox-bottom-right` pads at the bottom and at the right.
FITS = ("stretch", "letterbox", "letterbox-bottom-right")


@dataclass(frozen=True)
class Contract:
    """Preprocessing, output format and classes: all that a caller of the network must know.

    An image is `(H, W, 3) uint8` in `color` order. Preprocessing resizes the image with the kernel
    `resize` to `size` (H, W), as `fit` says, and pads a letterbox with `pad` (0 to 255). Then it
    divides by 255, normalizes by `mean` and `std`, and applies `layout`. With the layout `NHWC` the
    network takes the resized uint8 image, and the graph contains the rest of the preprocessing.

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
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color: str = "RGB"
    layout: str = "NCHW"
    resize: str = "pillow-bilinear"
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
    fit: str = "stretch"
    pad: tuple[float, float, float] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one input image: `(3, H, W)`, or `(H, W, 3)` uint8 for the layout `NHWC`."""
        height, width = self.size
        return (height, width, 3) if self.layout == "NHWC" else (3, height, width)

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
        """The assumed fields with their values, such as `resize pillow-bilinear, color RGB`."""
        values = ((name, getattr(self, name)) for name in self.assumed)
        return ", ".join(
            f"{name} {value if isinstance(value, str) else ','.join(f'{one:g}' for one in value)}"
            for name, value in values
        )

    def with_stated(self, stated: Mapping[str, Any]) -> Contract:
        """Return the contract with fields that the user states, which are no longer assumed.

        Raises:
            InputError: if they contradict each other, or the rest of the contract.
        """
        check_normalization(stated.get("mean"), stated.get("std"))
        fields_of = {"pad": None, **stated} if stated.get("fit") == "stretch" else dict(stated)
        assumed = tuple(name for name in self.assumed if name not in stated)
        made = replace(self, **fields_of, assumed=assumed)
        if reason := contradiction(made):
            raise InputError(reason)
        return made

    def to_json(self) -> str:
        """Serialize as one line of JSON, with the first schema whose readers understand it."""
        schema = 1 if self.fit == "stretch" else SCHEMA
        return json.dumps({"schema": schema, **asdict(self)}, sort_keys=True)


def read_contract(text: str, source: str) -> Contract:
    """Parse and check a contract that was read from `source`.

    Raises:
        InputError: if the text is not JSON, the schema differs, or a field has a wrong type or
            length.
    """
    values = parse_json(text, f"{source}: its segdeploy contract", mend="export the network again")
    if not isinstance(values, dict):
        raise InputError(f"{source}: its segdeploy contract is not a JSON object")
    schema = values.pop("schema", None)
    if isinstance(schema, bool) or schema not in range(1, SCHEMA + 1):
        raise InputError(
            f"{source}: its contract has schema {schema!r}, this segdeploy reads {SCHEMA}; "
            "install the segdeploy that wrote it, or export again"
        )
    if "colour" in values:  # the spelling of earlier versions
        values.setdefault("color", values.pop("colour"))
    checks = {**_CHECKS, **{k: v for k, v in _LATER_CHECKS.items() if k in values}}
    for name, is_valid in checks.items():
        if name not in values:
            raise InputError(
                f"{source}: the contract's '{name}' is missing; export the network again"
            )
        if not is_valid(values[name]):
            raise InputError(
                f"{source}: the contract's '{name}' is wrong, or of a kind that this version does "
                "not execute; export the network again"
            )
    largest = (values.get("bounds") or [None, values["size"]])[1]
    for size in (values["size"], largest):
        check_pixels(size, f"{source}: the contract's input")
    if len(values["palette"]) != len(values["classes"]):
        raise InputError(
            f"{source}: the contract's numbers of colors and classes differ; export the network "
            "again"
        )
    known = {entry.name for entry in fields(Contract)}
    contract = Contract(**{name: _frozen(v) for name, v in values.items() if name in known})
    if reason := contradiction(contract):
        raise InputError(
            f"{source}: its contract contradicts itself ({reason}); export the network again"
        )
    return contract


def check_normalization(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Refuse normalization constants that would produce meaningless labels; None is not stated.

    Raises:
        InputError: for a mean or standard deviation that is not of RGB in 0..1.
    """
    if mean is not None and not all(-1 <= one <= 2 for one in mean):
        raise InputError(
            f"--mean {','.join(map(str, mean))}: must be of RGB in 0..1; divide it by 255"
        )
    if std is not None and not all(0 < one <= 2 for one in std):
        raise InputError(
            f"--std {','.join(map(str, std))}: must be of RGB in 0..1 and above 0; divide it by 255"
        )


def contradiction(contract: Contract) -> str | None:
    """Return how the fit, the pad value and the layout contradict each other; None if they do not.

    The reason begins with the option that states the field.
    """
    fit, pad = contract.fit, contract.pad
    if pad is None:
        if fit == "stretch":
            return None
        return f"--fit {fit}: needs the value of the padding, such as --pad 114"
    shown = f"--pad {','.join(f'{one:g}' for one in pad)}"
    if fit == "stretch":
        return f"{shown}: goes with --fit letterbox or letterbox-bottom-right"
    if not all(0 <= one <= 255 for one in pad):
        return f"{shown}: must be in 0..255, before normalization"
    if contract.layout == "NHWC" and not all(float(one).is_integer() for one in pad):
        return f"{shown}: the graph takes uint8 images, so the padding is a whole number"
    return None


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


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    """Return whether `value` is a number (not a bool) of magnitude up to 1e9, safe for float32."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e9


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_list(length: int | None, is_item: Any) -> Any:
    def check(value: object) -> bool:
        return (
            isinstance(value, list)
            and (len(value) == length if length is not None else bool(value))
            and all(is_item(item) for item in value)
        )

    return check


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def _are_bounds(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    sizes = _is_list(2, _is_size)
    if not (sizes(value[0]) and sizes(value[1]) and _is_size(value[2])):
        return False
    return all(low <= high for low, high in zip(value[0], value[1], strict=True))


def _is_positive(value: object) -> bool:
    return _is_number(value) and float(value) > 1e-9  # type: ignore[arg-type]


def _is_provenance(value: object) -> bool:
    return isinstance(value, dict) and all(is_line(text) for item in value.items() for text in item)


_CHECKS = {
    "architecture": is_line,
    "classes": lambda value: are_names(value) and len(value) <= MOST_CLASSES,
    "palette": _is_list(None, _is_list(3, _is_byte)),
    "ignore_index": _is_byte,
    "size": _is_list(2, _is_size),
    "arguments": _is_mapping,
    "mean": _is_list(3, _is_number),
    "std": _is_list(3, _is_positive),
    # Only values that this version implements. Others would silently give wrong results.
    "color": lambda value: value in ("RGB", "BGR"),
    "layout": lambda value: value in ("NCHW", "NHWC"),
    "resize": lambda value: value in RESIZE_KERNELS,
    "output": lambda value: value in OUTPUTS,
    "precision": lambda value: value in PRECISIONS,
    "scales": _is_list(None, _is_positive),
    "flip": lambda value: isinstance(value, bool),
    "provenance": _is_provenance,
}
# Checks of fields that are missing in files of earlier versions.
_LATER_CHECKS = {
    "fuse": lambda value: value in ("mean", "max"),
    "upsampling": lambda value: value in (None, "align-corners", "half-pixel"),
    "bounds": lambda value: value is None or _are_bounds(value),
    "multiple": _is_size,
    "fit": lambda value: value in FITS,
    "pad": lambda value: value is None or _is_list(3, _is_number)(value),
    "assumed": lambda value: isinstance(value, list) and all(v in PREPROCESSING for v in value),
}


def placeholder_classes(count: int) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return placeholder names and well-separated colors for a network without a data set.

    Raises:
        InputError: for more than `MOST_CLASSES` classes.
    """
    if count > MOST_CLASSES:
        raise InputError(f"{count} classes: labels are uint8, so the maximum is {MOST_CLASSES}")
    names = tuple(f"class_{index}" for index in range(count))
    return names, tuple(voc_color(index) for index in range(count))

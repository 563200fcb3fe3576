"""Options that mean the same in every command."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from segdeploy.cli.console import say
from segdeploy.contract import (
    FITS,
    GRAY_CONVERSIONS,
    HEADS,
    MOST_CHANNELS,
    NORMALIZATIONS,
    PAD_SIDES,
    RESIZE_KERNELS,
    ROUNDINGS,
)
from segdeploy.contract_statement import STATED as FIELDS
from segdeploy.contract_statement import as_number, read_statement, replaced
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.channels import DTYPES
from segdeploy.models.names import are_names
from segdeploy.models.strict_json import parse_json
from segdeploy.supervisor import limit

Command = TypeVar("Command", bound=Callable[..., Any])


class _Parsed(click.ParamType):  # type: ignore[type-arg]
    """A value that `parse` reads from text; `wanted` describes one, with an example.

    The metavar is the name as it stands; click would write `HXW`.
    """

    wanted: str

    def get_metavar(self, *args: Any, **kwargs: Any) -> str:
        """Return the name."""
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse the value, or fail with an example of a valid one."""
        if not isinstance(value, str):
            return value
        found = self.parse(value)
        if found is None:
            self.fail(f"'{value}' is not {self.wanted}", param, ctx)
        return found

    def parse(self, text: str) -> Any:
        """Return the value, or None for text that is none."""
        raise NotImplementedError


def _sides(pattern: str, text: str) -> tuple[int, ...] | None:
    match = re.fullmatch(pattern, text)
    sides = tuple(map(int, match.groups())) if match else ()
    return sides if sides and all(sides) else None


def _numbers(text: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return None


class Size(_Parsed):
    """`HxW` in pixels, height first."""

    name = "HxW"
    wanted = "a size such as 360x480 (height x width)"

    def parse(self, text: str) -> tuple[int, ...] | None:
        """Return (H, W)."""
        return _sides(r"(\d{1,5})x(\d{1,5})", text)


class Shape(_Parsed):
    """`NxHxW`: batch, height and width."""

    name = "NxHxW"
    wanted = "a shape such as 1x360x480"

    def parse(self, text: str) -> tuple[int, ...] | None:
        """Return (N, H, W)."""
        return _sides(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text)


class Numbers(_Parsed):
    """Numbers separated by commas, one for each channel, or one for all."""

    name = "N,N,..."
    wanted = "a list of numbers such as 0.485,0.456,0.406"

    def parse(self, text: str) -> tuple[float, ...] | None:
        """Return the finite numbers."""
        numbers = _numbers(text)
        return numbers if numbers and all(map(math.isfinite, numbers)) else None


class Factor(_Parsed):
    """A positive number, or a fraction of two."""

    name = "N|N/N"
    wanted = "a factor such as 1/255 or 1"

    def parse(self, text: str) -> float | None:
        """Return the number."""
        number = as_number(text)
        return number if number is not None and 0 < number < math.inf else None


class Channels(_Parsed):
    """Names of channels in the network's order, separated by commas; RGB and BGR are short."""

    name = "NAME,NAME,..."
    wanted = "a list of channels such as R,G,B or gray"

    def parse(self, text: str) -> tuple[str, ...] | None:
        """Return the names."""
        names = list(text if text in ("RGB", "BGR") else text.split(","))
        return tuple(names) if are_names(names) and len(names) <= MOST_CHANNELS else None


class Probabilities(_Parsed):
    """One probability above 0 and below 1, or one for each class, separated by commas."""

    name = "P,P,..."
    wanted = "a probability above 0 and below 1, such as 0.5, or a list of them"

    def parse(self, text: str) -> float | tuple[float, ...] | None:
        """Return one number, or several."""
        numbers = _numbers(text)
        if not numbers or not all(0 < number < 1 for number in numbers):
            return None
        return numbers if len(numbers) > 1 else numbers[0]


class LabelIds(_Parsed):
    """Ids of 0 to 255, one for each class, separated by commas."""

    name = "ID,ID,..."
    wanted = "a list of ids of 0 to 255 such as 7,8,11"

    def parse(self, text: str) -> tuple[int, ...] | None:
        """Return the ids."""
        parts = text.split(",")
        are_ids = all(re.fullmatch(r"\d{1,3}", part) and int(part) <= 255 for part in parts)
        return tuple(map(int, parts)) if are_ids else None


class Scales(_Parsed):
    """Factors of the input size, separated by commas."""

    name = "S,S,..."
    wanted = "a list of scales such as 0.5,1,1.5"

    def parse(self, text: str) -> tuple[float, ...] | None:
        """Return the factors."""
        scales = _numbers(text)
        return scales if scales and all(0 < scale < 100 for scale in scales) else None


class Argument(_Parsed):
    """`KEY=VALUE`. A value that is no JSON is text."""

    name = "KEY=VALUE"
    wanted = "of the form KEY=VALUE"

    def parse(self, text: str) -> tuple[str, Any] | None:
        """Return the key and the value."""
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            return None
        try:
            return key, parse_json(value, key)
        except InputError:
            return key, value


_PIXELS = click.IntRange(1, 1 << 16)


def preprocessing_options(command: Command) -> Command:
    """Options that state how the images of a network were prepared."""
    for option in reversed(
        (
            click.option(
                "--contract",
                "contract_file",
                type=Path,
                metavar="FILE",
                help="JSON or TOML file with fields of the contract; options override it.",
            ),
            click.option(
                "--channels",
                type=Channels(),
                help="Channels in the network's order, such as R,G,B, B,G,R, gray or "
                "nir,red,green.  [default: R,G,B]",
            ),
            click.option(
                "--source-channels",
                type=Channels(),
                help="Channels of the images in their own order, where the network takes some of "
                "them, or another order.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(tuple(DTYPES)),
                help="Type of the images' values.  [default: uint8]",
            ),
            click.option(
                "--gray",
                type=click.Choice(GRAY_CONVERSIONS),
                help="Convert RGB images to the channel gray with the weights of this library.",
            ),
            click.option(
                "--fit",
                type=click.Choice(FITS),
                metavar="STEPS",
                help="How an image is fitted to the input size, such as letterbox or "
                "shortest-edge,center-crop.  [default: stretch]",
            ),
            click.option(
                "--edge",
                type=_PIXELS,
                metavar="N",
                help="Length of the edge that --fit names, in pixels.",
            ),
            click.option(
                "--longest-edge",
                type=_PIXELS,
                metavar="N",
                help="Limit of the longer edge with --fit shortest-edge, in pixels.",
            ),
            click.option(
                "--rounding",
                type=click.Choice(ROUNDINGS),
                help="Library whose rule rounds the sides of a resized image.",
            ),
            click.option(
                "--side-multiple",
                type=_PIXELS,
                metavar="N",
                help="Round the sides of a resized image up to multiples of N.",
            ),
            click.option(
                "--pad",
                type=Numbers(),
                help="Value of the padding before normalization, in the images' units: one number, "
                "or one for each channel.",
            ),
            click.option(
                "--pad-normalized",
                type=Numbers(),
                help="Value of the padding after normalization, instead of --pad.",
            ),
            click.option(
                "--pad-side",
                type=click.Choice(PAD_SIDES),
                help="Where the padding lies.  [default: center]",
            ),
            click.option(
                "--pad-multiple",
                type=_PIXELS,
                metavar="N",
                help="Pad height and width to multiples of N, with --fit pad-to-multiple.",
            ),
            click.option(
                "--resize",
                type=click.Choice(RESIZE_KERNELS),
                metavar="KERNEL",
                help="Kernel that resizes images, by the library whose arithmetic it has, such as "
                "opencv-linear.  [default: pillow-bilinear]",
            ),
            click.option(
                "--rescale",
                type=Factor(),
                help="Factor that multiplies the images' values before mean and standard "
                "deviation.  [default: 1/255 for uint8]",
            ),
            click.option(
                "--mean",
                type=Numbers(),
                help="Mean of each channel that preprocessing subtracts, after --rescale.",
            ),
            click.option(
                "--std",
                type=Numbers(),
                help="Standard deviation of each channel that preprocessing divides by.",
            ),
            click.option("--mean-255", type=Numbers(), help="--mean in units of 0 to 255."),
            click.option("--std-255", type=Numbers(), help="--std in units of 0 to 255."),
            click.option(
                "--head",
                type=click.Choice(HEADS),
                help="How the scores become labels: the best class, the sigmoid of one channel, or "
                "the sigmoid of every channel.  [default: by the network and --data]",
            ),
            click.option(
                "--threshold",
                type=Probabilities(),
                help="Probability above which a pixel is of the foreground of a binary network, or "
                "of each class of a multilabel network (one for all, or one for each).  "
                "[default: 0.5]",
            ),
            click.option(
                "--min-confidence",
                type=click.FloatRange(0, 1, min_open=True, max_open=True),
                metavar="P",
                help="Give pixels whose class has a lower probability the ignore index.",
            ),
            click.option(
                "--label-ids",
                type=LabelIds(),
                help="Ids that the classes have in the label images of `predict --labels`; classes "
                "of one group share an id.  [default: 0,1,2,...]",
            ),
            click.option(
                "--normalization",
                type=click.Choice(NORMALIZATIONS),
                metavar="FORMULA",
                help="Arithmetic of the normalization, such as f32-div; none for a network that "
                "normalizes by itself.  [default: f32-affine]",
            ),
        )
    ):
        command = option(command)
    return command


# The options above that are fields of a contract. `--scale` is an option of the augmentation.
STATED = (
    *(field for field in FIELDS if field not in ("scale", "pad_normalized")),
    *("rescale", "mean_255", "std_255"),
)
PREPROCESSING_OPTIONS = (*STATED, "pad_normalized", "contract_file")


def stated_preprocessing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the contract that `preprocessing_options` state, the file's first.

    Raises:
        InputError: for a contract file that cannot be used.
    """
    file = options["contract_file"]
    stated = {} if file is None else read_statement(file)
    given = {name: options[name] for name in STATED if options[name] is not None}
    if "rescale" in given:
        given["scale"] = given.pop("rescale")
    if options["pad_normalized"] is not None:
        if "pad" in given:
            raise click.UsageError("--pad and --pad-normalized: give one of the two")
        given |= {"pad": options["pad_normalized"], "pad_normalized": True}
    return replaced(stated, given)


foreground_option = click.option(
    "--foreground",
    metavar="CLASS",
    help="Class of --data that a binary network finds; all others are the background.",
)


source_option = click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Network of another framework, instead of MODEL: hf:DIR, smp:DIR, torchvision:NAME, "
    "mmseg:CONFIG,CHECKPOINT, or a file of weights (.pth, .safetensors) that is recognized. "
    "Network, weights, classes and preprocessing are read from it.",
)


def network_options(command: Command) -> Command:
    """Options that describe the network behind MODEL, as far as MODEL does not."""
    for option in reversed(
        (
            click.option(
                "--num-classes",
                type=click.IntRange(1, 255),
                metavar="N",
                help="Number of classes of a registry network; 1 is a binary network with one "
                "output channel.",
            ),
            foreground_option,
            click.option(
                "--width",
                type=click.IntRange(1, 1024),
                metavar="N",
                help="Channels of the network's first block.",
            ),
            click.option(
                "--stride",
                type=click.IntRange(1, 16),
                metavar="N",
                help="Stride of the network's first block.",
            ),
            click.option(
                "--arg",
                "extra",
                multiple=True,
                type=Argument(),
                help="Further argument of the constructor; VALUE is JSON or text. Repeatable.",
            ),
            click.option(
                "--weights",
                type=Path,
                metavar="FILE|NAME",
                help="Weights: a .safetensors file, a .pth state dict, or the name of weights that "
                "torchvision publishes, such as COCO_WITH_VOC_LABELS_V1.",
            ),
            click.option("--size", type=Size(), help="Input size of the network, in pixels."),
            click.option(
                "--take",
                metavar="KEY",
                help="Key or index of the logits, if the network returns several tensors.",
            ),
        )
    ):
        command = option(command)
    return preprocessing_options(command)


NETWORK_OPTIONS = (
    *("source", "num_classes", "foreground", "width", "stride", "extra", "weights", "size", "take"),
    *PREPROCESSING_OPTIONS,
)


def network_spec(model: str | None, options: dict[str, Any]) -> ModelSpec:
    """Build the `ModelSpec` from MODEL or `--from`, and the values of `network_options`."""
    source = options.get("source")
    if model is None and source is None:
        raise click.UsageError("Missing argument 'MODEL'; or give --from SOURCE")
    named: str = model or source  # type: ignore[assignment]
    arguments = {name: options[name] for name in ("width", "stride") if options[name] is not None}
    for name, value in options["extra"]:
        if name in arguments:
            raise click.UsageError(f"{name} is given twice; remove one of the two")
        arguments[name] = value
    return ModelSpec(
        named,
        options["num_classes"],
        arguments,
        options["weights"],
        options["size"],
        options["take"],
        stated_preprocessing(options),
        options["foreground"],
        source,
    )


def note_untrained(spec: ModelSpec) -> None:
    """Print a note on stderr if a registry network has no weights, and so gives random labels."""
    # A factory may have loaded its weights.
    if not (spec.is_file or spec.is_factory or spec.weights or spec.foreign_source):
        say(f"note: {spec.model} has random weights; give --weights FILE", err=True)


_DATA_SET = (
    "Data set: a folder with dataset.json; voc:DIR (PASCAL VOC), cityscapes:DIR, ade20k:DIR, "
    "mapillary:DIR, coco-stuff:DIR or pascal-context:DIR as published; or "
    "masks:IMAGES,MASKS,MAP.json for masks with any ids or colors"
)
data_option = click.option("--data", type=Path, required=True, metavar="DIR", help=f"{_DATA_SET}.")


def data_or_images_option(purpose: str, *, required: bool = True) -> Callable[[Command], Command]:
    """`--data`, which may be a folder of images without masks; `purpose` says what they are for."""
    return click.option(
        "--data",
        type=Path,
        required=required,
        metavar="DIR",
        help=f"{_DATA_SET}; or a folder of images without masks, for {purpose}.",
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress on stderr.")
backend_option = click.option(
    "--backend",
    metavar="NAME",
    help="Runtime of an .onnx file: onnxruntime (default), onnxruntime-cuda, "
    "onnxruntime-tensorrt, onnxruntime-tensorrt-rtx or openvino. An engine runs in its builder's "
    "runtime.",
)


builder_option = click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    default="tensorrt-rtx",
    show_default=True,
    help="Builder of the engine.",
)
targets_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SM",
    help="Compute capability that TensorRT-RTX builds for, such as sm86. Repeatable.",
)
seconds_option = click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds of timing for each candidate, split into 10 to 50 interleaved rounds.",
)


def out_option(help_text: str) -> Callable[[Command], Command]:
    """`-o/--out`, the file to write."""
    return click.option("-o", "--out", type=Path, required=True, metavar="FILE", help=help_text)


def split_option(default: str) -> Callable[[Command], Command]:
    """`--split`, the part of the data set to read."""
    return click.option(
        "--split",
        default=default,
        show_default=True,
        metavar="NAME",
        help="Split of the data set to read.",
    )


def scales_options(command: Command) -> Command:
    """Test-time augmentation by several runs of a dynamic network."""
    for option in reversed(
        (
            click.option(
                "--scales",
                type=Scales(),
                default=(),
                help="Run at several scales and fuse the results, for example 0.5,1,1.5.",
            ),
            click.option("--flip", is_flag=True, help="Also run on the mirrored image."),
            click.option(
                "--fuse",
                type=click.Choice(["mean", "max"]),
                default="mean",
                show_default=True,
                help="How the logits of scales and flips are fused.",
            ),
        )
    ):
        command = option(command)
    return command


tile_option = click.option(
    "--tile",
    is_flag=True,
    help="Run overlapping windows of an image at full resolution and blend them.",
)


def check_fuse(fuse: str, scales: tuple[float, ...], flip: bool) -> None:
    """Refuse `--fuse` where there is nothing to fuse."""
    if fuse == "max" and not scales and not flip:
        raise click.UsageError("--fuse goes with --scales or --flip")


limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Read only the first N frames of the split.",
)


class Finite(click.FloatRange):
    """A finite number within a range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Parse the value, or fail with an example of a valid one."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def foreign_model(command: Command) -> Command:
    """Add `--timeout` and `--max-memory`, which bound the work on a file of unknown origin.

    `supervisor` enforces both when the command runs as a program.
    """

    @functools.wraps(command)
    def limited(*args: Any, timeout: float, max_memory: float | None, **kwargs: Any) -> Any:
        named = [kwargs.get(one) for one in ("model", "file")]
        named += [*kwargs.get("files", ()), *kwargs.get("candidates", ())]
        limit(str(next(filter(None, named), "the file")), timeout, max_memory)
        return command(*args, **kwargs)

    for option in (
        click.option(
            "--max-memory",
            type=Finite(min=0.1),
            metavar="GIB",
            help="End the command when its processes hold more memory.  [default: half of the free "
            "memory]",
        ),
        click.option(
            "--timeout",
            type=Finite(min=0, min_open=True),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="End the command when it makes no progress for this many seconds.",
        ),
    ):
        limited = option(limited)
    return cast("Command", limited)

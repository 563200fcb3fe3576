"""Options that mean the same in every command."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from segdeploy.cli.console import say
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.strict_json import parse_json
from segdeploy.supervisor import limit

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]
    """`HxW` in pixels, height first."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Parse, or fail with what was expected."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
        if not match or not all(int(side) for side in match.groups()):
            self.fail(f"'{value}' is not a size such as 360x480 (height x width)", param, ctx)
        return int(match[1]), int(match[2])


class Shape(click.ParamType):  # type: ignore[type-arg]
    """`NxHxW`: batch, height and width."""

    name = "NxHxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int, int]:
        """Parse, or fail with what was expected."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", value)
        if not match or not all(int(side) for side in match.groups()):
            self.fail(f"'{value}' is not a shape such as 1x360x480", param, ctx)
        return int(match[1]), int(match[2]), int(match[3])


class Triple(click.ParamType):  # type: ignore[type-arg]
    """Three numbers, one a colour, joined by commas."""

    name = "R,G,B"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float, float]:
        """Parse, or fail with what was expected."""
        if isinstance(value, tuple):
            return value
        try:
            first, second, third = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not three numbers such as 0.485,0.456,0.406", param, ctx)
        return first, second, third


class Scales(click.ParamType):  # type: ignore[type-arg]
    """Factors of the input's size, joined by commas."""

    name = "S,S,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Parse, or fail with what was expected."""
        if isinstance(value, tuple):
            return value
        try:
            scales = tuple(float(part) for part in value.split(","))
        except ValueError:
            scales = ()
        if not scales or not all(0 < scale < 100 for scale in scales):
            self.fail(f"'{value}' is not a list of scales such as 0.5,1,1.5", param, ctx)
        return scales


class Argument(click.ParamType):  # type: ignore[type-arg]
    """`KEY=VALUE`; the value is JSON where it can be read as such, else text."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Parse, or fail with what was expected."""
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"'{value}' is not of the form KEY=VALUE", param, ctx)
        try:
            return key, parse_json(text, key)
        except InputError:
            return key, text


def network_options(command: Command) -> Command:
    """`--num-classes`, `--width`, `--stride`, `--arg`, `--weights`, `--size`: with a name."""
    for option in reversed(
        (
            click.option(
                "--num-classes", type=click.IntRange(1, 255), help="Classes of a named network."
            ),
            click.option(
                "--width", type=click.IntRange(1, 1024), help="Channels of its first block."
            ),
            click.option(
                "--stride", type=click.IntRange(1, 16), help="Subsampling of its first block."
            ),
            click.option(
                "--arg",
                "extra",
                multiple=True,
                type=Argument(),
                help="Any other option of its constructor, as KEY=VALUE (VALUE is JSON or text).",
            ),
            click.option(
                "--weights",
                type=Path,
                help="Its weights: .safetensors, a .pth state dict, or torchvision's name for them "
                "(COCO_WITH_VOC_LABELS_V1).",
            ),
            click.option("--size", type=Size(), help="Input size, height x width."),
            click.option(
                "--take",
                metavar="KEY",
                help="Which of its outputs holds the logits: a key, or an index.",
            ),
        )
    ):
        command = option(command)
    return command


NETWORK_OPTIONS = ("num_classes", "width", "stride", "extra", "weights", "size", "take")


def network_spec(model: str, options: dict[str, Any]) -> ModelSpec:
    """Gather what `network_options` collected."""
    arguments = {name: options[name] for name in ("width", "stride") if options[name] is not None}
    for name, value in options["extra"]:
        if name in arguments:
            raise click.UsageError(f"{name} is given twice; give it once")
        arguments[name] = value
    return ModelSpec(
        model,
        options["num_classes"],
        arguments,
        options["weights"],
        options["size"],
        options["take"],
    )


def note_untrained(spec: ModelSpec) -> None:
    """Say on stderr that a named network without weights gives random results."""
    # A factory may have loaded weights of its own.
    if not spec.is_file and not spec.is_factory and spec.weights is None:
        say(f"note: {spec.model} has random weights; give --weights FILE", err=True)


data_option = click.option(
    "--data",
    type=Path,
    required=True,
    help="Data set: a folder with dataset.json, voc:FOLDER or cityscapes:FOLDER.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
backend_option = click.option(
    "--backend",
    help="Runtime: onnxruntime (default; -cuda, -tensorrt, -tensorrt-rtx), openvino; an engine "
    "has its own.",
)


builder_option = click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    default="tensorrt-rtx",
    show_default=True,
    help="The builder.",
)
targets_option = click.option(
    "--target",
    "targets",
    multiple=True,
    help="Compute capability for TensorRT-RTX, such as sm86; repeatable.",
)
seconds_option = click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="How long each candidate is timed, in all; ten rounds a second, 10 to 50.",
)


def out_option(help_text: str) -> Callable[[Command], Command]:
    """`-o/--out`, the file to write."""
    return click.option("-o", "--out", type=Path, required=True, help=help_text)


def split_option(default: str) -> Callable[[Command], Command]:
    """`--split`, the part of the data set to read."""
    return click.option(
        "--split", default=default, show_default=True, help="Split of the data set."
    )


def scales_options(command: Command) -> Command:
    """`--scales`, `--flip`, `--fuse`: several runs of a network that takes any size."""
    for option in reversed(
        (
            click.option(
                "--scales", type=Scales(), default=(), help="Run at several scales, as 0.5,1,1.5."
            ),
            click.option("--flip", is_flag=True, help="Run on the mirrored image, too."),
            click.option("--fuse", type=click.Choice(["mean", "max"]), default="mean"),
        )
    ):
        command = option(command)
    return command


def check_fuse(fuse: str, scales: tuple[float, ...], flip: bool) -> None:
    """Refuse `--fuse` where there is nothing to fuse."""
    if fuse == "max" and not scales and not flip:
        raise click.UsageError("--fuse goes with --scales or --flip")


limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Take the first N frames of the split."
)


class Finite(click.FloatRange):
    """A number within its range, and neither NaN nor infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Parse, or fail with what was expected."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def foreign_model(command: Command) -> Command:
    """`--timeout` and `--max-memory`: limits for a file that somebody else may have made.

    They hold where the command runs as a program; `supervisor` says how.
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
            help="End the command beyond this memory; half of the free memory by default.",
        ),
        click.option(
            "--timeout",
            type=Finite(min=0, min_open=True),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="End the command when it makes no progress for this long.",
        ),
    ):
        limited = option(limited)
    return cast("Command", limited)

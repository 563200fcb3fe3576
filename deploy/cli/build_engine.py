"""`segdeploy build-engine`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, progress, say
from segdeploy.cli.export import count_proofs
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    Shape,
    builder_option,
    foreign_model,
    json_option,
    out_option,
    quiet_option,
    targets_option,
)
from segdeploy.precision.options import PRECISIONS

if TYPE_CHECKING:
    from segdeploy.commands.build_engine import EngineReport
    from segdeploy.profiles import Profile

_Shape = tuple[int, int, int]


def profile_options(command: Any) -> Any:
    """The optimization profiles of an engine."""
    for option in reversed(
        (
            click.option(
                "--min",
                "minimum",
                multiple=True,
                type=Shape(),
                help="Smallest input of an optimization profile. Repeatable.",
            ),
            click.option(
                "--opt",
                "optimum",
                multiple=True,
                type=Shape(),
                help="Optimum input of the profile. Given alone, min = opt = max.",
            ),
            click.option(
                "--max",
                "maximum",
                multiple=True,
                type=Shape(),
                help="Largest input of the profile.",
            ),
        )
    ):
        command = option(command)
    return command


def read_profiles(
    minimum: tuple[_Shape, ...], optimum: tuple[_Shape, ...], maximum: tuple[_Shape, ...]
) -> list[Profile]:
    """The profiles that the options describe."""
    from segdeploy.profiles import Profile

    if not minimum and not maximum:
        return [Profile((1, *one[1:]), one, one) for one in optimum]
    if not len(minimum) == len(optimum) == len(maximum):
        raise click.UsageError("--min, --opt and --max go together, once for each profile")
    return [Profile(*ends) for ends in zip(minimum, optimum, maximum, strict=True)]


@command("build-engine")
@click.argument("model", type=Path)
@builder_option
@targets_option
@profile_options
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision of the engine: a graph of another precision is calibrated on --data first.",
)
@click.option(
    "--data",
    type=Path,
    metavar="DIR",
    help="Data set for calibration and for the golden vectors.",
)
@click.option(
    "--repeats",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Number of builds; more than one shows how plans, labels and latency vary.",
)
@click.option(
    "--workspace",
    type=click.IntRange(1, 1 << 20),
    metavar="MIB",
    help="Largest workspace of TensorRT's kernels.",
)
@click.option(
    "--timing-cache", type=Path, metavar="FILE", help="Timing cache to write and to reuse."
)
@click.option(
    "--refittable", "plan_weights", flag_value="refittable", help="Build a refittable engine."
)
@click.option(
    "--stripped", "plan_weights", flag_value="stripped", help="Leave the weights in the .onnx file."
)
@click.option(
    "--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine."
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Let every GPU from Ampere on run the engine."
)
@out_option("Engine to write (.engine). A manifest and golden vectors are written beside it.")
@json_option
@quiet_option
@foreign_model
def build_engine(
    model: Path,
    minimum: tuple[_Shape, ...],
    optimum: tuple[_Shape, ...],
    maximum: tuple[_Shape, ...],
    plan_weights: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compile MODEL (.onnx) into a TensorRT engine with a manifest.

    TensorRT-RTX builds without a GPU, for the compute capabilities that --target names.
    """
    import segdeploy

    profiles = read_profiles(minimum, optimum, maximum)
    with progress("building", quiet) as update:
        report = segdeploy.build_engine(
            model,
            out,
            profiles=profiles,
            weights=plan_weights or "kept",
            on_progress=update,
            **options,
        )
    if as_json:
        described = asdict(report)
        described["convolutions"] = [
            {**asdict(proof), "holds": proof.holds} for proof in report.convolutions
        ]
        print_json(described)
        return
    _show(report)


def _show(report: EngineReport) -> None:
    say(
        f"{report.path}: {megabytes(report.bytes)} MB, {report.precision}, for "
        f"{', '.join(report.targets)}, by {report.backend} {report.version} in "
        f"{report.seconds:.1f} s; manifest {report.manifest.name}"
    )
    int8 = f"; {report.int8} read INT8 data and weights" if report.int8 else ""
    say(f"in TensorRT's network, {count_proofs(report.convolutions)}{int8}")
    for profile in report.profiles:
        low, best, high = (
            "x".join(map(str, one)) for one in (profile.minimum, profile.optimum, profile.maximum)
        )
        say(f"optimization profile: min {low}, opt {best}, max {high}")
    if report.variation:
        varied = report.variation
        ran = "comparing labels and latency needs a GPU that the engine is built for"
        if varied.least_agreement is not None:
            times = ", ".join(f"{one:.3f}" for one in varied.latency_ms)
            ran = f"{percent(varied.least_agreement, 3)} % of labels equal; medians {times} ms"
        say(f"{varied.builds} builds, {varied.distinct} different plans; {ran}")
    for note in report.notes:
        say(f"note: {note}", err=True)

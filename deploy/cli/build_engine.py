"""`segdeploy build-engine`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, progress, say
from segdeploy.cli.export import count_proofs
from segdeploy.cli.options import (
    Shape,
    builder_option,
    foreign_model,
    json_option,
    out_option,
    quiet_option,
    targets_option,
)

if TYPE_CHECKING:
    from segdeploy.commands.build_engine import EngineReport
    from segdeploy.profiles import Profile

_Shape = tuple[int, int, int]


def profile_options(command: Any) -> Any:
    """`--min`, `--opt`, `--max`: the inputs that an engine takes."""
    for option in reversed(
        (
            click.option(
                "--min", "minimum", multiple=True, type=Shape(), help="Smallest input; repeatable."
            ),
            click.option(
                "--opt",
                "optimum",
                multiple=True,
                type=Shape(),
                help="The input to be fastest at; alone, the only one of its profile.",
            ),
            click.option("--max", "maximum", multiple=True, type=Shape(), help="Largest input."),
        )
    ):
        command = option(command)
    return command


def read_profiles(
    minimum: tuple[_Shape, ...], optimum: tuple[_Shape, ...], maximum: tuple[_Shape, ...]
) -> list[Profile]:
    """The profiles that the options give: triples, or one for each --opt alone."""
    from segdeploy.profiles import Profile

    if not minimum and not maximum:
        return [Profile((1, *one[1:]), one, one) for one in optimum]
    if not len(minimum) == len(optimum) == len(maximum):
        raise click.UsageError("--min, --opt and --max go together, once for each profile")
    return [Profile(*ends) for ends in zip(minimum, optimum, maximum, strict=True)]


@click.command("build-engine")
@click.argument("model", type=Path)
@builder_option
@targets_option
@profile_options
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16", "bf16"]),
    help="Calibrate the graph on --data first, if it is of another.",
)
@click.option("--data", type=Path, help="Data set: to calibrate on, and for golden vectors.")
@click.option(
    "--repeats", type=int, default=1, show_default=True, help="Builds, to see how they vary."
)
@click.option("--workspace", type=click.IntRange(1, 1 << 20), metavar="MIB", help="Scratch memory.")
@click.option("--timing-cache", type=Path, help="File of TensorRT's timings, to reuse.")
@click.option("--refittable", "weights", flag_value="refittable", help="Weights can be replaced.")
@click.option("--stripped", "weights", flag_value="stripped", help="Weights stay in the .onnx.")
@click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT, too.")
@click.option("--hardware-compatible", is_flag=True, help="For any GPU from Ampere on.")
@out_option("Engine to write (.engine); its manifest and golden vectors lie beside it.")
@json_option
@quiet_option
@foreign_model
def build_engine(
    model: Path,
    minimum: tuple[_Shape, ...],
    optimum: tuple[_Shape, ...],
    maximum: tuple[_Shape, ...],
    weights: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compile MODEL (.onnx) into a TensorRT engine; TensorRT-RTX needs no GPU for it."""
    import segdeploy

    profiles = read_profiles(minimum, optimum, maximum)
    with progress("building", quiet) as update:
        report = segdeploy.build_engine(
            model,
            out,
            profiles=profiles,
            weights=weights or "kept",
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
    say(f"in TensorRT's network {count_proofs(report.convolutions)}{int8}")
    for profile in report.profiles:
        low, best, high = (
            "x".join(map(str, one)) for one in (profile.minimum, profile.optimum, profile.maximum)
        )
        say(f"takes {low} to {high}, fastest at {best}")
    if report.variation:
        varied = report.variation
        ran = "labels and latency need the GPU that it is for"
        if varied.least_agreement is not None:
            times = ", ".join(f"{one:.3f}" for one in varied.latency_ms)
            ran = f"{percent(varied.least_agreement, 3)} % of labels in common; medians {times} ms"
        say(f"{varied.builds} builds, {varied.distinct} different plans; {ran}")
    for note in report.notes:
        say(f"note: {note}", err=True)

"""`segdeploy calibrate`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, progress, say
from segdeploy.cli.options import (
    data_option,
    foreign_model,
    json_option,
    out_option,
    quiet_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.precision.report import CalibrationReport

_METHODS = ("auto", "min-max", "average", "percentile", "entropy", "mse")


@click.command()
@click.argument("model", type=Path)
@data_option
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16", "bf16"]),
    default="int8",
    show_default=True,
    help="INT8 with FP16 around it, or one type for all.",
)
@click.option(
    "--max-miou-drop",
    type=float,
    metavar="POINTS",
    help="Keep in FP16 what loses more mIoU than this, or exit with 1.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="auto",
    show_default=True,
    help="How ranges are chosen; auto tries all on held-back frames.",
)
@click.option(
    "--for",
    "flavour",
    type=click.Choice(["tensorrt", "cpu"]),
    default="tensorrt",
    show_default=True,
    help="Whose integers: symmetric s8, or u8 with 7-bit weights.",
)
@click.option("--keep", multiple=True, metavar="MODULE", help="Leave a module out of INT8.")
@split_option("train")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Frames that ranges come from, spread over the split.  [default: 32]",
)
@click.option(
    "--check-split", help="Split to measure accuracy on.  [default: val, if there is one]"
)
@click.option("--cache", type=Path, help="File of ranges to write, and to reuse.")
@click.option("--blame", is_flag=True, help="Measure what each block of the network loses alone.")
@click.option("--report", "page", type=Path, help="HTML page to write: blame, ranges, the front.")
@click.option("--half-io", is_flag=True, help="Let the input and output be half, too.")
@out_option("ONNX file to write.")
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Show every layer that is not INT8, and classes."
)
@quiet_option
@foreign_model
def calibrate(
    model: Path, data: Path, out: Path, as_json: bool, verbose: bool, quiet: bool, **options: Any
) -> None:
    """Write MODEL (an FP32 .onnx file) in INT8 or half, and measure what that costs.

    Ranges come from the data set's own frames, 32 of --split by default.
    """
    import segdeploy

    half_ends = options.pop("half_io")
    with progress("calibrating", quiet) as update:
        report = segdeploy.calibrate(
            model, data, out, half_ends=half_ends, on_progress=update, **options
        )
    if as_json:
        print_json(asdict(report))
        return
    _show(report, verbose)
    for note in report.notes:
        say(f"note: {note}", err=True)


def _show(report: CalibrationReport, verbose: bool) -> None:
    accuracy = report.accuracy
    say(
        f"{report.path}: {report.precision}, {len(report.int8)} of {report.convolutions} "
        f"convolutions in INT8; {megabytes(report.bytes)} MB "
        f"({report.bytes / report.bytes_before:.2f}x), {report.cost:.2f} of the FP32 work, "
        f"{report.seconds:.1f} s"
    )
    say(
        f"optimised first: {'; '.join(report.rewrites)}"
        if report.rewrites
        else "the graph was optimised already"
    )
    if report.method:
        tried = ", ".join(f"{name} {snr:.1f} dB" for name, snr in report.snr_db.items())
        say(
            f"ranges from {report.frames} frames (settled after {report.settled_after}) by "
            f"{report.method} ({tried})"
        )
    told = "no mIoU, since every pixel of the masks is ignored"
    if not math.isnan(accuracy.miou):
        told = (
            f"mIoU {accuracy.miou:.2f} instead of {accuracy.reference_miou:.2f} (drop "
            f"{accuracy.miou_drop:.2f})"
        )
    say(
        f"executed literally on {accuracy.frames} frames of '{report.check_split}': {told}, "
        f"{percent(accuracy.agreement, 3)} % of labels equal"
    )
    if report.kernel_agreement is not None:
        say(
            f"ONNX Runtime, as `predict` opens it, gives {percent(report.kernel_agreement, 3)} % "
            "of these labels"
        )
    held = [name for name in accuracy.iou_drop if name not in report.classes_missing]
    say(
        f"calibration frames hold {len(held)} of {len(accuracy.iou_drop)} classes "
        f"({', '.join(held) or 'none'}); missing: {', '.join(report.classes_missing) or 'none'}"
    )
    for island in report.islands:
        say(f"stays FP32: {island}")
    if report.clamped:
        say(f"clamped to FP16's range: {', '.join(report.clamped)}")
    if report.searched:
        searched = report.searched
        rows = [
            (f"{len(p.int8)}", f"{p.cost:.3f}", f"{p.score.miou_drop:.2f}",
             percent(p.score.agreement, 3))
            for p in searched.front
        ]  # fmt: skip
        title = (
            f"front: {len(searched.layers)} layers alone, then {searched.evaluations} evaluations "
            f"on {searched.frames} held-back frames"
        )
        print_table(("layers in INT8", "cost", "mIoU drop", "labels equal %"), rows, title)
    if report.block_snr_db:
        blocks = [(name, f"{snr:.1f}") for name, snr in report.block_snr_db.items()]
        print_table(("block alone in INT8", "SNR dB"), blocks)
    if verbose:
        print_table(
            ("class", "IoU drop"),
            [(n, "-" if d is None else f"{d:.2f}") for n, d in accuracy.iou_drop.items()],
        )
        if report.kept:
            print_table(("not INT8", "because"), list(report.kept.items()))
        if report.odd_channels:
            print_table(("output channels of", "are"), list(report.odd_channels.items()))

"""`segdeploy calibrate`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, progress, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    data_or_images_option,
    foreign_model,
    json_option,
    out_option,
    quiet_option,
    split_option,
)
from segdeploy.precision.options import PRECISIONS

if TYPE_CHECKING:
    from segdeploy.precision.report import CalibrationReport
    from segdeploy.proof.bootstrap import Interval

_METHODS = ("auto", "min-max", "average", "percentile", "entropy", "mse")


@command()
@click.argument("model", type=Path)
@data_or_images_option("agreement with FP32 alone")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="int8",
    show_default=True,
    help="int8 quantizes convolutions and keeps the rest FP16; fp16 and bf16 convert the graph.",
)
@click.option(
    "--max-miou-drop",
    type=float,
    metavar="POINTS",
    help="mIoU budget in percentage points: layers stay FP16 until the graph keeps the budget, or "
    "the command exits with 1.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Budget of labels that equal those of FP32, 0..1, instead of an mIoU budget.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="auto",
    show_default=True,
    help="Range estimation; auto compares all methods on held-back frames.",
)
@click.option(
    "--scheme",
    type=click.Choice(["tensorrt", "cpu"]),
    default="tensorrt",
    show_default=True,
    help="Quantization scheme: tensorrt (symmetric INT8) or cpu (UINT8 activations, 7-bit "
    "weights).",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="MODULE",
    help="Keep the convolutions of a module out of INT8. Repeatable.",
)
@split_option("train")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of calibration frames, evenly spaced over the split.  [default: 32]",
)
@click.option(
    "--check-split",
    metavar="NAME",
    help="Split on which accuracy is measured.  [default: val, if there is one]",
)
@click.option("--cache", type=Path, metavar="FILE", help="File of ranges to write and to reuse.")
@click.option(
    "--sensitivity", is_flag=True, help="Measure the SNR of each block when only it is INT8."
)
@click.option(
    "--report",
    "page",
    type=Path,
    metavar="FILE",
    help="HTML page to write: sensitivity, ranges, Pareto front.",
)
@click.option("--fp16-io", is_flag=True, help="Make the graph's input and output FP16, too.")
@out_option("ONNX file to write.")
@json_option
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="List the IoU drop of each class, and every layer that is not INT8.",
)
@quiet_option
@foreign_model
def calibrate(
    model: Path, data: Path, out: Path, as_json: bool, verbose: bool, quiet: bool, **options: Any
) -> None:
    """Quantize MODEL (an FP32 .onnx file) and measure the accuracy that it loses.

    Ranges come from frames of the data set. Accuracy is measured on other frames, by executing the
    Q/DQ graph node by node, as TensorRT computes it.
    """
    import segdeploy

    fp16_io = options.pop("fp16_io")
    with progress("calibrating", quiet) as update:
        report = segdeploy.calibrate(
            model, data, out, fp16_io=fp16_io, on_progress=update, **options
        )
    if as_json:
        print_json(asdict(report))
        return
    _show(report, verbose)
    for note in report.notes:
        say(f"note: {note}", err=True)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f" ({percent(interval.low, 3)} to {percent(interval.high, 3)} with 95 % confidence)"


def _show(report: CalibrationReport, verbose: bool) -> None:
    accuracy = report.accuracy
    say(
        f"{report.path}: {report.precision}, {len(report.int8)} of {report.convolutions} "
        f"convolutions in INT8; {megabytes(report.bytes)} MB "
        f"({report.bytes / report.bytes_before:.2f}x), {report.cost:.2f} of the FP32 work, "
        f"{report.seconds:.1f} s"
    )
    say(
        f"optimized first: {'; '.join(report.rewrites)}"
        if report.rewrites
        else "the exact rewrites found nothing to do"
    )
    if report.method:
        tried = ", ".join(f"{name} {snr:.1f} dB" for name, snr in report.snr_db.items())
        say(
            f"ranges from {report.frames} frames (stable after {report.stable_after}) by "
            f"{report.method} ({tried})"
        )
    message = "no mIoU, because every pixel of the masks is ignored"
    if not accuracy.is_labeled:
        message = f"no masks: mIoU between FP32's labels and these {percent(accuracy.miou)}"
    elif not math.isnan(accuracy.miou):
        message = (
            f"mIoU {percent(accuracy.miou)} instead of {percent(accuracy.reference_miou)} "
            f"(drop {percent(accuracy.miou_drop)})"
        )
    say(
        f"reference Q/DQ execution on {accuracy.frames} frames of '{report.check_split}': "
        f"{message}, {percent(accuracy.agreement, 3)} % of labels equal"
        + _interval(accuracy.agreement_interval)
    )
    if report.kernel_agreement is not None:
        say(
            f"ONNX Runtime's optimized kernels, which `predict` uses, give "
            f"{percent(report.kernel_agreement, 3)} % of these labels"
        )
    held = [name for name in accuracy.iou_drop if name not in report.classes_missing]
    say(
        f"calibration frames hold {len(held)} of {len(accuracy.iou_drop)} classes "
        f"({', '.join(held) or 'none'}); missing: {', '.join(report.classes_missing) or 'none'}"
    )
    for fallback in report.fp32_fallbacks:
        say(f"FP32 fallback: {fallback}")
    if report.clamped:
        say(f"clamped to FP16's range: {', '.join(report.clamped)}")
    if report.searched:
        searched = report.searched
        rows = [
            (f"{len(p.int8)}", f"{p.cost:.3f}", percent(p.score.miou_drop),
             percent(p.score.agreement, 3))
            for p in searched.pareto_front
        ]  # fmt: skip
        title = (
            f"Pareto front of {len(searched.layers)} layers alone and {searched.evaluations} "
            f"evaluations on {searched.frames} held-back frames"
        )
        print_table(("layers in INT8", "cost", "mIoU drop", "labels equal %"), rows, title)
    if report.block_snr_db:
        blocks = [(name, f"{snr:.1f}") for name, snr in report.block_snr_db.items()]
        print_table(("only block in INT8", "SNR dB"), blocks)
    if verbose:
        print_table(
            ("class", "IoU drop"),
            [(n, percent(d)) for n, d in accuracy.iou_drop.items()],
        )
        if report.kept:
            print_table(("not INT8", "reason"), list(report.kept.items()))
        if report.odd_channels:
            print_table(("unusual output channels of", ""), list(report.odd_channels.items()))

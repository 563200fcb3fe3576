"""`segdeploy calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from segdeploy.cli.console import megabytes, progress
from segdeploy.cli.options import (
    data_option,
    json_option,
    limit_option,
    out_option,
    quiet_option,
    split_option,
)


@click.command()
@click.argument("model", type=Path)
@data_option
@split_option("train")
@limit_option
@out_option("INT8 ONNX file to write.")
@json_option
@quiet_option
def calibrate(
    model: Path, data: Path, split: str, limit: int | None, out: Path, as_json: bool, quiet: bool
) -> None:
    """Quantise the convolutions of MODEL (an FP32 .onnx file) to INT8 with explicit Q/DQ."""
    import segdeploy

    with progress("calibrating", quiet) as update:
        report = segdeploy.calibrate(model, data, out, split=split, limit=limit, on_frame=update)
    if as_json:
        click.echo(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    click.echo(
        f"{report.path}: {report.convolutions} convolutions in INT8 with ranges from "
        f"{report.frames} frames; {megabytes(report.bytes)} MB "
        f"({report.bytes / report.bytes_before:.2f}x), {report.seconds:.1f} s"
    )
    click.echo(
        f"executed literally it gives {report.agreement:.3%} of the FP32 graph's labels "
        f"on {report.judged_frames} of those frames"
    )

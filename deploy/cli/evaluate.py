"""`segdeploy evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import percent, print_json, print_table, progress, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    backend_option,
    check_fuse,
    data_option,
    foreign_model,
    json_option,
    limit_option,
    network_options,
    network_spec,
    note_untrained,
    quiet_option,
    scales_options,
    source_option,
    split_option,
    tile_option,
)


@command()
@click.argument("model", required=False)
@source_option
@data_option
@split_option("val")
@limit_option
@network_options
@backend_option
@scales_options
@tile_option
@json_option
@quiet_option
@foreign_model
def evaluate(
    model: str | None,
    data: Path,
    split: str,
    limit: int | None,
    backend: str | None,
    scales: tuple[float, ...],
    flip: bool,
    fuse: str,
    tile: bool,
    as_json: bool,
    quiet: bool,
    **network: Any,
) -> None:
    """Measure mIoU of MODEL (a network or an .onnx file) on labeled frames."""
    import segdeploy
    from segdeploy.runtime.inference_options import InferenceOptions

    check_fuse(fuse, scales, flip)
    spec = network_spec(model, network)
    note_untrained(spec)
    with progress("evaluating", quiet) as update:
        result = segdeploy.evaluate(
            spec,
            data,
            split=split,
            limit=limit,
            backend=backend,
            options=InferenceOptions(scales, flip, fuse, tile),
            on_frame=update,
        )
    if as_json:
        print_json(asdict(result))
        return
    rows = [(name, percent(iou), percent(result.dice[name])) for name, iou in result.iou.items()]
    rows += [
        ("mean", percent(result.miou), percent(result.mean_dice)),
        ("weighted by frequency", percent(result.frequency_weighted_iou), ""),
    ]
    title = f"{spec.model} on {result.frames} frames of {data}/{split}"
    print_table(("class", "IoU %", "Dice %"), rows, title)
    say(f"mean IoU {percent(result.miou)}, pixel accuracy {percent(result.pixel_accuracy)}")
    if result.coverage is not None and result.coverage < 1:
        say(
            f"coverage {percent(result.coverage)}: the other pixels are below "
            "--min-confidence, and count as misses"
        )
    if undefined := [name for name, iou in result.iou.items() if iou is None]:
        say(f"IoU undefined, left out of the mean (class in no mask, never predicted): {undefined}")

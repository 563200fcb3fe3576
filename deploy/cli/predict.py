"""`segdeploy predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import print_json, print_table
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    backend_option,
    check_fuse,
    foreign_model,
    json_option,
    network_options,
    network_spec,
    note_untrained,
    out_option,
    scales_options,
    tile_option,
)


@command()
@click.argument("model")
@click.argument("image", type=Path)
@network_options
@backend_option
@scales_options
@out_option("Overlay to write: the class colors over IMAGE (.png or .jpg).")
@tile_option
@click.option(
    "--labels",
    type=Path,
    metavar="FILE",
    help="Label map to write (.png, one class id a pixel; bit planes of a multilabel network).",
)
@json_option
@foreign_model
def predict(
    model: str,
    image: Path,
    backend: str | None,
    scales: tuple[float, ...],
    flip: bool,
    fuse: str,
    tile: bool,
    out: Path,
    labels: Path | None,
    as_json: bool,
    **network: Any,
) -> None:
    """Segment IMAGE with MODEL (a network, an .onnx file or an engine), and write an overlay."""
    from segdeploy.commands.predict import predict_file
    from segdeploy.runtime.inference_options import InferenceOptions

    check_fuse(fuse, scales, flip)
    spec = network_spec(model, network)
    note_untrained(spec)
    shares = predict_file(
        spec,
        image,
        out,
        labels=labels,
        backend=backend,
        options=InferenceOptions(scales, flip, fuse, tile),
    )
    if as_json:
        print_json({"overlay": str(out), "shares": shares})
        return
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    print_table(
        ("class", "pixels %"),
        [(name, f"{100 * share:.1f}") for name, share in ranked if share],
        str(out),
    )

"""`segdeploy models`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import print_json, print_table, say
from segdeploy.cli.headings import Command
from segdeploy.cli.options import Size, json_option, network_options, network_spec

_SIZE = (512, 512)


@click.group(invoke_without_command=True)
@click.option(
    "--size",
    type=Size(),
    default=_SIZE,
    show_default="512x512",
    help="Image size for which the cost is counted.",
)
@click.option(
    "--support",
    is_flag=True,
    help="List the networks of other frameworks (--from) and the steps that they went through.",
)
@json_option
@click.pass_context
def models(context: click.Context, size: tuple[int, int], support: bool, as_json: bool) -> None:
    """List the networks of the registry, or show one layer by layer."""
    if context.invoked_subcommand:
        return
    if support:
        _print_support(as_json)
        return
    from segdeploy.packages import require

    require("torch", "torchvision")
    import torch

    from segdeploy.models.registry import ARCHITECTURES
    from segdeploy.models.summary import anatomy

    listed: list[dict[str, Any]] = []
    with torch.device("meta"):  # parameters are counted, nothing is computed
        for entry in ARCHITECTURES.values():
            network = entry.build(21)
            seen = anatomy(network, size)
            listed.append(
                {
                    "name": entry.name,
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "macs": seen.macs,
                    "output_stride": seen.output_stride,
                    "receptive_field": seen.output.size,
                    "image_pooling": seen.output.pooled,
                    "dilations": list(seen.dilations),
                    "options": list(entry.accepted_arguments()),
                    "about": entry.about,
                }
            )
    if as_json:
        print_json(listed)
        return
    print_table(
        ("name", "parameters M", "GMAC", "stride", "field", "dilations", "options", "about"),
        [_row(row) for row in listed],
        f"21 classes, one {size[0]}x{size[1]} image; field in pixels, + with image pooling",
    )


def _print_support(as_json: bool) -> None:
    from segdeploy.frameworks.support import STEPS, supported

    rows = supported()
    if as_json:
        print_json(rows)
        return
    cells = []
    for row in rows:
        named = (f"{row['framework']} {row['version']}", row["architecture"])
        refused = row.get("refused")
        cells.append((*named, *(row.get(step, "-") for step in STEPS), refused or ""))
    print_table(
        ("framework", "architecture", *STEPS, "refused, since it"),
        cells,
        "equal: labels of the exported graph that are those of the framework's own prediction",
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['macs'] / 1e9:.1f}",
        str(row["output_stride"]),
        f"{row['receptive_field']}{'+' if row['image_pooling'] else ''}",
        " ".join(map(str, row["dilations"])),
        " ".join(row["options"]) or "-",
        row["about"],
    )


def _pair(rows: int, columns: int) -> str:
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _has_contract(weights: Path | None) -> bool:
    return weights is not None and weights.suffix == ".safetensors"


@models.command(cls=Command)
@click.argument("model")
@network_options
@click.option(
    "--image",
    type=Path,
    metavar="FILE",
    help="Drawing of kernels and receptive field to write (.png).",
)
@json_option
def show(model: str, image: Path | None, as_json: bool, **options: Any) -> None:
    """Show dilation, receptive field and effective stride of each layer of MODEL."""
    from dataclasses import replace

    from segdeploy.files import check_output, write_atomically
    from segdeploy.network_loading import load_network

    if image:
        check_output(image, ".png")
    spec = network_spec(model, options)
    if not spec.is_file:
        spec = replace(
            spec,
            size=spec.size or (None if _has_contract(spec.weights) else (256, 256)),
            num_classes=spec.num_classes or (None if spec.weights else 21),
        )
    loaded = load_network(spec)

    from segdeploy.models.summary import anatomy

    seen = anatomy(loaded.network, loaded.contract.size)
    if image:
        from segdeploy.models.visualization import draw_network, effective_receptive_field

        field = effective_receptive_field(loaded.network, loaded.contract.size)
        file = io.BytesIO()
        draw_network(seen, field, f"{model}: dilations {seen.dilations}").save(file, "PNG")
        write_atomically(image, file.getvalue())
    rows = [
        {
            "layer": layer.name.removeprefix("module."),
            "kind": layer.kind,
            "kernel": layer.kernel,
            "kernel_width": layer.kernel_width,
            "dilation": layer.dilation,
            "dilation_width": layer.dilation_width,
            "stride": layer.stride,
            "effective_stride": float(layer.reach.stride),
            "receptive_field": layer.reach.size,
            "center": layer.reach.center,
            "macs": layer.macs,
        }
        for layer in seen.layers
    ]
    if as_json:
        described = {"receptive_field": seen.output.size, "image_pooling": seen.output.pooled}
        print_json({**described, "macs": seen.macs, "layers": rows})
        return
    columns = ("layer", "kind", "stride")
    print_table(
        (*columns, "kernel", "dilation", "effective stride", "receptive field", "center", "MMAC"),
        [
            (
                *(str(row[name]) for name in columns),
                f"{layer.kernel}x{layer.kernel_width}",
                _pair(layer.dilation, layer.dilation_width),
                f"{row['effective_stride']:g}",
                "image" if row["receptive_field"] is None else str(row["receptive_field"]),
                "-" if row["center"] is None else f"{row['center']:g}",
                f"{layer.macs / 1e6:.1f}",
            )
            for row, layer in zip(rows, seen.layers, strict=True)
        ],
        f"{model} at {loaded.contract.size[0]}x{loaded.contract.size[1]}: "
        f"{seen.macs / 1e9:.2f} GMAC, output stride {seen.output_stride}, receptive field "
        f"{seen.output.size}{' and image pooling' if seen.output.pooled else ''}",
    )
    if image:
        say(str(image))

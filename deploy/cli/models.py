"""`segdeploy models`."""

from __future__ import annotations

import json
from typing import Any

import click

from segdeploy.cli.console import print_table
from segdeploy.cli.options import json_option


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the networks that are known by name."""
    from segdeploy.packages import require

    require("torch", "torchvision")
    import torch

    from segdeploy.models.registry import ARCHITECTURES

    listed: list[dict[str, Any]] = []
    with torch.device("meta"):  # parameters are counted, not allocated
        for entry in ARCHITECTURES.values():
            parameters = sum(p.numel() for p in entry.build(21).parameters())
            listed.append(
                {
                    "name": entry.name,
                    "parameters": parameters,
                    "options": entry.accepted_arguments(),
                    "about": entry.about,
                }
            )
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    print_table(
        ("name", "parameters", "options", "about"),
        [
            (
                str(row["name"]),
                f"{row['parameters']:,}",
                " ".join(f"--{option}" for option in row["options"]) or "-",
                str(row["about"]),
            )
            for row in listed
        ],
        "Parameters with 21 classes",
    )

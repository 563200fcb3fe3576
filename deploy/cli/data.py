"""`segdeploy data`."""

from __future__ import annotations

from pathlib import Path

import click

from segdeploy.cli.console import progress
from segdeploy.cli.options import Size, quiet_option


@click.group()
def data() -> None:
    """Make data sets."""


@data.command()
@click.argument("folder", type=Path)
@click.option("--train", "train_count", type=click.IntRange(1), default=160, show_default=True)
@click.option("--val", "val_count", type=click.IntRange(1), default=40, show_default=True)
@click.option("--size", type=Size(), default=(240, 320), show_default="240x320")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@quiet_option
def scenes(
    folder: Path, train_count: int, val_count: int, size: tuple[int, int], seed: int, quiet: bool
) -> None:
    """Generate road scenes as a data set in FOLDER, the same for the same seed."""
    from segdeploy.models import scenes as generated
    from segdeploy.models.dataset import write_dataset

    counts = {"train": train_count, "val": val_count}
    names = write_dataset(
        folder,
        classes=generated.CLASSES,
        palette=generated.PALETTE,
        ignore_index=generated.IGNORE_INDEX,
        splits={
            split: generated.generate(split, count, size, seed) for split, count in counts.items()
        },
    )
    with progress("scenes", quiet) as update:
        for done, _ in enumerate(names, 1):
            update(done, sum(counts.values()))
    click.echo(f"{folder}: {train_count} train and {val_count} val frames of {size[0]}x{size[1]}")

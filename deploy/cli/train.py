"""`segdeploy train`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import progress
from segdeploy.cli.options import (
    data_option,
    json_option,
    network_options,
    network_spec,
    out_option,
    quiet_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.models.training import Step


@click.command()
@click.argument("model")
@data_option
@split_option("train")
@network_options
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=4e-3, show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Processes that load data.",
)
@out_option("Checkpoint to write (.safetensors), anew after each epoch.")
@json_option
@quiet_option
def train(
    model: str,
    data: Path,
    split: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    workers: int,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train MODEL: a registry name, a checkpoint or package.module:factory."""
    import segdeploy

    with progress(f"training {model}", quiet) as update:

        def show(step: Step) -> None:
            done = step.epoch * step.steps_per_epoch + step.index + 1
            update(done, epochs * step.steps_per_epoch, f"loss {step.loss:.3f}")

        report = segdeploy.train(
            network_spec(model, options),
            data,
            out,
            split=split,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            workers=workers,
            on_step=show,
        )
    if as_json:
        click.echo(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    click.echo(
        f"{report.path}: {report.epochs} epochs, {report.images / report.seconds:.1f} images/s, "
        f"last loss {report.loss:.3f}, {report.loading_share:.1%} of the time waiting for data"
    )

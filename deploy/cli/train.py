"""`segdeploy train`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import print_json, progress, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    NETWORK_OPTIONS,
    Size,
    data_option,
    json_option,
    network_options,
    network_spec,
    out_option,
    quiet_option,
    source_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.models.training import Step


@command()
@click.argument("model", required=False)
@source_option
@data_option
@split_option("train")
@network_options
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Passes over the training split.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Images in a batch.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Accumulate gradients over N batches before each weight update.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=4e-3,
    show_default=True,
    metavar="RATE",
    help="Highest learning rate of the schedule.",
)
@click.option(
    "--schedule",
    type=click.Choice(["one-cycle", "poly"]),
    default="one-cycle",
    show_default=True,
    help="Learning-rate schedule.",
)
@click.option(
    "--loss",
    default="cross-entropy",
    show_default=True,
    metavar="LOSS",
    help="cross-entropy, focal, dice, or a weighted sum such as cross-entropy+0.5*dice.",
)
@click.option(
    "--class-weights",
    type=click.Choice(["none", "median-frequency", "inverse-log"]),
    default="none",
    show_default=True,
    help="Weights of the classes in the loss, from their frequency in the masks.",
)
@click.option("--crop", type=Size(), help="Size of random crops.  [default: the input size]")
@click.option(
    "--scale",
    nargs=2,
    type=float,
    default=(1.0, 1.6),
    show_default=True,
    metavar="LOW HIGH",
    help="Range of random scaling before the crop.",
)
@click.option(
    "--rotation",
    type=click.FloatRange(0, 180),
    default=0.0,
    show_default=True,
    metavar="DEGREES",
    help="Largest random rotation to either side.",
)
@click.option(
    "--color",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="STRENGTH",
    help="Strength of random brightness, contrast and saturation.",
)
@click.option("--vertical-flip", is_flag=True, help="Also flip images vertically at random.")
@click.option(
    "--validate",
    "validate_every",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Measure mIoU on val every N epochs and keep the best checkpoint; 0 means never.",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Recompute activations in the backward pass: less memory, more time.",
)
@click.option("--amp", is_flag=True, help="Train with automatic mixed precision.")
@click.option("--resume", is_flag=True, help="Continue after the last completed epoch.")
@click.option("--log-dir", type=Path, metavar="DIR", help="Folder for TensorBoard event files.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of initialization, order and augmentation.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of data-loading processes.",
)
@out_option("Checkpoint to write (.safetensors), updated after each epoch.")
@json_option
@quiet_option
def train(
    model: str | None,
    data: Path,
    split: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    crop: tuple[int, int] | None,
    scale: tuple[float, float],
    rotation: float,
    color: float,
    vertical_flip: bool,
    loss: str,
    **options: Any,
) -> None:
    """Train MODEL on a data set, and write a checkpoint with its contract.

    MODEL is a registry name, a checkpoint or package.module:factory. `torchrun -m segdeploy train
    ...` trains with several processes.
    """
    import segdeploy
    from segdeploy.packages import require

    require("torch")
    from segdeploy.commands.train import resume_file
    from segdeploy.models.distributed import rank
    from segdeploy.models.losses import parse_terms

    epochs = options["epochs"]
    spec = network_spec(model, options)
    settings = {key: value for key, value in options.items() if key not in NETWORK_OPTIONS}
    augmentation: dict[str, Any] = {
        "scale": scale,
        "rotation": rotation,
        "color": color,
        "vertical_flip": vertical_flip,
    }
    if crop:
        augmentation["crop"] = crop
    with progress(f"training {spec.model}", quiet or rank() != 0) as update:
        measured, note = "", ""

        def show(step: Step) -> None:
            nonlocal note
            done = step.epoch * step.steps_per_epoch + step.index + 1
            rate = step.images / step.seconds
            note = f"loss {step.loss:.3f}, {rate:.1f} images/s{measured}"
            update(done, epochs * step.steps_per_epoch, note)

        def note_miou(epoch: int, miou: float | None) -> None:
            nonlocal measured
            if miou is not None:
                measured = f", mIoU {100 * miou:.2f} after epoch {epoch}"
            if not (quiet or sys.stderr.isatty() or rank() != 0):
                say(f"epoch {epoch} of {epochs}: {note}", err=True)

        def note_unseen(unseen: tuple[str, ...]) -> None:
            if unseen and rank() == 0:
                say(f"note: classes that no mask of {split} holds: {', '.join(unseen)}", err=True)

        try:
            report = segdeploy.train(
                spec,
                data,
                out,
                split=split,
                loss=parse_terms(loss),
                augmentation=augmentation,
                on_start=note_unseen,
                on_step=show,
                on_epoch=note_miou,
                **settings,
            )
        except KeyboardInterrupt:
            if resume_file(out).is_file():
                say("note: to continue, run the same command with --resume", err=True)
            raise
    if rank() != 0:
        return
    if as_json:
        print_json({**asdict(report), "path": str(report.path)})
        return
    best = "" if report.best_miou is None else f", best mIoU {100 * report.best_miou:.2f}"
    say(
        f"{report.path}: {report.epochs} epochs, {report.images / report.seconds:.1f} images/s, "
        f"last loss {report.loss:.3f}{best}, "
        f"{report.loading_share:.1%} of the time waiting for data"
    )

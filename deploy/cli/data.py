"""`segdeploy data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli.console import print_json, print_table, progress, say
from segdeploy.cli.headings import Command
from segdeploy.cli.options import Channels, Size, json_option, quiet_option
from segdeploy.models.channels import DTYPES, RGB

if TYPE_CHECKING:
    from segdeploy.models.dataset_check import SplitCheck


@click.group()
def data() -> None:
    """Generate a data set, or check one."""


_COUNT = click.IntRange(1, 1_000_000)


@data.command(cls=Command)
@click.argument("folder", type=Path)
@click.option(
    "--train",
    "train_count",
    type=_COUNT,
    default=160,
    show_default=True,
    metavar="N",
    help="Number of training frames.",
)
@click.option(
    "--val",
    "val_count",
    type=_COUNT,
    default=40,
    show_default=True,
    metavar="N",
    help="Number of validation frames.",
)
@click.option(
    "--size", type=Size(), default=(240, 320), show_default="240x320", help="Size of the frames."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed; the same seed gives the same frames.",
)
@click.option(
    "--channels",
    type=Channels(),
    default=RGB,
    show_default="R,G,B",
    help="Channels of the frames, such as gray or nir,red,green.",
)
@click.option(
    "--dtype",
    type=click.Choice(tuple(DTYPES)),
    default="uint8",
    show_default=True,
    help="Type of the frames' values.",
)
@click.option(
    "--multilabel",
    is_flag=True,
    help="Write bit planes of the overlapping classes ground, object, vehicle and person.",
)
@quiet_option
def scenes(
    folder: Path,
    train_count: int,
    val_count: int,
    size: tuple[int, int],
    seed: int,
    channels: tuple[str, ...],
    dtype: str,
    multilabel: bool,
    quiet: bool,
) -> None:
    """Generate road scenes with masks as a data set in FOLDER."""
    from segdeploy.contract import check_pixels
    from segdeploy.models.scenes import write_scenes

    check_pixels(size, "--size: the image")
    counts = {"train": train_count, "val": val_count}
    names = write_scenes(folder, counts, size, seed, channels, dtype, multilabel=multilabel)
    with progress("scenes", quiet) as update:
        for done, _ in enumerate(names, 1):
            update(done, sum(counts.values()))
    say(f"{folder}: {train_count} train and {val_count} val frames of {size[0]}x{size[1]}")


@data.command(cls=Command)
@click.argument("folder", type=Path)
@json_option
@quiet_option
def check(folder: Path, as_json: bool, quiet: bool) -> int:
    """Read every file of a data set, and report sizes, class frequencies and problems.

    FOLDER holds a dataset.json, or is a source such as voc:DIR. Exits with 1 if a file cannot be
    used.
    """
    import numpy as np

    from segdeploy.models.dataset import open_dataset
    from segdeploy.models.dataset_check import SplitCheck, check_split

    dataset = open_dataset(folder)
    checked = []
    for split in dataset.splits:
        result = SplitCheck(split, np.zeros(len(dataset.classes), np.int64))
        with progress(f"checking {split}", quiet) as update:
            for done, total in check_split(dataset, split, result):
                update(done, total)
        checked.append(result)
    problems = [problem for result in checked for problem in result.problems]
    if as_json:
        print_json([_described(result, dataset.classes) for result in checked])
        return 1 if problems else 0
    for result in checked:
        sizes = ", ".join(f"{n} of {h}x{w}" for (h, w), n in result.sizes.most_common(5))
        say(f"{result.split}: {result.frames} frames ({sizes or 'none'})")
    print_table(
        ("class", *(f"{result.split} %" for result in checked)),
        [
            (name, *(_share(result, int(result.pixels[index])) for result in checked))
            for index, name in enumerate(dataset.classes)
        ]
        + [("(ignored)", *(_share(result, result.ignored) for result in checked))],
    )
    for problem in problems:
        say(f"problem: {problem}", err=True)
    return 1 if problems else 0


def _share(result: SplitCheck, pixels: int) -> str:
    return "absent" if not pixels else f"{100 * pixels / result.total:.3f}"


def _described(result: SplitCheck, classes: tuple[str, ...]) -> dict[str, object]:
    return {
        "split": result.split,
        "frames": result.frames,
        "sizes": {f"{h}x{w}": count for (h, w), count in result.sizes.items()},
        "pixels": dict(zip(classes, map(int, result.pixels), strict=True)),
        "ignored": result.ignored,
        "problems": result.problems,
    }

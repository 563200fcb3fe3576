"""`segdeploy deploy`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import print_json, progress, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    builder_option,
    data_or_images_option,
    json_option,
    network_options,
    network_spec,
    note_untrained,
    quiet_option,
    seconds_option,
    source_option,
    targets_option,
)


@command()
@click.argument("model", required=False)
@source_option
@data_or_images_option("agreement with FP32 alone")
@network_options
@targets_option
@builder_option
@click.option(
    "--max-miou-drop",
    type=float,
    metavar="POINTS",
    help="mIoU budget in percentage points.  [default: 0.5]",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Budget of labels that equal those of FP32, 0..1.  [default: 0.99 for images without "
    "masks]",
)
@seconds_option
@click.option("--dry-run", is_flag=True, help="Print the steps and which of them are completed.")
@click.option("-o", "--out", type=Path, required=True, metavar="DIR", help="Folder of the bundle.")
@json_option
@quiet_option
def deploy(
    model: str | None,
    data: Path,
    targets: tuple[str, ...],
    backend: str,
    max_miou_drop: float | None,
    min_agreement: float | None,
    seconds: float,
    dry_run: bool,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Run all steps: export, FP16 and INT8 within a budget, engines, bench, bundle.

    Resumes: completed steps with unchanged inputs are skipped. Exits with 1 if no candidate keeps
    the budget.
    """
    import segdeploy

    spec = network_spec(model, options)
    note_untrained(spec)

    def tell(name: str, message: str) -> None:
        say(f"{name}: {message}", err=not dry_run or as_json)

    with progress("deploying", quiet or dry_run) as update:
        bundle = segdeploy.deploy(
            spec,
            data,
            out,
            targets=targets,
            backend=backend,
            max_miou_drop=max_miou_drop,
            min_agreement=min_agreement,
            seconds=seconds,
            dry_run=dry_run,
            command=["segdeploy", *sys.argv[1:]],
            on_step=tell,
            on_progress=update,
        )
    if as_json:
        print_json(asdict(bundle))
    elif not dry_run:
        for note in bundle.notes:
            say(f"note: {note}", err=True)
        chosen = bundle.chosen.name if bundle.chosen else "nothing"
        engines = f" with {bundle.engines[0].name}" if bundle.engines else ""
        say(f"{out}: ship {chosen}{engines}: {bundle.why}")
        say(f"report: {out / 'report' / 'index.html'}")
    return int(not bundle.passes)

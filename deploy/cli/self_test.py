"""`segdeploy self-test`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from segdeploy.cli.console import percent, print_json, print_table, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import backend_option, foreign_model, json_option


@command("self-test")
@click.argument("model", type=Path)
@click.option(
    "--golden", type=Path, metavar="FILE", help="Golden vectors.  [default: the file beside MODEL]"
)
@backend_option
@json_option
@foreign_model
def self_test(model: Path, golden: Path | None, backend: str | None, as_json: bool) -> int:
    """Compare MODEL on this host with golden vectors of its reference.

    Exits with 1 if a stage differs: preprocessing, network output or labels.
    """
    import segdeploy

    result = segdeploy.self_test(model, golden=golden, backend=backend)
    if as_json:
        print_json({**asdict(result), "holds": result.holds, "failure": result.failure})
        return int(not result.holds)
    rows = [
        (
            str(index),
            f"{one.input_difference:.2g}",
            f"{one.output_difference:.2g}",
            percent(one.agreement, 3),
            "yes" if one.same_bytes else "no",
        )
        for index, one in enumerate(result.images)
    ]
    columns = (
        "image",
        "max abs of input",
        "max rel of output",
        "labels equal %",
        "same bytes",
    )
    print_table(columns, rows)
    if result.note:
        say(f"note: {result.note}", err=True)
    if result.failure:
        say(f"failed: {model} in {result.backend}: {result.failure}", err=True)
        return 1
    say(f"{model}: {result.backend} reproduces {result.golden.name}")
    return 0

"""`segdeploy selftest`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from segdeploy.cli.console import percent, print_json, print_table, say
from segdeploy.cli.options import backend_option, foreign_model, json_option


@click.command()
@click.argument("model", type=Path)
@click.option("--golden", type=Path, help="Golden vectors.  [default: those that lie beside MODEL]")
@backend_option
@json_option
@foreign_model
def selftest(model: Path, golden: Path | None, backend: str | None, as_json: bool) -> int:
    """Prove that this host computes with MODEL what its reference computed.

    Exits with 1 if a stage differs: preprocessing, the network, or labels.
    """
    import segdeploy

    result = segdeploy.selftest(model, golden=golden, backend=backend)
    if as_json:
        print_json({**asdict(result), "holds": result.holds, "complaint": result.complaint})
        return int(not result.holds)
    rows = [
        (str(index), f"{one.input:.2g}", f"{one.output:.2g}", percent(one.agreement, 3),
         "yes" if one.same_bytes else "no")
        for index, one in enumerate(result.pictures)
    ]  # fmt: skip
    columns = (
        "picture",
        "input differs by",
        "output by, of its range",
        "labels equal %",
        "same bytes",
    )
    print_table(columns, rows)
    if result.note:
        say(f"note: {result.note}", err=True)
    if result.complaint:
        say(f"failed: {model} in {result.backend}: {result.complaint}", err=True)
        return 1
    say(f"{model}: gives in {result.backend} what {result.golden.name} holds")
    return 0

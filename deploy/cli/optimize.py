"""`segdeploy optimize`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli.console import megabytes, print_json, print_table, say
from segdeploy.cli.options import Size, foreign_model, json_option, out_option

if TYPE_CHECKING:
    from segdeploy.optimizer.cost import Cost
    from segdeploy.optimizer.optimize import Account


@click.command()
@click.argument("model", type=Path)
@click.option("--size", type=Size(), help="Size to compare a dynamic graph's outputs at.")
@out_option("ONNX file to write.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say where a pass declined, and why.")
@foreign_model
def optimize(
    model: Path, size: tuple[int, int] | None, out: Path, as_json: bool, verbose: bool
) -> None:
    """Rewrite MODEL (.onnx, from any exporter) into a cheaper graph with the same outputs."""
    import segdeploy

    report = segdeploy.optimize(model, out, size=size)
    if as_json:
        print_json({**asdict(report), "path": str(report.path)})
        return
    print_account(report.account, verbose=verbose)
    said = "no pass found anything to do"
    if parity := report.account.parity:
        said = f"outputs equal within {max(p.max_rel for p in parity):.1g} of their range"
    say(
        f"{report.path}: {megabytes(report.bytes)} MB (before {megabytes(report.bytes_before)}), "
        f"{report.seconds:.1f} s; {said}"
    )


_SHOWN = 3  # rewrites of a pass; a network has dozens of BatchNorms


def print_account(account: Account, *, verbose: bool) -> None:
    """What each pass did, and the graph's cost behind it."""
    for step in account.steps:
        shown = step.rewrites if verbose else step.rewrites[:_SHOWN]
        for line in shown:
            say(line)
        if len(shown) < len(step.rewrites):
            say(f"and {len(step.rewrites) - len(shown)} more of {step.name} (-v lists them)")
        for line in step.refusals:
            if verbose or line.startswith("undone"):  # a pass that was wrong here is news
                say(f"left alone ({step.name}): {line}")
    if not account.rewrites:
        return
    rows = [("as given", *_row(account.before))]
    rows += [
        (step.name, *_row(step.after))
        for step in account.steps
        if step.rewrites or step.before != step.after
    ]
    print_table(("behind the pass", "nodes", "parameters", "multiply-accumulates"), rows)


def _row(cost: Cost) -> tuple[str, str, str]:
    macs = "unknown" if cost.macs is None else f"{cost.macs:,}"
    return str(cost.nodes), f"{cost.parameters:,}", macs

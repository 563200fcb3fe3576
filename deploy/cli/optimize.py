"""`segdeploy optimize`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli.console import megabytes, print_json, print_table, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import Size, foreign_model, json_option, out_option

if TYPE_CHECKING:
    from segdeploy.optimizer.cost import Cost
    from segdeploy.optimizer.optimize import RewriteReport


@command()
@click.argument("model", type=Path)
@click.option(
    "--size", type=Size(), help="Size at which the outputs of a dynamic graph are compared."
)
@out_option("ONNX file to write.")
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="List every place that a pass skipped, and why."
)
@foreign_model
def optimize(
    model: Path, size: tuple[int, int] | None, out: Path, as_json: bool, verbose: bool
) -> None:
    """Apply exact rewrites to MODEL (.onnx, of any exporter) and compare the outputs."""
    import segdeploy

    report = segdeploy.optimize(model, out, size=size)
    if as_json:
        print_json({**asdict(report), "path": str(report.path)})
        return
    print_optimization(report.optimization, verbose=verbose)
    message = "no rewrite applies"
    if parity := report.optimization.parity:
        message = f"outputs equal within {max(p.max_rel for p in parity):.1g} of their range"
    say(
        f"{report.path}: {megabytes(report.bytes)} MB (before {megabytes(report.bytes_before)}), "
        f"{report.seconds:.1f} s; {message}"
    )


_SHOWN = 3  # rewrites of a pass; a network has dozens of BatchNorms


def print_optimization(optimization: RewriteReport, *, verbose: bool) -> None:
    """Print what each pass did, and the cost of the graph after each pass."""
    for step in optimization.steps:
        shown = step.rewrites if verbose else step.rewrites[:_SHOWN]
        for line in shown:
            say(line)
        if len(shown) < len(step.rewrites):
            say(f"{step.name}: {len(step.rewrites) - len(shown)} more (-v lists them)")
        for line in step.skipped:
            if verbose or line.startswith("undone"):  # an undone pass is a defect of ours
                say(f"skipped ({step.name}): {line}")
    if not optimization.rewrites:
        return
    rows = [("(input)", *_row(optimization.before))]
    rows += [
        (step.name, *_row(step.after))
        for step in optimization.steps
        if step.rewrites or step.before != step.after
    ]
    print_table(("after", "nodes", "parameters", "MMAC"), rows)


def _row(cost: Cost) -> tuple[str, str, str]:
    macs = "unknown" if cost.macs is None else f"{cost.macs / 1e6:,.2f}"
    return str(cost.nodes), f"{cost.parameters:,}", macs

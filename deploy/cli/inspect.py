"""`segdeploy inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segdeploy.cli.console import megabytes, print_json, print_table, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import foreign_model, json_option

if TYPE_CHECKING:
    from segdeploy.commands.inspect import Inspection


@command()
@click.argument("files", nargs=-1, required=True, type=Path, metavar="FILE [OTHER]")
@click.option("--diff", is_flag=True, help="Show only the differences of two files.")
@json_option
@foreign_model
def inspect(files: tuple[Path, ...], diff: bool, as_json: bool) -> None:
    """Show contract, convolutions, cost and ancestors of FILE.

    FILE is a checkpoint, an .onnx file or an engine.
    """
    import segdeploy

    if len(files) != (2 if diff else 1):
        raise click.UsageError("give one FILE, or two files with --diff")
    seen = [segdeploy.inspect(file) for file in files]
    if diff:
        from segdeploy.commands.inspect import differences

        found = differences(*seen)
        if as_json:
            print_json([{"entry": n, "first": a, "second": b} for n, a, b in found])
        elif found:
            print_table(("entry", str(files[0]), str(files[1])), found, words=True)
        else:
            say("no differences")
        return
    if as_json:
        print_json({**asdict(seen[0]), "dilations": seen[0].dilations})
        return
    _show(seen[0])


def _show(seen: Inspection) -> None:
    work = "" if seen.macs is None else f", {seen.macs / 1e9:.2f} GMAC an image"
    weights = "" if seen.parameters is None else f", {seen.parameters / 1e6:.2f} M weights"
    say(f"{seen.path}: {seen.kind}, {seen.precision}, {megabytes(seen.bytes)} MB{weights}{work}")
    say(f"sha256 {seen.sha256}")
    for parent in seen.parents:
        say(f"derived from {parent}")
    for what, tensors in (("input", seen.inputs), ("output", seen.outputs)):
        for one in tensors:
            say(f"{what} {one.name}: {one.dtype} ({', '.join(map(str, one.shape))})")
    if seen.opset is not None:
        say(f"opset {seen.opset}")
    if seen.needed:
        say(f"no segdeploy contract; `segdeploy adopt` needs {'; '.join(seen.needed)}")
    if seen.contract is not None:
        values = asdict(seen.contract).items()
        rows = [(name, _text(value)) for name, value in values if value is not None]
        print_table(("contract", ""), rows, words=True)
        if seen.contract.assumed:
            say(f"assumed, since nobody stated it: {seen.contract.assumptions}")
    if seen.engine:
        rows = [(name, _text(value)) for name, value in seen.engine.items()]
        print_table(("engine", ""), rows, words=True)
    print_table(
        ("convolution", "kernel", "dilation", "stride", "groups", "precision", "MMAC"),
        [
            (layer.module, _pair(layer.kernel), _pair(layer.dilation), _pair(layer.stride),
             str(layer.groups), layer.precision,
             "-" if layer.macs is None else f"{layer.macs / 1e6:.1f}")
            for layer in seen.layers
        ],
        f"{len(seen.layers)} convolutions, dilations {', '.join(map(str, seen.dilations))}",
    )  # fmt: skip


def _pair(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value) or "-"
    return "-" if value is None else str(value)

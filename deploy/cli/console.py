"""Progress on stderr, tables on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import click

from segdeploy.models.names import escaped
from segdeploy.plain_json import plain
from segdeploy.supervisor import progressed


def say(text: str, *, err: bool = False) -> None:
    """Print a line, or several, to stdout or stderr.

    What a name from a file could do to a terminal is shown as an escape, and not done.
    """
    click.echo("\n".join(map(escaped, text.split("\n"))), err=err)


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, fed with `(done, total, note)`; silent where it is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(escaped(title), total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progressed()
            bar.update(task, completed=done, total=total, note=escaped(note))

        yield update


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, words: bool = False
) -> None:
    """Print a table to stdout; the first column is flush left, the others right, unless `words`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, column in enumerate(columns):
        flush: Literal["left", "right"] = "left" if words or index == 0 else "right"
        table.add_column(column, justify=flush, no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))  # a name may look like rich's markup
    if title:
        say(title)
    console = Console()
    # A pipe has no width of its own; a table cut at 80 columns would lose figures.
    Console(width=None if console.is_terminal else 160).print(table)


def print_json(value: Any) -> None:
    """Print a result as JSON to stdout; what is infinite or undefined is null there."""
    print(json.dumps(plain(value), allow_nan=False))


def percent(share: float | None, digits: int = 2) -> str:
    """Format a share in 0..1 as per cent; a dash where it is undefined."""
    return "-" if share is None or share != share else f"{100 * share:.{digits}f}"


def megabytes(size: int | None) -> str:
    """Format bytes as megabytes; a dash where there are none."""
    return "-" if size is None else f"{size / 1e6:.2f}"

"""`segdeploy export`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, say
from segdeploy.cli.optimize import print_account
from segdeploy.cli.options import (
    NETWORK_OPTIONS,
    Scales,
    Size,
    json_option,
    network_options,
    network_spec,
    note_untrained,
    out_option,
)

if TYPE_CHECKING:
    from segdeploy.commands.export import ExportReport
    from segdeploy.onnx_graph.convolutions import ConvProof
    from segdeploy.profiles import Bounds


@click.command()
@click.argument("model")
@network_options
@click.option("--data", type=Path, help="Data set that names the classes of a named network.")
@click.option("--dynamic", is_flag=True, help="Let batch, height and width vary.")
@click.option("--min-size", type=Size(), help="Smallest size of a dynamic graph [32x32].")
@click.option("--max-size", type=Size(), help="Largest size of a dynamic graph [8192x8192].")
@click.option("--max-batch", type=click.IntRange(2, 1024), help="Its largest batch [32].")
@click.option(
    "--multiple-of",
    type=click.IntRange(1, 1024),
    help="Height and width of a dynamic graph, and of every scale, are multiples of this [found "
    "by trying].",
)
@click.option("--scales", type=Scales(), default="1", help="Fuse several scales, as 0.5,1,1.5.")
@click.option("--flip", is_flag=True, help="Fuse the mirrored image, too.")
@click.option("--fuse", type=click.Choice(["mean", "max"]), default="mean", show_default=True)
@click.option(
    "--output",
    type=click.Choice(["logits", "probabilities", "labels"]),
    default="logits",
    show_default=True,
)
@click.option(
    "--late-upsampling",
    is_flag=True,
    help="For labels: end at the small map's scores; our runtimes make the labels of it.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["RGB", "BGR"]),
    help="Take the camera's bytes (N, H, W, 3) in this order; mean and std go into the graph.",
)
@click.option("--opset", type=int, default=20, show_default=True)
@click.option("--no-optimize", is_flag=True, help="Leave the exact rewrites out.")
@out_option("ONNX file to write.")
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="List every convolution, and where a pass declined."
)
def export(
    model: str,
    data: Path | None,
    dynamic: bool,
    min_size: tuple[int, int] | None,
    max_size: tuple[int, int] | None,
    max_batch: int | None,
    no_optimize: bool,
    out: Path,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Export MODEL to ONNX, and prove that the file is the same network."""
    import segdeploy

    spec = network_spec(model, options)
    note_untrained(spec)
    if (min_size or max_size or max_batch) and not dynamic:
        raise click.UsageError("--min-size, --max-size and --max-batch go with --dynamic")
    graph_options = {key: value for key, value in options.items() if key not in NETWORK_OPTIONS}
    report = segdeploy.export(
        spec,
        out,
        dynamic=dynamic,
        bounds=_bounds(min_size, max_size, max_batch),
        optimized=not no_optimize,
        data=data,
        **graph_options,
    )
    if as_json:
        print_json(_described(report))
        return
    if verbose:
        print_table(("module", *_GEOMETRY, "node"), [_proof_row(p) for p in report.convolutions])
    say(
        f"{report.path}: {megabytes(report.bytes)} MB, {report.seconds:.1f} s; "
        f"{count_proofs(report.convolutions)}"
    )
    for note in report.notes:
        say(f"note: {note}")
    if report.strangers:
        say(_strangers(report))
    if report.account:
        print_account(report.account, verbose=verbose)
    print_table(
        ("parity at input", "image", "with", "max abs", "max rel (of range)", "SNR dB",
         "labels equal %"),
        [
            (
                "x".join(map(str, p.shape)),
                p.image,
                p.against,
                f"{p.max_abs:.2g}",
                f"{p.max_rel:.2g}",
                "-" if math.isinf(p.snr_db) else f"{p.snr_db:.0f}",
                percent(p.agreement, 4),
            )
            for p in report.parity
        ],
    )  # fmt: skip


def _bounds(
    smallest: tuple[int, int] | None, largest: tuple[int, int] | None, batch: int | None
) -> Bounds | None:
    from segdeploy.profiles import Bounds

    if not (smallest or largest or batch):
        return None
    default = Bounds()
    return Bounds(smallest or default.smallest, largest or default.largest, batch or default.batch)


_GEOMETRY = ("kernel", "dilation", "stride", "padding", "groups")


def count_proofs(proofs: tuple[ConvProof, ...]) -> str:
    """Say how many convolutions keep their geometry, and which dilations there are."""
    if not proofs:
        return "the network executes no convolution: parity alone speaks for it"
    dilations = sorted({max(proof.expected.dilation) for proof in proofs})
    held = sum(proof.holds for proof in proofs)
    return (
        f"{held} of {len(proofs)} convolutions keep dilation, padding, stride and groups "
        f"(dilations {', '.join(map(str, dilations))})"
    )


def _strangers(report: ExportReport) -> str:
    count = len(report.strangers)
    return (
        f"note: {count} convolutions of the rewritten graph belong to no call of PyTorch's "
        f"({', '.join(report.strangers[:3])}): parity alone speaks for them"
    )


def _proof_row(proof: ConvProof) -> tuple[str, ...]:
    return (
        proof.module,
        *(_times(getattr(proof.expected, name)) for name in _GEOMETRY),
        ", ".join(proof.folded_into) or proof.node or "",
    )


def _times(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _described(report: ExportReport) -> dict[str, Any]:
    return {
        **asdict(report),
        "path": str(report.path),
        "parity": [{**asdict(p), "holds": p.holds} for p in report.parity],
        "convolutions": [{**asdict(p), "holds": p.holds} for p in report.convolutions],
    }

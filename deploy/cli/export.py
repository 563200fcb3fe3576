"""`segdeploy export`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, say
from segdeploy.cli.headings import command
from segdeploy.cli.optimize import print_optimization
from segdeploy.cli.options import (
    NETWORK_OPTIONS,
    Channels,
    Scales,
    Size,
    json_option,
    network_options,
    network_spec,
    note_untrained,
    out_option,
    source_option,
)

if TYPE_CHECKING:
    from segdeploy.commands.export import ExportReport
    from segdeploy.onnx_graph.convolutions import ConvProof
    from segdeploy.profiles import Bounds


@command()
@click.argument("model", required=False)
@source_option
@network_options
@click.option(
    "--data", type=Path, metavar="DIR", help="Data set whose class names the contract takes."
)
@click.option("--dynamic", is_flag=True, help="Make batch, height and width dynamic.")
@click.option(
    "--min-size", type=Size(), help="Smallest input of a dynamic graph.  [default: 32x32]"
)
@click.option(
    "--max-size", type=Size(), help="Largest input of a dynamic graph.  [default: 8192x8192]"
)
@click.option(
    "--max-batch",
    type=click.IntRange(2, 1024),
    metavar="N",
    help="Largest batch of a dynamic graph.  [default: 32]",
)
@click.option(
    "--multiple-of",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Height and width of a dynamic graph, and of each scale, are multiples of N.  [default: "
    "found by running the network]",
)
@click.option(
    "--scales",
    type=Scales(),
    default="1",
    help="Embed multi-scale inference, for example 0.5,1,1.5.",
)
@click.option("--flip", is_flag=True, help="Embed inference on the mirrored image.")
@click.option(
    "--fuse",
    type=click.Choice(["mean", "max"]),
    default="mean",
    show_default=True,
    help="How the logits of scales and flips are fused.",
)
@click.option(
    "--output",
    type=click.Choice(["logits", "probabilities", "labels"]),
    default="logits",
    show_default=True,
    help="Output of the graph; labels embed argmax, or the thresholds of the head.",
)
@click.option(
    "--late-upsampling",
    is_flag=True,
    help="With --output labels: end the graph at low-resolution logits. The Python and C++ "
    "runtimes compute the labels exactly, without upsampled logits.",
)
@click.option(
    "--preprocess",
    type=Channels(),
    help="Embed preprocessing: the graph takes images (N, H, W, C) with the channels in this "
    "order, such as RGB.",
)
@click.option(
    "--source-size",
    type=Size(),
    help="With --preprocess: size of the images. The graph resizes, crops and pads them, too.",
)
@click.option(
    "--opset", type=int, default=20, show_default=True, metavar="N", help="ONNX operator set."
)
@click.option("--no-optimize", is_flag=True, help="Skip the exact rewrites.")
@out_option("ONNX file to write.")
@json_option
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="List every convolution, and every place that a pass skipped.",
)
def export(
    model: str | None,
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
    """Export MODEL to ONNX and prove that the file is the same network.

    MODEL is a registry name, a checkpoint (.safetensors) or package.module:factory. Exits with 1
    if a proof fails; the graph is then kept as NAME.rejected.onnx.
    """
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
    if report.unmatched_convolutions:
        say(_unmatched_message(report))
    if report.optimization:
        print_optimization(report.optimization, verbose=verbose)
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
    """Describe how many convolutions keep their geometry, and their dilations."""
    if not proofs:
        return "the network executes no convolution; parity is the only proof"
    dilations = sorted({max(proof.expected.dilation) for proof in proofs})
    held = sum(proof.holds for proof in proofs)
    return (
        f"{held} of {len(proofs)} convolutions keep dilation, padding, stride and groups "
        f"(dilations {', '.join(map(str, dilations))})"
    )


def _unmatched_message(report: ExportReport) -> str:
    count = len(report.unmatched_convolutions)
    return (
        f"note: {count} convolutions of the rewritten graph match no convolution that PyTorch "
        f"executed ({', '.join(report.unmatched_convolutions[:3])}); parity is their only proof"
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

"""`segdeploy build-engine`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from segdeploy.cli.console import megabytes, print_json
from segdeploy.cli.export import count_proofs
from segdeploy.cli.options import Shape, json_option, out_option

_Shape = tuple[int, int, int, int]


@click.command("build-engine")
@click.argument("model", type=Path)
@click.option("--backend", default="tensorrt-rtx", show_default=True, help="The builder.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="Compute capability, such as sm86; may be repeated.",
)
@click.option("--min", "minimum", type=Shape(), help="Smallest input of a dynamic graph.")
@click.option("--opt", "optimum", type=Shape(), help="The input to be fastest at.")
@click.option("--max", "maximum", type=Shape(), help="Largest input.")
@out_option("Engine to write (.engine); its manifest lies beside it.")
@json_option
def build_engine(
    model: Path,
    backend: str,
    targets: tuple[str, ...],
    minimum: _Shape | None,
    optimum: _Shape | None,
    maximum: _Shape | None,
    out: Path,
    as_json: bool,
) -> None:
    """Compile MODEL (.onnx) into a TensorRT engine; no GPU is needed."""
    import segdeploy

    profile = None
    if minimum and optimum and maximum:
        from segdeploy.engine.tensorrt_rtx import Profile

        profile = Profile(minimum, optimum, maximum)
    elif minimum or optimum or maximum:
        raise click.UsageError("--min, --opt and --max go together")
    report = segdeploy.build_engine(model, out, targets=targets, backend=backend, profile=profile)
    if as_json:
        described = {**asdict(report), "path": report.path, "manifest": report.manifest}
        described["convolutions"] = [
            {**asdict(proof), "holds": proof.holds} for proof in report.convolutions
        ]
        print_json(described)
        return
    click.echo(
        f"{report.path}: {megabytes(report.bytes)} MB, {report.precision}, for "
        f"{', '.join(report.targets)}, by {backend} {report.version} in {report.seconds:.1f} s; "
        f"manifest {report.manifest.name}"
    )
    int8 = f"; {report.int8} read INT8 data and weights" if report.int8 else ""
    click.echo(f"in TensorRT's network {count_proofs(report.convolutions)}{int8}")
    for note in report.notes:
        click.echo(f"note: {note}", err=True)

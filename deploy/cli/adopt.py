"""`segdeploy adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segdeploy.cli.build_engine import profile_options, read_profiles
from segdeploy.cli.console import say
from segdeploy.cli.options import Size, Triple, foreign_model


@click.command()
@click.argument("file", type=Path)
@click.option("--like", type=Path, help="Take the whole contract of this .onnx file or engine.")
@click.option("--data", type=Path, help="Data set whose classes it has.")
@click.option("--num-classes", type=click.IntRange(1, 255), help="Or how many classes it has.")
@click.option("--size", type=Size(), help="Input size, height x width.")
@click.option("--mean", type=Triple(), help="Mean of RGB in 0..1 that is subtracted.")
@click.option("--std", type=Triple(), help="Deviation of RGB in 0..1 that is divided by.")
@click.option("--colour", type=click.Choice(["RGB", "BGR"]), help="Order of its channels.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="NHWC takes bytes.")
@click.option("--output", type=click.Choice(["logits", "probabilities", "labels"]))
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8", "mixed"]))
@click.option("--backend", type=click.Choice(["tensorrt-rtx", "tensorrt"]), help="Its builder.")
@click.option("--built-by", "version", help="The builder's version.  [default: the one installed]")
@click.option("--target", "targets", multiple=True, help="Compute capability, such as sm86.")
@click.option("--version-compatible", is_flag=True, help="Built for later versions, too.")
@click.option("--hardware-compatible", is_flag=True, help="Built for any GPU from Ampere on.")
@profile_options
@click.option("-o", "--out", type=Path, help="Copy of an .onnx file to write.")
@foreign_model
def adopt(
    file: Path,
    out: Path | None,
    backend: str | None,
    version: str | None,
    targets: tuple[str, ...],
    version_compatible: bool,
    hardware_compatible: bool,
    minimum: Any,
    optimum: Any,
    maximum: Any,
    **stated: Any,
) -> None:
    """State what FILE (an .onnx file or an engine made elsewhere) is, so that it can be used.

    The contract goes into a copy of an .onnx file, or into a manifest beside an engine.
    """
    import segdeploy
    from segdeploy.commands.adopt import Statement

    written = segdeploy.adopt(
        file,
        Statement(**stated),
        out=out,
        backend=backend,
        version=version,
        targets=targets,
        profiles=read_profiles(minimum, optimum, maximum),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    say(f"{written}: says of {file} what you stated; `segdeploy inspect` shows it")

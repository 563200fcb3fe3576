"""`segdeploy adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segdeploy.cli.build_engine import profile_options, read_profiles
from segdeploy.cli.console import say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    PREPROCESSING_OPTIONS,
    Size,
    foreground_option,
    foreign_model,
    preprocessing_options,
    stated_preprocessing,
)
from segdeploy.contract import PRECISIONS


@command()
@click.argument("file", type=Path)
@click.option(
    "--like", type=Path, metavar="FILE", help="Copy the contract of an .onnx file or engine."
)
@click.option("--data", type=Path, metavar="DIR", help="Data set whose classes FILE predicts.")
@click.option(
    "--num-classes",
    type=click.IntRange(1, 255),
    metavar="N",
    help="Number of classes, where there is no data set; 1 is a binary network.",
)
@foreground_option
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Files of the framework that wrote FILE, such as hf:DIR beside an ONNX export of "
    "transformers: they state the classes and the preprocessing.",
)
@click.option("--size", type=Size(), help="Input size of the network, in pixels.")
@preprocessing_options
@click.option(
    "--layout", type=click.Choice(["NCHW", "NHWC"]), help="Layout; NHWC means images as they are."
)
@click.option(
    "--output",
    type=click.Choice(["logits", "probabilities", "labels"]),
    help="Output of the network.",
)
@click.option(
    "--take", metavar="NAME", help="Name of the output, if there are several; others are cut off."
)
@click.option(
    "--upsampling",
    type=click.Choice(["half-pixel", "align-corners"]),
    help="How score maps that are smaller than the input are enlarged, bilinearly, in the graph.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision of the network.",
)
@click.option(
    "--backend", type=click.Choice(["tensorrt-rtx", "tensorrt"]), help="Builder of the engine."
)
@click.option(
    "--built-by",
    "version",
    metavar="VERSION",
    help="Version of the builder.  [default: the installed one]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SM",
    help="Compute capability of the engine, such as sm86. Repeatable.",
)
@click.option("--version-compatible", is_flag=True, help="The engine was built version-compatible.")
@click.option(
    "--hardware-compatible", is_flag=True, help="The engine was built for every GPU from Ampere on."
)
@profile_options
@click.option("-o", "--out", type=Path, metavar="FILE", help="Copy of an .onnx file to write.")
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
    """Give FILE, an .onnx file or engine of another tool, the contract that it lacks.

    The contract is written into a copy of an .onnx file, or into a manifest beside an engine.
    """
    import segdeploy
    from segdeploy.adoption.statement import Statement

    preprocessing = stated_preprocessing(stated)
    own = {name: value for name, value in stated.items() if name not in PREPROCESSING_OPTIONS}
    written = segdeploy.adopt(
        file,
        Statement(**own, preprocessing=preprocessing),
        out=out,
        backend=backend,
        version=version,
        targets=targets,
        profiles=read_profiles(minimum, optimum, maximum),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    say(f"{written}: holds the stated contract; `segdeploy inspect {written}` shows it")

"""`segdeploy serve-repo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import print_json, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import json_option


@command("serve-repo")
@click.argument("model", type=Path)
@click.option(
    "--name", metavar="NAME", help="Name of the model on the server.  [default: the file's name]"
)
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of model instances.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Largest batch.  [default: the model's]",
)
@click.option(
    "--delay", "delay_us", type=click.IntRange(0), default=100, show_default=True,
    metavar="US",
    help="Microseconds that a request may wait for others of its batch.",
)  # fmt: skip
@click.option(
    "--gpu/--cpu",
    "on_gpu",
    default=None,
    help="Device of the instances.  [default: CPU for .onnx, GPU for an engine]",
)
@click.option(
    "-o", "--out", type=Path, required=True, metavar="DIR", help="Folder of the model repository."
)
@json_option
def serve_repo(model: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write MODEL (an .onnx file or a TensorRT engine) as a Triton model repository.

    A client script is written beside the repository.
    """
    import segdeploy

    written = segdeploy.serve_repo(model, out, **options)
    if as_json:
        print_json(asdict(written))
        return
    checked = "validated with Triton's protobuf" if written.validated else (
        "not validated: pip install 'segdeploy[triton]'"
    )  # fmt: skip
    say(
        f"{written.path}: {written.model}, version {written.version}, batches up to "
        f"{max(1, written.batch)}; models {', '.join(written.models)}; configurations {checked}"
    )
    say(f"tritonserver --model-repository={written.path.resolve()}")
    image = "image.jpg" if written.takes_files else "image.npy"
    say(f"python {written.path / written.model}_client.py {image} labels.png")

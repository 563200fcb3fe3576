"""`segdeploy contract`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from segdeploy.cli.console import print_json, print_table, say
from segdeploy.cli.headings import Command
from segdeploy.cli.options import Size, json_option, out_option


@click.group()
def contract() -> None:
    """Show, start, infer or check a contract."""


def with_option(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--with`, the preprocessing function."""
    return click.option(
        "--with",
        "function",
        required=required,
        metavar="MODULE:FUNCTION",
        help="Preprocessing function: an RGB image (array, Pillow image or path) in, the network's "
        "input out.",
    )


images_option = click.option(
    "--data",
    type=Path,
    required=True,
    metavar="DIR",
    help="Data set or folder of images to prove the contract on.",
)
frames_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Read only the first N images.",
)


@contract.command(cls=Command)
@with_option(required=True)
@images_option
@frames_option
@out_option("Contract file to write (.json), for --contract.")
@json_option
def infer(function: str, data: Path, limit: int, out: Path, as_json: bool) -> int:
    """Infer a contract from a preprocessing function.

    The function is asked with probe images, and the contract is proven on real ones. Exits with 1
    if some value differs.
    """
    import segdeploy

    found = segdeploy.infer_contract(function, data, out, limit=limit)
    if as_json:
        values = asdict(found)
        del values["contract"]
        print_json({**values, "is_exact": found.is_exact})
        return 0 if found.is_exact else 1
    print_table(("field", "value"), [(k, _text(v)) for k, v in found.stated.items()], words=True)
    asked = f"{found.calls} calls, {found.seconds:.1f} s"
    if found.is_exact:
        say(f"{out}: equal to {function} to the bit on {found.frames} images ({asked})")
    elif not found.share:
        say(
            f"{out}: equal to {function} to the bit on {found.frames} images, and different on "
            f"{found.probes} probe images of other sizes, so the function chooses its kernel by "
            f"the size of the image ({asked})"
        )
    else:
        say(
            f"{out}: the closest contract; on {found.frames} images {100 * found.share:.2f} % of "
            f"the values differ from {function}, by up to {found.largest:.3g} ({asked})"
        )
    if found.alike:
        say(f"these kernels give the same input: {', '.join(found.alike)}")
    return 0 if found.is_exact else 1


@contract.command(cls=Command)
@click.argument("model", type=Path)
@with_option(required=False)
@click.option(
    "--predict",
    metavar="MODULE:FUNCTION",
    help="Whole pipeline: an RGB array (H, W, 3) in, labels (H, W) out.",
)
@images_option
@frames_option
@json_option
def check(
    model: Path,
    function: str | None,
    predict: str | None,
    data: Path,
    limit: int,
    as_json: bool,
) -> int:
    """Compare MODEL (a checkpoint, an .onnx file or an engine) with a function of yours.

    --with compares the network's inputs. If they differ, the function's own contract is inferred,
    and the fields that differ are named. --predict compares the labels. If they differ, the usual
    mistakes are tried one by one (order of the channels, scale, mean and std, resize kernel,
    padding, offset of the labels, enlargement), and the one that explains the difference is named.
    Exits with 1 if the inputs or the labels differ.
    """
    import segdeploy

    if (function is None) == (predict is None):
        raise click.UsageError("give --with MODULE:FUNCTION, or --predict MODULE:FUNCTION")
    if predict is not None:
        return _compare_labels(model, predict, data, limit, as_json)
    assert function is not None
    found = segdeploy.check_contract(model, function, data, limit=limit)
    if as_json:
        print_json({**asdict(found), "is_exact": found.is_exact})
        return 0 if found.is_exact else 1
    if found.is_exact:
        say(f"{model}: gives the input of {function} to the bit on {found.frames} images")
        return 0
    amount = "have another size" if math.isinf(found.largest) else (
        f"differ in {100 * found.share:.2f} % of the values, by up to {found.largest:.3g}"
    )  # fmt: skip
    say(f"{model}: its inputs {amount} from those of {function} on {found.frames} images")
    if found.fields:
        rows = [(name, _text(ours), _text(theirs)) for name, (ours, theirs) in found.fields.items()]
        print_table(("field", "model", "function"), rows, words=True)
    if not found.explained:
        beside = ", beside these fields" if found.fields else ""
        say(f"the function does something that no contract states{beside}")
    return 1


def _compare_labels(model: Path, predict: str, data: Path, limit: int, as_json: bool) -> int:
    import segdeploy

    found = segdeploy.check_predictions(model, predict, data, limit=limit)
    if as_json:
        print_json({**asdict(found), "is_equal": found.is_equal})
        return 0 if found.is_equal else 1
    share = f"{100 * found.agreement:.3f} % of the labels on {found.frames} images"
    say(f"{model}: {share} are those of {predict}")
    if found.classes == 1:
        say("all labels are of one class, so that equal labels prove nothing; give other images")
    if found.is_equal:
        return 0
    if found.suspects:
        rows = [(name, f"{100 * share:.3f}") for name, share in found.suspects.items()]
        print_table(("if in the pipeline", "labels equal %"), rows)
    if found.explained:
        say(f"explained: in {predict}, {found.explained}; state it in the contract if it is right")
    else:
        say("no single usual mistake explains the difference; --with compares the preprocessing")
    return 1


@contract.command(cls=Command)
@click.argument("model", type=Path)
def show(model: Path) -> None:
    """Print the contract of MODEL (a checkpoint, an .onnx file or an engine) as JSON."""
    from segdeploy.commands.contract import contract_of_model
    from segdeploy.model_spec import ModelSpec

    say(contract_of_model(ModelSpec(str(model))).to_json())


@contract.command(cls=Command)
@click.option("--size", type=Size(), required=True, help="Input size of the network, in pixels.")
@out_option("Contract file to write (.json), to be edited.")
def init(size: tuple[int, int], out: Path) -> None:
    """Start a contract file with the usual fields of an RGB network, to be edited."""
    from segdeploy.commands.contract import start_contract

    start_contract(out, size)
    say(f"{out}: states a usual RGB network of {size[0]}x{size[1]}; edit it, and give --contract")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)

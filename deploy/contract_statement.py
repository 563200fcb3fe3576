"""What a user states about a network's contract, by options or by a file of JSON or TOML."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import (
    NO_FIT,
    SCHEMA,
    Classes,
    Contract,
    is_color,
    listed,
    numbered_classes,
    placeholder_classes,
)
from segdeploy.contract_checks import contradiction
from segdeploy.contract_json import CHECKS, frozen, is_schema, lifted, wanted_of
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.models.channels import DTYPES
from segdeploy.models.strict_json import parse_json

if TYPE_CHECKING:
    from segdeploy.models.dataset import DataSet

# What a contract file may state, beside `mean_255` and `std_255`. The network decides the rest.
STATED = (
    *("channels", "source_channels", "dtype", "gray"),
    *("scale", "mean", "std", "normalization"),
    *("fit", "edge", "longest_edge", "rounding", "side_multiple"),
    *("pad", "pad_normalized", "pad_side", "pad_multiple", "resize"),
    *("head", "threshold", "min_confidence", "label_ids"),
)
OF_CLASSES = ("classes", "palette", "ignore_index")
_STATED_IN_FILE = (*STATED, "size", *OF_CLASSES)


def option_of(name: str) -> str:
    """Return the option that states the field `name` of a contract."""
    if name in OF_CLASSES:  # a contract file alone states them
        return "--contract"
    return "--rescale" if name == "scale" else f"--{name.replace('_', '-')}"


def replaced(stated: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file states, replaced by what options state where both state a field.

    What belongs to a replaced value of the file goes with that value.
    """
    left_out = {name.removesuffix("_255") for name in given}
    left_out |= {f"{name}_255" for name in left_out & {"mean", "std"}}
    if "pad" in given:
        left_out.add("pad_normalized")
    if "fit" in given:
        left_out |= {*NO_FIT}
    if "channels" in given:
        left_out |= {"gray", "source_channels"}
    has_constants = {"mean", "std", "mean_255", "std_255"} & set(given)
    if has_constants and stated.get("normalization") in ("none", "per-image"):
        left_out |= {"normalization", "scale"}
    kept = {name: value for name, value in stated.items() if name not in left_out}
    return {**kept, **given}


def with_stated(contract: Contract, stated: Mapping[str, Any]) -> Contract:
    """Return the contract with fields that the user states, which are no longer assumed.

    `mean_255` and `std_255` state a mean and a standard deviation in units of 0 to 255. What
    follows from a statement is stated with it: the scale from the dtype, the absence of padding
    from a fit without padding, no constants from the normalization `none`.

    Raises:
        InputError: if the statements contradict each other, or the rest of the contract.
    """
    stated = {
        name: None if value is None else _value(name, value, option_of(name))
        for name, value in stated.items()
    }
    made = replace(contract, **_with_implied(contract, stated))
    names = {name.removesuffix("_255") for name in stated}
    if stated.get("normalization") in ("none", "per-image"):
        names |= {"mean", "std"}
    assumed = tuple(name for name in contract.assumed if name not in names)
    made = replace(made, assumed=assumed)
    if reason := contradiction(made):
        raise InputError(reason)
    return made


def restated(contract: Contract, stated: Mapping[str, Any]) -> Contract:
    """Return the contract of a file with fields that the user states anew, as `with_stated`.

    Other channels than the file's get the constants 0 and 1, which are then assumed.

    Raises:
        InputError: if the statements contradict each other, or the rest of the contract.
    """
    made = with_stated(contract, stated)
    if set(made.channels) <= set(contract.channels) or made.normalization in ("none", "per-image"):
        return made
    names = [one for one in ("mean", "std") if not {one, f"{one}_255"} & set(stated)]
    return replace(made, assumed=tuple(dict.fromkeys((*made.assumed, *names))))


def _with_implied(contract: Contract, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the statement sets, with those that follow from it."""
    found = {name: value for name, value in stated.items() if name not in OF_CLASSES}
    channels = found.get("channels", contract.channels)
    for name in ("mean", "std", "mean_255", "std_255", "pad"):
        if len(found.get(name) or ()) == 1:  # one number for all channels
            found[name] = tuple(found[name]) * len(channels)
    normalization = found.get("normalization", contract.normalization)
    has_constants = normalization not in ("none", "per-image")
    _check_units(found, found.get("dtype", contract.dtype), has_constants=has_constants)
    if not has_constants:
        found = {"mean": (0.0,) * len(channels), "std": (1.0,) * len(channels), **found}
    elif channels != contract.channels:
        found = {**_constants_of(contract, channels), **found}
    if normalization == "none":
        found.setdefault("scale", 1.0)
    elif "dtype" in found:
        found.setdefault("scale", DTYPES[found["dtype"]])
    scale = found.get("scale", contract.scale)
    for name in ("mean", "std"):
        values = found.pop(f"{name}_255", None)
        if values is not None:
            found[name] = tuple(_scaled(value, scale) for value in values)
    if "fit" in found:
        found = {**NO_FIT, **found}
    return found


def _constants_of(contract: Contract, channels: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Return mean and standard deviation of other `channels`, by their names; 0 and 1 for new ones.

    ImageNet's constants belong to red, green and blue in any order, and to no other channels.
    """
    if not set(channels) <= set(contract.channels):
        return {"mean": (0.0,) * len(channels), "std": (1.0,) * len(channels)}
    places = [contract.channels.index(name) for name in channels]
    return {
        "mean": tuple(contract.mean[at] for at in places),
        "std": tuple(contract.std[at] for at in places),
    }


def _check_units(stated: Mapping[str, Any], dtype: str, *, has_constants: bool) -> None:
    """Refuse constants in unknown units.

    These are a scale of other units than 0 to 1 without a mean and a deviation in these units, and
    constants of 0 to 255 for images of another range.
    """
    for name in ("mean", "std"):
        if f"{name}_255" not in stated:
            continue
        if name in stated:
            raise InputError(f"--{name}-255: is the same as --{name}; leave one of them out")
        if dtype != "uint8":
            raise InputError(
                f"--{name}-255: is for images of uint8, and the images are {dtype}; give --{name}, "
                "in the units after --rescale"
            )
        if name == "mean" and 0 < max(stated["mean_255"]) <= 1:
            raise InputError(
                f"--mean-255 {listed(stated['mean_255'])}: is in units of 0 to 255; give --mean "
                "for values of 0 to 1"
            )
    scale = stated.get("scale")
    if scale in (None, DTYPES[dtype]) or not has_constants:
        return
    if not all({name, f"{name}_255"} & set(stated) for name in ("mean", "std")):
        raise InputError(
            f"--rescale {scale:g}: changes the units of the mean and the standard deviation; state "
            "--mean and --std, too"
        )


def _scaled(value: float, scale: float) -> float:
    """Return `value * scale`; the division is exact where the factor 1/255 would round."""
    divisor = 1 / scale
    return value / divisor if divisor.is_integer() else value * scale


def stated_classes(stated: Mapping[str, Any]) -> Classes | None:
    """Return the classes that a contract file states, with placeholder colors if it has none.

    Raises:
        InputError: if the numbers of colors and classes differ, the ignore index is a class, or
            there are colors or an ignore index without classes.
    """
    if "classes" not in stated:
        alone = [name for name in ("palette", "ignore_index") if name in stated]
        if alone:
            raise InputError(
                f"the contract file has '{alone[0]}' without 'classes'; add the classes"
            )
        return None
    classes = stated["classes"]
    palette = stated.get("palette", placeholder_classes(len(classes))[1])
    if len(palette) != len(classes):
        raise InputError(
            f"the contract file has {len(palette)} colors for {len(classes)} classes; state one "
            "color for each class"
        )
    ignore_index = stated.get("ignore_index", 255)
    if ignore_index < len(classes):
        raise InputError(
            f"the contract file's ignore_index {ignore_index} is the class "
            f"{classes[ignore_index]}; state a number from {len(classes)} to 255"
        )
    return classes, palette, ignore_index


def agreed_classes(
    stated: Mapping[str, Any], dataset: DataSet | None, count: int | None
) -> Classes | None:
    """Return the classes of the data set, else of a contract file, else `count` placeholders.

    None if nobody states classes. A `count` of 1 is a binary network, of two classes.

    Raises:
        InputError: if the three contradict each other.
    """
    named = stated_classes(stated)
    if dataset is not None and named is not None and named[0] != dataset.classes:
        raise InputError(
            f"{dataset.root}: has the classes {', '.join(dataset.classes)}, and the contract file "
            f"has {', '.join(named[0])}; leave its classes out"
        )
    if count == 1 and stated.get("head", "binary") != "binary":
        raise InputError(
            f"--head {stated['head']}: --num-classes 1 is a binary network; leave one of them out"
        )
    source = "the contract file"
    if dataset is not None:
        source = str(dataset.root)
        named = dataset.classes, dataset.palette, dataset.ignore_index
    if named is None:
        return numbered_classes(count) if count else None
    if count not in (None, len(named[0])) and (count, len(named[0])) != (1, 2):
        mend = "leave out --num-classes"
        if count == 1 and dataset is not None:
            mend = "for a binary network, name its class with --foreground"
        raise InputError(
            f"{source}: has {len(named[0])} classes, but --num-classes is {count}; {mend}"
        )
    return named


def head_of(dataset: DataSet | None, foreground: str | None, count: int | None) -> dict[str, Any]:
    """Return the head that follows from a data set's masks, `--foreground` or `--num-classes`."""
    if foreground is not None or count == 1:
        return {"head": "binary"}
    return {"head": "multilabel"} if dataset is not None and dataset.bit_planes else {}


def images_of(dataset: DataSet | None) -> dict[str, Any]:
    """Return the channels and the dtype that a data set of other images than 8-bit RGB states."""
    if dataset is None or (is_color(dataset.channels) and dataset.dtype == "uint8"):
        return {}
    return {"channels": dataset.channels, "dtype": dataset.dtype}


def read_statement(path: Path) -> dict[str, Any]:
    """Return the fields of a contract that a file states, FILE.json or FILE.toml.

    The names are those of the contract. A scale may be a fraction in quotes, such as `"1/255"`, and
    `mean_255` and `std_255` are in units of 0 to 255. The fields of a complete contract that the
    network decides, such as its precision, are left out.

    Raises:
        InputError: for a file that is neither, an unknown name, or a value of a wrong type.
    """
    values = _parsed(path)
    schema = values.pop("schema", SCHEMA)
    if not is_schema(schema):
        raise InputError(f"{path}: has schema {schema!r}, this segdeploy reads 1 to {SCHEMA}")
    values = _of_schema_2(values, path)
    is_complete = {"architecture", "arguments", "layout", "output", "precision"} <= set(values)
    stated: dict[str, Any] = {}
    for name, value in values.items():
        field = _field_of(name)
        if field not in _STATED_IN_FILE:
            if field not in CHECKS:
                raise InputError(f"{path}: '{name}' is no field of a contract{_meant(name)}")
            if not is_complete:
                raise InputError(
                    f"{path}: '{name}' is decided by the network, and cannot be stated; remove it"
                )
            continue
        if value is not None:
            stated[name] = _value(name, value, f"{path}: '{name}'")
    return stated


def _value(name: str, value: Any, shown: str) -> Any:
    """Return the value of a stated field as a contract holds it; `shown` names it in an error.

    Raises:
        InputError: for a value that a contract cannot hold.
    """
    field = _field_of(name)
    plain = _thawed(value)
    if field == "scale" and isinstance(plain, str):
        plain = as_number(plain)
    if field in ("mean", "std", "pad") and isinstance(plain, (int, float)):
        plain = [plain]  # one number for all channels
    if field not in CHECKS:
        raise InputError(f"'{name}' is no field of a contract{_meant(name)}")
    if not CHECKS[field](plain):
        raise InputError(f"{shown} {_told(value)}: must be {wanted_of(field)}")
    return frozen(plain)


def _field_of(name: str) -> str:
    """Return the field of a contract that a name states: `mean` for `mean_255`."""
    return name.removesuffix("_255") if name in ("mean_255", "std_255") else name


def _thawed(value: Any) -> Any:
    """Return a value with lists instead of tuples."""
    return [_thawed(one) for one in value] if isinstance(value, (tuple, list)) else value


def _told(value: Any) -> str:
    is_list = isinstance(value, (tuple, list)) and all(
        isinstance(one, (int, float, str)) and not isinstance(one, bool) for one in value
    )
    if isinstance(value, float):
        return f"{value:g}"
    return listed(value) if is_list else f"{value!r:.100}"


def _of_schema_2(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields with `channels` instead of schema 1's `color`."""
    colors = sorted({"color", "colour"} & set(values))
    if not colors:
        return values
    if "channels" in values:
        raise InputError(f"{path}: '{colors[0]}' and 'channels' say the same; remove one")
    if values[colors[0]] not in ("RGB", "BGR"):
        raise InputError(f"{path}: '{colors[0]}' must be RGB or BGR; state 'channels' instead")
    return lifted(values)


def _meant(name: str) -> str:
    """Return advice for an unknown field: the name that was meant, or where the names are."""
    close = get_close_matches(name, _STATED_IN_FILE, n=1)
    return f"; did you mean '{close[0]}'?" if close else "; docs/reference/contract.md lists them"


def as_number(text: str) -> float | None:
    """Return the number of `0.5` or `1/255`; None for other text."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _parsed(path: Path) -> dict[str, Any]:
    content = check_input(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error})") from error
    if path.suffix == ".toml":
        return _toml(text, path)
    if path.suffix != ".json":
        raise InputError(f"{path}: a contract file ends in .json or .toml")
    values = parse_json(text, f"{path}:")
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return values


def _toml(text: str, path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib

        try:
            return tomllib.loads(text)
        # A ValueError also comes from an integer of more digits than Python converts.
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not TOML ({error})") from error
    raise InputError(f"{path}: TOML needs Python 3.11; write the contract as .json")

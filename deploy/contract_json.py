"""Read and check a contract from the JSON in a file's metadata."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from segdeploy.contract import (
    FITS,
    GRAY_CONVERSIONS,
    HEADS,
    LEAST,
    MOST,
    MOST_CHANNELS,
    MOST_CLASSES,
    NORMALIZATIONS,
    OUTPUTS,
    PAD_SIDES,
    PRECISIONS,
    PREPROCESSING,
    RESIZE_KERNELS,
    ROUNDINGS,
    SCHEMA,
    Contract,
    check_pixels,
)
from segdeploy.contract_checks import contradiction
from segdeploy.errors import InputError
from segdeploy.models.bit_planes import MOST_PLANES
from segdeploy.models.channels import DTYPES
from segdeploy.models.names import are_names, is_line
from segdeploy.models.strict_json import parse_json


def read_contract(text: str, source: str) -> Contract:
    """Parse and check a contract that was read from `source`.

    A contract of schema 1 is lifted: its `color`, RGB or BGR, becomes `channels`.

    Raises:
        InputError: if the text is not JSON, the schema differs, or a field has a wrong type or
            length.
    """
    values = parse_json(text, f"{source}: its segdeploy contract", mend="export the network again")
    if not isinstance(values, dict):
        raise InputError(f"{source}: its segdeploy contract is not a JSON object")
    schema = values.pop("schema", None)
    if not is_schema(schema):
        raise InputError(
            f"{source}: its contract has schema {schema!r}, this segdeploy reads 1 to {SCHEMA}; "
            "install the segdeploy that wrote it, or export again"
        )
    if "channels" not in values:
        values = lifted(values)
    required = {name: check for name, check in CHECKS.items() if name not in _LATER}
    for name, is_valid in {**required, **{k: v for k, v in CHECKS.items() if k in values}}.items():
        if name not in values:
            raise InputError(
                f"{source}: the contract's '{name}' is missing; export the network again"
            )
        if not is_valid(values[name]):
            raise InputError(
                f"{source}: the contract's '{name}' is wrong, or of a kind that this version does "
                "not execute; export the network again"
            )
    largest = (values.get("bounds") or [None, values["size"]])[1]
    for size in (values["size"], largest, values.get("source_size") or values["size"]):
        check_pixels(size, f"{source}: the contract's input")
    if len(values["palette"]) != len(values["classes"]):
        raise InputError(
            f"{source}: the contract's numbers of colors and classes differ; export the network "
            "again"
        )
    known = {entry.name for entry in fields(Contract)}
    contract = Contract(**{name: frozen(v) for name, v in values.items() if name in known})
    if reason := contradiction(contract):
        raise InputError(
            f"{source}: its contract contradicts itself ({reason}); export the network again"
        )
    return contract


def is_schema(value: object) -> bool:
    """Return whether `value` is the number of a schema that this version reads."""
    return type(value) is int and 1 <= value <= SCHEMA


def lifted(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of schema 1 as those of schema 2."""
    lifted = dict(values)
    color = lifted.pop("colour", None)  # the spelling of the first versions
    color = lifted.pop("color", color)
    if color in ("RGB", "BGR"):
        lifted["channels"] = list(color)
        if color == "BGR" and values.get("layout") == "NHWC":
            # The order of the graph's images; its mean and std were those of RGB.
            for name in ("mean", "std"):
                if isinstance(values.get(name), list):
                    lifted[name] = values[name][::-1]
    elif color is not None:
        lifted["channels"] = color  # refused by its check
    if isinstance(assumed := values.get("assumed"), list):
        lifted["assumed"] = ["channels" if name == "color" else name for name in assumed]
    return lifted


def frozen(value: Any) -> Any:
    """Return a value of JSON or TOML with tuples instead of lists."""
    return tuple(frozen(v) for v in value) if isinstance(value, list) else value


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Return whether `value` is a number (not a bool) of magnitude up to `MOST`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_list(length: int | None, is_item: Any, most: int | None = None) -> Any:
    def check(value: object) -> bool:
        return (
            isinstance(value, list)
            and (len(value) == length if length is not None else bool(value))
            and (most is None or len(value) <= most)
            and all(is_item(item) for item in value)
        )

    return check


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def _are_bounds(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    sizes = _is_list(2, _is_size)
    if not (sizes(value[0]) and sizes(value[1]) and _is_size(value[2])):
        return False
    return all(low <= high for low, high in zip(value[0], value[1], strict=True))


def _is_positive(value: object) -> bool:
    return _is_number(value) and float(value) >= LEAST  # type: ignore[arg-type]


def _is_provenance(value: object) -> bool:
    return isinstance(value, dict) and all(is_line(text) for item in value.items() for text in item)


def _one_of(values: Any) -> Any:
    return lambda value: isinstance(value, str) and value in values


def _optional(is_valid: Any) -> Any:
    return lambda value: value is None or is_valid(value)


def _are_channels(value: object) -> bool:
    return _is_list(None, is_line, MOST_CHANNELS)(value) and are_names(value)


_CHOICES = {
    "dtype": DTYPES,
    "gray": GRAY_CONVERSIONS,
    "normalization": NORMALIZATIONS,
    "layout": ("NCHW", "NHWC"),
    "fit": FITS,
    "rounding": ROUNDINGS,
    "pad_side": PAD_SIDES,
    "resize": RESIZE_KERNELS,
    "head": HEADS,
    "output": OUTPUTS,
    "precision": PRECISIONS,
}
# Only values that this version implements. Others would silently give wrong results.
CHECKS = {
    "architecture": is_line,
    "classes": lambda value: are_names(value) and len(value) <= MOST_CLASSES,
    "palette": _is_list(None, _is_list(3, _is_byte)),
    "ignore_index": _is_byte,
    "size": _is_list(2, _is_size),
    "arguments": _is_mapping,
    "channels": _are_channels,
    "source_channels": _optional(_are_channels),
    "dtype": _one_of(_CHOICES["dtype"]),
    "gray": _optional(_one_of(_CHOICES["gray"])),
    "scale": _is_positive,
    "mean": _is_list(None, _is_number, MOST_CHANNELS),
    "std": _is_list(None, _is_positive, MOST_CHANNELS),
    "normalization": _one_of(_CHOICES["normalization"]),
    "layout": _one_of(_CHOICES["layout"]),
    "fit": _one_of(_CHOICES["fit"]),
    "edge": _optional(_is_size),
    "longest_edge": _optional(_is_size),
    "rounding": _optional(_one_of(_CHOICES["rounding"])),
    "side_multiple": _optional(_is_size),
    "pad": _optional(_is_list(None, _is_number, MOST_CHANNELS)),
    "pad_normalized": _is_bool,
    "pad_side": _optional(_one_of(_CHOICES["pad_side"])),
    "pad_multiple": _optional(_is_size),
    "resize": _one_of(_CHOICES["resize"]),
    "source_size": _optional(_is_list(2, _is_size)),
    "head": _one_of(_CHOICES["head"]),
    "threshold": _optional(
        lambda value: _is_number(value) or _is_list(None, _is_number, MOST_PLANES)(value)
    ),
    "min_confidence": _optional(_is_number),
    "label_ids": _optional(_is_list(None, _is_byte)),
    "output": _one_of(_CHOICES["output"]),
    "precision": _one_of(_CHOICES["precision"]),
    "scales": _is_list(None, _is_positive),
    "flip": _is_bool,
    "fuse": _one_of(("mean", "max")),
    "upsampling": _optional(_one_of(("align-corners", "half-pixel"))),
    "bounds": _optional(_are_bounds),
    "multiple": _is_size,
    "provenance": _is_provenance,
    "assumed": lambda value: isinstance(value, list) and all(v in PREPROCESSING for v in value),
}
_SIDE = "a whole number from 1 to 65536"
_WANTED = {
    "classes": "a list of different names of 1 to 100 printable characters",
    "palette": "a list of colors [red, green, blue], each from 0 to 255",
    "ignore_index": "a whole number from 0 to 255",
    "size": "[height, width], each from 1 to 65536",
    "channels": f"a list of up to {MOST_CHANNELS} different names",
    "source_channels": f"a list of up to {MOST_CHANNELS} different names",
    "scale": f"a number from {LEAST:g} to {MOST:g}, or a fraction in quotes such as '1/255'",
    "mean": f"a list of numbers from {-MOST:g} to {MOST:g}",
    "std": f"a list of numbers from {LEAST:g} to {MOST:g}",
    "pad": f"a list of numbers from {-MOST:g} to {MOST:g}",
    "pad_normalized": "true or false",
    **dict.fromkeys(("edge", "longest_edge", "side_multiple", "pad_multiple"), _SIDE),
    "threshold": "a probability, or a list of one for each class",
    "min_confidence": "a probability",
    "label_ids": "a list of whole numbers from 0 to 255",
}


def wanted_of(field: str) -> str:
    """Return in words what a field of the contract holds."""
    if field in _CHOICES:
        return f"one of {', '.join(_CHOICES[field])}"
    return _WANTED.get(field, "of another kind")


# Fields that are missing in files of earlier versions.
_LATER = {
    *("source_channels", "dtype", "gray", "scale", "normalization"),
    *("fit", "edge", "longest_edge", "rounding", "side_multiple"),
    *("pad", "pad_normalized", "pad_side", "pad_multiple", "source_size"),
    *("head", "threshold", "min_confidence", "label_ids"),
    *("fuse", "upsampling", "bounds", "multiple", "assumed"),
}

"""Cache of calibration ranges in a small JSON file, reused for the same graph and frames."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.files import write_atomically
from segdeploy.models.strict_json import read_json

if TYPE_CHECKING:
    from segdeploy.calibration.thresholds import Statistics

SCHEMA = 2
_LARGEST = 256 << 20


def read_cache(path: Path, graph: str, data: str) -> tuple[dict[str, Statistics], int] | None:
    """Return the statistics by tensor, and the number of frames after which they had settled.

    None if the file does not exist, or was made from another graph or other frames (compared by
    SHA-256).

    Raises:
        InputError: if the file is not a cache of this schema.
    """
    from segdeploy.calibration.thresholds import Statistics

    if not path.exists():
        return None
    mend = "delete it, or name another file"
    values = read_json(path, expected="a cache of ranges", mend=mend, max_bytes=_LARGEST)
    try:
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r}")
        if (values["graph"], values["data"]) != (graph, data):
            return None
        found = {
            name: Statistics(
                float(one["lowest"]),
                float(one["highest"]),
                {method: float(value) for method, value in one["thresholds"].items()},
                float(one["top"]),
                tuple(int(count) for count in one["bars"]),
            )
            for name, one in values["tensors"].items()
        }
        numbers = [v for one in found.values() for v in (one.largest, *one.thresholds.values())]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a range is not finite")
        return found, int(values["stable_after"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not a cache of ranges ({error}); {mend}") from error


def write_cache(
    path: Path, graph: str, data: str, tensors: Mapping[str, Statistics], stable_after: int
) -> None:
    """Write a cache for `read_cache`."""
    values = {
        "schema": SCHEMA,
        "graph": graph,
        "data": data,
        "stable_after": stable_after,
        "tensors": {name: asdict(one) for name, one in tensors.items()},
    }
    write_atomically(path, json.dumps(values).encode() + b"\n")

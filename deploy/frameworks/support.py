"""The networks of other frameworks that were taken through every step, and those refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segdeploy.models.strict_json import read_json

STEPS = ("read", "export", "calibrate", "build-engine")
_FILE = Path(__file__).with_name("support.json")


def supported() -> list[dict[str, Any]]:
    """Return a row for each architecture, which `benchmarks/framework_support.py` wrote.

    A row has the framework, its `version`, the `architecture`, and the result of each step of
    `STEPS`; or the reason why it is `refused`.
    """
    rows: list[dict[str, Any]] = read_json(_FILE)
    return rows

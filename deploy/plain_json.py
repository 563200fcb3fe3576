"""Conversion of values to JSON types: JSON has no infinity, NaN, tuples or paths."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """Return `value` with None for infinity and NaN, and a string for any other non-JSON type."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)

"""Values that JSON can hold: it knows neither infinity nor tuples nor paths."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """The value with null for what is infinite or undefined, and text for what JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)

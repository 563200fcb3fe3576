"""Reading JSON that somebody else wrote: bounded in size and depth, finite, and whole text.

Python's reader takes more than JSON allows (NaN, infinity, half a surrogate pair), and more than a
program can go on with (an integer of 4,000 digits is no float; 100,000 brackets end its stack).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segdeploy.models.errors import ModelInputError
from segdeploy.models.files import check_regular

MAX_BYTES = 64 << 20
_LARGEST_INTEGER = 2**63


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        ModelInputError: if the file is missing, no regular file, larger than `max_bytes`, or not
            such JSON as `parse_json` takes.
    """
    size = check_regular(path).stat().st_size
    if size > max_bytes:
        raise ModelInputError(
            f"{path}: has {size:,} bytes, and a file of this kind at most {max_bytes:,}; is it "
            "another file?"
        )
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text, UTF-8 where it is bytes, that stood in `source`.

    Raises:
        ModelInputError: if the text is not JSON, nested too deeply, or holds a number that is not
            finite or beyond 64 bits, or a surrogate without its other half.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            decoded, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
        )
        if "\\u" in decoded:  # only an escape can stand for half a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ModelInputError(
            f"{source}: holds half of a surrogate pair, which is no character"
        ) from error
    except RecursionError as error:
        raise ModelInputError(f"{source}: is not JSON (nested too deeply)") from error
    except ValueError as error:
        raise ModelInputError(f"{source}: is not JSON ({error})") from error
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"an integer of {len(text)} characters is beyond 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond what a float holds")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")

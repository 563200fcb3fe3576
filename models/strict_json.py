"""Strict reading of untrusted JSON: bounded size and depth, finite numbers, valid Unicode.

Python's parser accepts more than JSON allows (NaN, infinity, lone surrogates), and more than a
program can handle: an integer of 4,000 digits fits no float, and 100,000 brackets exhaust the
stack.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segdeploy.models.errors import InputError
from segdeploy.models.files import check_regular

MAX_BYTES = 64 << 20
_LARGEST_INTEGER = 2**63


def read_json(
    path: Path, *, expected: str = "JSON", mend: str = "", max_bytes: int = MAX_BYTES
) -> Any:
    """Return the value in a JSON file; `expected` and `mend` go into the error message.

    Raises:
        InputError: if the file is missing, not a regular file or larger than `max_bytes`, or if
            `parse_json` refuses the text.
    """
    size = check_regular(path).stat().st_size
    if size > max_bytes:
        reason = f"the file has {size:,} bytes, but the limit is {max_bytes:,}"
        raise InputError(_refusal(f"{path}:", expected, reason, mend))
    return parse_json(path.read_bytes(), f"{path}:", expected=expected, mend=mend)


def parse_json(text: str | bytes, subject: str, *, expected: str = "JSON", mend: str = "") -> Any:
    """Return the value of a JSON text; bytes are decoded as UTF-8.

    An error message begins with `subject`, says that it is not `expected` and why, and ends with
    `mend`.

    Raises:
        InputError: if the text is not JSON or nested too deeply, or holds a number that is not
            finite or beyond 64 bits, a lone surrogate, or one name twice in an object.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            decoded,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_no_constant,
            object_pairs_hook=_without_duplicates,
        )
        if "\\u" in decoded:  # only an escape can hold a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        reason = "a lone surrogate is not a character"
        raise InputError(_refusal(subject, expected, reason, mend)) from error
    except RecursionError as error:
        raise InputError(_refusal(subject, expected, "nested too deeply", mend)) from error
    except ValueError as error:
        raise InputError(_refusal(subject, expected, str(error), mend)) from error
    return value


def _refusal(subject: str, expected: str, reason: str, mend: str) -> str:
    return f"{subject} is not {expected} ({reason})" + (f"; {mend}" if mend else "")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; of two values for one name, no reader can know which one was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {json.dumps(twice)} is given twice")
    return found


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
    raise ValueError(f"{text} is not a JSON number")

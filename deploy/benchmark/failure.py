"""Why a measurement has no result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no latency, evaluation or layer comparison.

    `is_incompatible` marks a valid engine that was built for another machine.
    """

    reason: str
    is_incompatible: bool = False

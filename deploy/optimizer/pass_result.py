"""What a pass says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """A line for every rewrite, and for every place that looked alike but was left alone, why."""

    rewrites: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

"""The result of one rewrite pass."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PassResult:
    """One line for each rewrite, and one line with the reason for each skipped candidate."""

    rewrites: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

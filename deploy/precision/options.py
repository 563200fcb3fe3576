"""Options of a calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from segdeploy.contract import Precision
from segdeploy.errors import InputError

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "bf16")


class Scored(Protocol):
    """What a graph is scored by: its mIoU drop, and agreement with FP32, in 0..1."""

    @property
    def miou_drop(self) -> float:
        """The drop of mIoU."""

    @property
    def agreement(self) -> float:
        """The share of equal labels."""


@dataclass(frozen=True)
class Budget:
    """The largest loss that a graph may have, in 0..1: of mIoU, or of labels that equal FP32's."""

    limit: float
    of_labels: bool

    @property
    def option(self) -> str:
        """The option that states it."""
        return "--min-agreement" if self.of_labels else "--max-miou-drop"

    def loss(self, scored: Scored) -> float:
        """Return what a graph loses of it."""
        return 1 - scored.agreement if self.of_labels else scored.miou_drop

    def told(self, loss: float) -> str:
        """Return a loss in words."""
        unit = "% of the labels" if self.of_labels else "points of mIoU"
        return f"{100 * loss:.3g} {unit}"


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `calibrate`; `max_miou_drop` is in percentage points, `min_agreement` a share."""

    precision: Precision = "int8"
    method: str = "auto"
    scheme: str = "tensorrt"
    exclude: tuple[str, ...] = ()
    max_miou_drop: float | None = None
    fp16_io: bool = False
    sensitivity: bool = False
    min_agreement: float | None = None

    @property
    def budget(self) -> Budget | None:
        """The loss that the graph may have; None without a budget."""
        if self.min_agreement is not None:
            return Budget(1 - self.min_agreement, of_labels=True)
        return None if self.max_miou_drop is None else Budget(self.max_miou_drop / 100, False)

    @property
    def float_type(self) -> Precision | None:
        """Type of what is not INT8: `fp16` or `bf16`; None for FP32."""
        if self.precision != "int8":
            return self.precision
        return "fp16" if self.scheme == "tensorrt" else None

    @property
    def least_opset(self) -> int:
        """The opset that the typed graph needs: 16-bit scales of Q/DQ since 19, BF16 since 22."""
        if self.float_type == "bf16":
            return 22
        if self.precision == "int8":
            return 20 if self.float_type else 13  # scales for each channel since 13
        return 1

    def check(self) -> None:
        """Check every option and their combinations.

        Raises:
            InputError: for an unknown value, or for options that exclude each other.
        """
        from segdeploy.calibration.quantize import SCHEMES
        from segdeploy.calibration.thresholds import METHODS

        for option, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("method", self.method, ("auto", *METHODS)),
            ("scheme", self.scheme, tuple(SCHEMES)),
        ):
            if value not in known:
                raise InputError(f"--{option} {value}: must be one of {', '.join(known)}")
        drop, is_int8 = self.max_miou_drop, self.precision == "int8"
        if self.scheme == "cpu" and not is_int8:
            raise InputError(f"--scheme cpu: needs --precision int8, not {self.precision}")
        if drop is not None and not 0 <= drop <= 100:
            raise InputError(f"--max-miou-drop {drop}: must be 0 to 100 percentage points")
        least = self.min_agreement
        if least is not None and not 0 <= least <= 1:
            raise InputError(f"--min-agreement {least}: must be a share from 0 to 1")
        if least is not None and drop is not None:
            raise InputError("--max-miou-drop and --min-agreement: give one of the two")
        if not is_int8 and (self.exclude or self.sensitivity or self.method != "auto"):
            raise InputError(
                f"--exclude, --sensitivity and --method are for INT8, not {self.precision}"
            )
        if self.fp16_io and self.scheme == "cpu":
            raise InputError(
                "--fp16-io: --scheme cpu keeps the input and output FP32; leave it out"
            )

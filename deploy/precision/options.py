"""Options of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.contract import Precision
from segdeploy.errors import InputError

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "bf16")


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `calibrate`; `max_miou_drop` is in percentage points."""

    precision: Precision = "int8"
    method: str = "auto"
    scheme: str = "tensorrt"
    exclude: tuple[str, ...] = ()
    max_miou_drop: float | None = None
    fp16_io: bool = False
    sensitivity: bool = False

    @property
    def budget(self) -> float | None:
        """Largest mIoU drop, in 0..1; None without a budget."""
        return None if self.max_miou_drop is None else self.max_miou_drop / 100

    @property
    def float_type(self) -> Precision | None:
        """Type of what is not INT8: `fp16` or `bf16`; None for FP32."""
        if self.precision != "int8":
            return self.precision
        return "fp16" if self.scheme == "tensorrt" else None

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
        if not is_int8 and (self.exclude or self.sensitivity or self.method != "auto"):
            raise InputError(
                f"--exclude, --sensitivity and --method are for INT8, not {self.precision}"
            )
        if self.fp16_io and self.scheme == "cpu":
            raise InputError(
                "--fp16-io: --scheme cpu keeps the input and output FP32; leave it out"
            )

"""The error that this package raises for bad input."""


class CalibrationInputError(ValueError):
    """A graph or data that cannot be calibrated; the message says what, where, how to mend it."""

    exit_code = 2

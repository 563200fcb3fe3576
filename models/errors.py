"""The one error that this package raises for bad input."""


class ModelInputError(ValueError):
    """Something that the user gave cannot be used; the message says what, where and what to do."""

    exit_code = 2

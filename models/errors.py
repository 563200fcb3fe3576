"""The error for bad input, and the first line of any error's message."""


class InputError(ValueError):
    """Unusable input from the user; the message says what is wrong, where, and how to mend it."""

    exit_code = 2


ModelInputError = InputError


_LONGEST = 400  # characters; some libraries list all that they know


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines[0] if lines else type(error).__name__
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."

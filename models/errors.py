"""The error for bad input, and how one quotes another's."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what, where and what to do."""

    exit_code = 2


ModelInputError = InputError


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Errors that the command line turns into one line and an exit code."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what, where and what to do."""

    exit_code = 2


class CheckFailed(Exception):  # noqa: N818 - a verdict, not a mistake
    """A proof failed: dilation, parity or a budget. The message says where and by how much."""

    exit_code = 1


class NotHere(InputError):  # noqa: N818 - nothing is wrong with the file
    """A file that is sound, for another machine: another GPU, another platform."""

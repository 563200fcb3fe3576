"""Errors that the command line turns into one line and an exit code."""

from segdeploy.models.errors import InputError

__all__ = ["CheckFailed", "InputError", "NotHere"]


class CheckFailed(Exception):  # noqa: N818 - a verdict, not a mistake
    """A proof failed: dilation, parity or a budget. The message says where and by how much."""

    exit_code = 1


class NotHere(InputError):  # noqa: N818 - nothing is wrong with the file
    """A file that is sound, for another machine: another GPU, another platform."""

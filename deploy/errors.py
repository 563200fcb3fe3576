"""Errors that the command line turns into one line and an exit code."""

from segdeploy.models.errors import InputError

__all__ = ["CheckFailed", "IncompatibleDevice", "InputError"]


class CheckFailed(Exception):  # noqa: N818 - the result of a check, not a program error
    """A check of dilation, parity or a budget failed. The message says where and by how much."""

    exit_code = 1


class IncompatibleDevice(InputError):  # noqa: N818 - the file itself is valid
    """A valid file that was made for another GPU or another platform."""

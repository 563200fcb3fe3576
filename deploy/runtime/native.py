"""Preprocessing and postprocessing by the C++ library, if installed: the same arrays, faster."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.packages import versions

LIBRARY_VARIABLE = "SEGDEPLOY_LIBRARY"
"""Environment variable with the path of the C++ library; an empty value disables the library.

Without the variable, `libsegdeploy.so.0.1` is searched for.
"""
_DEFAULT = "libsegdeploy.so.0.1"
_LONGEST_SIDE = (1 << 16) - 1


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """Return the C++ library of this package's version, or None if it is not installed.

    Raises:
        InputError: if the environment variable names a library that cannot be used.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named == "":
        return None
    try:
        library = ctypes.CDLL(named or _DEFAULT)
        library.segdeploy_version.restype = ctypes.c_char_p
        version = library.segdeploy_version().decode()
    except (OSError, AttributeError) as error:
        if named:
            raise InputError(f"{named}: is no segdeploy library ({error})") from error
        return None
    wanted = versions("segdeploy")["segdeploy"]
    if version != wanted:
        if named:
            raise InputError(
                f"{named}: is segdeploy {version}, but this package is {wanted}; build the library "
                f"of the same version, or run without it: {LIBRARY_VARIABLE}="
            )
        return None
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    library.segdeploy_error.restype = ctypes.c_char_p
    library.segdeploy_contract_open.restype = pointer
    library.segdeploy_contract_open.argtypes = [ctypes.c_char_p]
    library.segdeploy_contract_close.argtypes = [pointer]
    library.segdeploy_contract_close.restype = None
    library.segdeploy_prepare.argtypes = [pointer, pointer, integer, integer, pointer]
    library.segdeploy_label.argtypes = [pointer, pointer, *[integer] * 4, pointer]


class NativeStages:
    """Preprocessing and postprocessing by the C++ library. Safe to call from several threads.

    Raises:
        InputError: for a contract that the library does not support.
    """

    def __init__(self, library: ctypes.CDLL, contract: Contract):
        self._library, self._contract = library, contract
        self._text = contract.to_json().encode()
        self._handles = threading.local()
        self._handle()

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the network's input for `(H, W, 3) uint8` RGB, equal to that of `preprocess`."""
        image = np.ascontiguousarray(image)
        kind = np.uint8 if self._contract.layout == "NHWC" else np.float32
        made = np.empty((1, *self._contract.image_shape), kind)
        height, width = image.shape[:2]
        self._must(
            self._library.segdeploy_prepare(
                self._handle(), image.ctypes.data, height, width, made.ctypes.data
            )
        )
        return made

    def takes(self, image: NDArray[np.uint8]) -> bool:
        """Return whether the image is within the library's size limit of 65535 pixels a side."""
        return bool(max(image.shape[:2]) <= _LONGEST_SIDE)

    def labels(self, scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return labels `(H, W) uint8` for scores `(C, h, w) float32`."""
        scores = np.ascontiguousarray(scores, np.float32)
        made = np.empty(size, np.uint8)
        _, height, width = scores.shape
        self._must(
            self._library.segdeploy_label(
                self._handle(), scores.ctypes.data, height, width, *size, made.ctypes.data
            )
        )
        return made

    def _handle(self) -> int:
        held = getattr(self._handles, "held", None)
        if held is None:
            held = self._handles.held = _Handle(self._library, self._text)
        return held.value

    def _must(self, failed: int) -> None:
        if failed:
            raise InputError(self._library.segdeploy_error().decode())


class _Handle:
    """The library's handle of a contract, freed with the thread that owns the handle."""

    def __init__(self, library: ctypes.CDLL, text: bytes):
        self._close = library.segdeploy_contract_close
        self.value: int = library.segdeploy_contract_open(text)
        if not self.value:
            raise InputError(library.segdeploy_error().decode())

    def __del__(self) -> None:
        self._close(self.value)


def open_stages(contract: Contract) -> NativeStages | None:
    """Return the library's stages; None without the library or for an unsupported contract."""
    library = native_library()
    if library is None:
        return None
    try:
        return NativeStages(library, contract)
    except InputError:  # a size that only the Python implementation takes
        return None

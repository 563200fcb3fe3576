"""A user's preprocessing function as a black box: an image in, the network's input out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.models.channels import RGB
from segdeploy.models.errors import first_line
from segdeploy.models.images import encoded, image_content

Image = NDArray[Any]
_CALLS = 8  # for one image; a random choice of two shows with 99 %


class Preprocessing:
    """The function `name`, which takes an array `(H, W, C)`, a Pillow image, or a path.

    It returns the network's input `(1, C, h, w)`, `(C, h, w)` or `(h, w, C)`, as a numpy array, a
    tensor, or a mapping with one entry of that kind. The form that it takes is found at the first
    call. `calls` counts the calls.
    """

    def __init__(self, function: Callable[[Any], Any], name: str, channels: tuple[str, ...] = RGB):
        self.name = name
        self.calls = 0
        self._function = function
        self._channels = channels
        self._folder = tempfile.TemporaryDirectory()
        self._given: Callable[[Image], Any] | None = None

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Return the network's input `(C, h, w) float32` for an image `(H, W, C)`.

        Raises:
            InputError: if the function fails, or returns something else.
        """
        if self._given is None:
            self._given = self._form(image)
        return self._planes(self._ask(self._given(image)))

    def try_(self, image: Image) -> NDArray[np.float32] | None:
        """Return the network's input, or None if the function does not take this image."""
        try:
            return self(image)
        except InputError:
            return None

    def check_repeatable(self, image: Image) -> None:
        """Refuse a function that gives several inputs for one image.

        Raises:
            InputError: as described.
        """
        first, *others = (self(image) for _ in range(_CALLS))
        if not all(np.array_equal(first, other) for other in others):
            raise InputError(
                f"{self.name}: gives another input for the same image in a second call; switch its "
                "random augmentation off"
            )

    def _form(self, image: Image) -> Callable[[Image], Any]:
        """Return the form of an image that the function takes."""
        failures = []
        for form in (_array, _pillow, self._file):
            try:
                self._planes(self._ask(form(image)))
            except InputError as error:
                failures.append(str(error))
            else:
                return form
        raise InputError(failures[0])

    def _ask(self, given: Any) -> Any:
        self.calls += 1
        return answer_of(self._function, self.name, given)

    def _planes(self, returned: Any) -> NDArray[np.float32]:
        values = returned
        if hasattr(values, "keys"):
            held = [values[key] for key in values.keys()]  # noqa: SIM118 (transformers' features)
            held = [one for one in held if getattr(one, "ndim", None) in (3, 4)]
            if len(held) != 1:
                raise InputError(
                    f"{self.name}: returns a mapping with {len(held)} images; return one"
                )
            values = held[0]
        array = array_of(values, self.name)
        if array.ndim == 4 and len(array) == 1:
            array = array[0]
        if array.ndim != 3 or array.dtype.kind not in "fiu" or not array.size:
            raise InputError(
                f"{self.name}: returns {type(returned).__name__} of shape {array.shape} and type "
                f"{array.dtype}; the network's input is (1, C, H, W), (C, H, W) or (H, W, C)"
            )
        if array.shape[0] > 4 >= array.shape[2]:
            array = array.transpose(2, 0, 1)
        if not np.isfinite(array).all():
            raise InputError(f"{self.name}: returns NaN or infinity")
        return np.ascontiguousarray(array, np.float32)

    def _file(self, image: Image) -> Path:
        is_color = image.dtype == np.uint8 and image.shape[2] == len(RGB)
        if is_color:  # JPEG would change the values
            content, suffix = encoded(image, "PNG"), ".png"
        else:
            content, suffix = image_content(image, self._channels)
        path = Path(self._folder.name) / f"image{suffix}"
        path.write_bytes(content)
        return path


def _array(image: Image) -> Image:
    """Return a copy, which the function may change."""
    return np.array(image)


def answer_of(function: Callable[[Any], Any], name: str, image: Any) -> Any:
    """Return what a user's function `name` gives for an image.

    Raises:
        InputError: if the function fails.
    """
    try:
        return function(image)
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        raise InputError(
            f"{name}: failed on an image ({type(error).__name__}: {first_line(error)})"
        ) from error


def array_of(values: Any, name: str) -> NDArray[Any]:
    """Return a numpy array, a tensor or nested lists, which the function `name` gave, as an array.

    Raises:
        InputError: for lists of different lengths.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(
            f"{name}: returns lists of different lengths, which are no array"
        ) from error


def _pillow(image: Image) -> Any:
    from PIL import Image as PillowImage

    try:
        return PillowImage.fromarray((image if image.shape[2] > 1 else image[:, :, 0]).copy())
    except (TypeError, ValueError) as error:
        raise InputError(f"Pillow holds no image of {image.shape} {image.dtype}") from error

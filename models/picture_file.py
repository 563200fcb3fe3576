"""The one rule by which picture files are read, in Python; docs/pictures.md states the rule.

PNG and JPEG files of 8 bits a channel. The EXIF orientation is applied, to masks as to pictures.
Color profiles, gamma and alpha are ignored, palettes are resolved, gray is repeated. A mask holds
its ids as they stand in the file: gray levels unscaled, or the indices of a palette. More bits,
CMYK and damaged files are refused. The C++ programs read by the same rule.

This file needs only Pillow and NumPy: `segdeploy serve-repo` writes it into the client of a model.
"""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # a decompression bomb, not a camera frame
_PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


class PictureError(ValueError):
    """A file that is no picture by the rule; the message says what is wrong and how to mend it."""


def read_picture(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a picture as `(H, W, 3) uint8` RGB.

    Raises:
        PictureError: for a file that the rule refuses.
    """
    return rgb_of(_decoded(path)[0], str(path))


def read_ids(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a mask as `(H, W) uint8`: the ids as they stand in the file.

    Raises:
        PictureError: for a file that the rule refuses, or one with several values a pixel.
    """
    image, bits = _decoded(path)
    if image.mode not in ("1", "L", "LA", "P"):
        raise PictureError(f"{path}: is a color image; a mask holds one class id a pixel, as gray")
    upright = image if image.mode == "P" else image.convert("L")
    ids = np.array(_turned(upright, _orientation_of(image)))
    # Pillow scales gray of fewer bits to 0..255.
    return ids if image.mode == "P" else ids // (255 // (2**bits - 1))


def rgb_of(image: Image.Image, source: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`(H, W, 3) uint8` RGB of a Pillow image, which stays as it is.

    Raises:
        PictureError: for a mode that 8-bit RGB would lose something of.
    """
    if image.mode == "CMYK":
        raise PictureError(f"{source}: is a CMYK image; convert it to RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise PictureError(_too_deep(source, 32 if image.mode in ("I", "F") else 16))
    if image.mode not in _PICTURE_MODES:
        raise PictureError(f"{source}: has the color mode {image.mode}; convert it to RGB")
    orientation = _orientation_of(image)
    plain = image
    if plain.mode == "LA":
        plain = plain.getchannel(0)
    if plain.mode != "RGB":
        plain = plain.copy()
        plain.info.pop("transparency", None)  # Pillow would warn of it, or make alpha of it
        plain = plain.convert("RGB")
    return np.array(_turned(plain, orientation))


def _orientation_of(image: Image.Image) -> int:
    """The orientation in the EXIF block, 1 to 8; 1 where there is none that can be read."""
    block = image.info.get("exif")
    if not block and {"xmp", "XML:com.adobe.xmp"} & set(image.info):
        return 1  # where Pillow would look for one
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if block:
                exif.load(block)
            else:
                exif = image.getexif()  # of an image in memory
            value = exif.get(_ORIENTATION)
    except Exception:  # the many ways in which Pillow fails on a damaged block
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _decoded(path: Path) -> tuple[Image.Image, int]:
    """The decoded image, and its bits a channel (or a palette index)."""
    with path.open("rb") as file:
        head = file.read(8)
    is_png = head == b"\x89PNG\r\n\x1a\n"
    if not is_png and head[:2] != b"\xff\xd8":
        raise PictureError(f"{path}: is neither a PNG nor a JPEG image; convert or remove it")
    kind = "PNG" if is_png else "JPEG"
    named = _SUFFIXES.get(path.suffix.lower(), kind)
    if named != kind:
        raise PictureError(
            f"{path}: holds {kind} data although its name says {named}; rename or convert it"
        )
    bits, source = _png(path) if is_png else (_jpeg_bits(path), path)
    if bits > 8:
        raise PictureError(_too_deep(str(path), bits))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source, formats=("PNG",) if is_png else ("JPEG",)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise PictureError(
                        f"{path}: {width}x{height} pixels are over the limit of {MAX_PIXELS}; "
                        "scale it"
                    )
                image.load()
                decoded = image.copy()
                decoded.info = dict(image.info)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: too many pixels ({error})") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        told = "its header" if isinstance(error, UnidentifiedImageError) else error
        raise PictureError(
            f"{path}: the image is damaged ({told}); replace or remove it"
        ) from error
    return decoded, bits


def _png(path: Path) -> tuple[int, io.BytesIO]:
    """Bits a channel, and the file with the chunks that the rule reads.

    Every chunk's checksum is checked, which Pillow omits. What animates, colors or describes a
    picture is left out, where Pillow would stumble over an odd one.
    """
    bits, left = 0, path.stat().st_size
    kept = io.BytesIO()
    with path.open("rb") as file:
        kept.write(file.read(8))
        kind = b""
        while kind != b"IEND":
            head = file.read(8)
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            content = file.read(size) if size < left else b""
            checksum = file.read(4)
            if len(checksum) < 4 or len(content) < size:
                raise PictureError(_damaged(path, "it ends before its last chunk"))
            if zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
                raise PictureError(_damaged(path, f"the checksum of {kind!r} is wrong"))
            if kind == b"IHDR" and size == 13:
                bits = content[8]
            if kind in (b"tRNS", b"eXIf") or kind[:1].isupper():  # the others are ancillary
                kept.write(head + content + checksum)
    kept.seek(0)
    return bits, kept


def _jpeg_bits(path: Path) -> int:
    """Bits a channel by the header of the frame; 8 where none is found, which decoding will say."""
    with path.open("rb") as file:
        file.seek(2)
        while True:
            marker = file.read(4)
            if len(marker) < 4 or marker[0] != 0xFF:
                return 8
            if marker[1] == 0xFF:  # a fill byte
                file.seek(-3, 1)
                continue
            if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                depth = file.read(1)
                return depth[0] if depth else 8
            if marker[1] == 0xDA:
                return 8
            file.seek(int.from_bytes(marker[2:], "big") - 2, 1)


def _damaged(path: Path, told: str) -> str:
    return f"{path}: the image is damaged ({told}); replace or remove it"


def _too_deep(source: str, bits: int) -> str:
    return f"{source}: has {bits} bits a channel, and 8 are read; convert it to 8 bits"

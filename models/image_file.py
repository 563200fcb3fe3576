"""Python implementation of the image-reading rule in docs/reference/images.md.

PNG and JPEG files of at most 8 bits a channel are read as RGB. The EXIF orientation is applied to
images and masks. Color profiles, gamma and alpha are ignored. Palettes are resolved to colors, and
gray is repeated in all three channels. A mask keeps the ids that are stored in the file: unscaled
gray levels, or palette indices. More bits, CMYK and damaged files are refused. The C++ programs
follow the same rule. Gray alone is also read as levels of 8 or 16 bits.

This file needs only Pillow and NumPy: `segdeploy serve-repo` copies it into the client of a model.
"""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # a larger image is taken for a decompression bomb
_COLOR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_ORIENTATION = 0x0112
_TIFF_SIZES = {1: 1, 3: 2, 4: 4}  # bytes of a BYTE, SHORT and LONG
_EXIF = b"Exif\0\0"
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_PIECE = 1 << 20  # bytes
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


class ImageFileError(ValueError):
    """An image file that the rule refuses; the message says what is wrong and how to mend it."""


def decode_image(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an image as `(H, W, 3) uint8` RGB.

    Raises:
        ImageFileError: for a file that the rule refuses.
    """
    return rgb_of(_decoded(path)[0], str(path))


def decode_levels(path: Path, bits: int) -> np.ndarray[Any, Any]:
    """Read a gray image of 8 or 16 `bits` a pixel as `(H, W) uint8` or `(H, W) uint16`.

    Gray of fewer bits is scaled to 0..255, as in `decode_image`.

    Raises:
        ImageFileError: for a file that the rule refuses, a color image, or another depth.
    """
    image, stored = _decoded(path, most_bits=bits)
    if (stored > 8) != (bits > 8):
        raise ImageFileError(f"{path}: has {stored} bits a channel, not {bits}")
    if image.mode not in ("1", "L", "LA", "I;16"):
        raise ImageFileError(f"{path}: is a color image, not a gray one")
    plain = image if image.mode == "I;16" else image.convert("L")
    return np.array(_turned(plain, _orientation_of(image)))


def read_ids(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a mask as `(H, W) uint8`, with the ids that are stored in the file.

    Raises:
        ImageFileError: for a file that the rule refuses, or a color image.
    """
    image, bits = _decoded(path)
    if image.mode not in ("1", "L", "LA", "P"):
        raise ImageFileError(
            f"{path}: is a color image; a mask holds one class id a pixel, as gray"
        )
    upright = image if image.mode == "P" else image.convert("L")
    ids = np.array(_turned(upright, _orientation_of(image)))
    # Pillow scales gray of less than 8 bits to 0..255, which is undone here.
    return ids if image.mode == "P" else ids // (255 // (2**bits - 1))


def rgb_of(image: Image.Image, source: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a Pillow image as `(H, W, 3) uint8` RGB, without changing the image.

    Raises:
        ImageFileError: for a color mode that 8-bit RGB cannot represent.
    """
    if image.mode == "CMYK":
        raise ImageFileError(f"{source}: is a CMYK image; convert it to RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ImageFileError(_too_deep(source, 32 if image.mode in ("I", "F") else 16))
    if image.mode not in _COLOR_MODES:
        raise ImageFileError(f"{source}: has the color mode {image.mode}; convert it to RGB")
    orientation = _orientation_of(image)
    plain = image
    if plain.mode == "LA":
        plain = plain.getchannel(0)
    if plain.mode != "RGB":
        plain = plain.copy()
        plain.info.pop("transparency", None)  # Pillow would warn, or convert it to alpha
        plain = plain.convert("RGB")
    return np.array(_turned(plain, orientation))


def _orientation_of(image: Image.Image) -> int:
    """Return the orientation of an image in memory, from its EXIF block if it has one."""
    block = image.info.get("exif")
    if block:
        return _orientation(bytes(block).removeprefix(_EXIF))
    if {"xmp", "XML:com.adobe.xmp"} & set(image.info):
        return 1  # getexif() would read the orientation from XMP
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block (TIFF 6.0, header and first directory), 1 to 8.

    An orientation that cannot be read counts as 1. The C++ programs follow the same steps.
    """
    orders = {b"II": "little", b"MM": "big"}
    if len(exif) < 8 or exif[:2] not in orders:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], orders[exif[:2]])  # type: ignore[arg-type]

    folder = number(4, 4)
    if number(2, 2) != 42 or folder > len(exif) - 2:
        return 1
    found = 1
    for index in range(number(folder, 2)):
        at = folder + 2 + 12 * index
        if at + 12 > len(exif):
            break
        size, count = _TIFF_SIZES.get(number(at + 2, 2), 0), number(at + 4, 4)
        if number(at, 2) != _ORIENTATION or size == 0 or count == 0:
            continue
        # The first value. Values of more than 4 bytes in total are stored at an offset.
        place = at + 8 if count * size <= 4 else number(at + 8, 4)
        if place + count * size <= len(exif):
            found = number(place, size)
    return found if 1 <= found <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


@dataclass
class _Header:
    """Header of an image file: bits per channel, width, height, EXIF block."""

    bits: int = 8
    width: int = 0
    height: int = 0
    exif: bytes = b""


def _decoded(path: Path, most_bits: int = 8) -> tuple[Image.Image, int]:
    """Return the decoded image, with only its EXIF block, and its bits per channel or index.

    Only gray PNG files are read with more than 8 bits: Pillow cuts deeper colors to 8 bits.
    """
    if not path.is_file():  # opening a FIFO would wait for a writer
        raise ImageFileError(f"{path}: is not a regular file")
    with path.open("rb") as file:
        head = file.read(8)
    is_png = head == b"\x89PNG\r\n\x1a\n"
    if not is_png and head[:2] != b"\xff\xd8":
        raise ImageFileError(f"{path}: is neither a PNG nor a JPEG image; convert or remove it")
    kind = "PNG" if is_png else "JPEG"
    named = _SUFFIXES.get(path.suffix.lower(), kind)
    if named != kind:
        raise ImageFileError(
            f"{path}: holds {kind} data although its name says {named}; rename or convert it"
        )
    source: Path | io.BytesIO = path
    header = _Header()
    if is_png:
        source = _png(path, header, most_bits)
    else:
        _jpeg(path, header)
    if header.bits > most_bits or (not is_png and header.bits != 8):
        raise ImageFileError(_too_deep(str(path), header.bits))
    if header.width * header.height > MAX_PIXELS:
        raise ImageFileError(
            f"{path}: {header.width}x{header.height} pixels are over the limit of {MAX_PIXELS}; "
            "scale it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source, formats=(kind,)) as image:
                image.load()
                decoded = image.copy()
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path}: too many pixels ({error})") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        message = "its header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageFileError(_damaged(path, message)) from error
    decoded.info = {"exif": _EXIF + header.exif}
    return decoded, header.bits


def _png(path: Path, header: _Header, most_bits: int) -> io.BytesIO:
    """Read the header, and return the file with its critical chunks only (ISO/IEC 15948).

    Checks the checksums, the order of the chunks and the amount of data, which Pillow does not.
    Chunks for animation, color and text are left out, because Pillow fails on unusual ones.
    """
    left = path.stat().st_size
    kept = io.BytesIO()
    kinds: list[bytes] = []
    data = zlib.decompressobj()
    color = missing = 0
    with path.open("rb") as file:
        kept.write(file.read(8))
        while kinds[-1:] != [b"IEND"]:
            head = file.read(8)
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            content = file.read(size) if size < left else b""
            checksum = file.read(4)
            if len(checksum) < 4 or len(content) < size:
                raise ImageFileError(_damaged(path, "it ends before its last chunk"))
            if zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
                raise ImageFileError(_damaged(path, f"the checksum of {kind!r} is wrong"))
            is_first = not kinds
            if is_first != (kind == b"IHDR") or not _is_sound(kind, content, kinds, color):
                raise ImageFileError(_damaged(path, f"the chunk {kind!r} is wrong or misplaced"))
            if is_first:
                header.width, header.height = (
                    int.from_bytes(content[at : at + 4], "big") for at in (0, 4)
                )
                header.bits, color = content[8], content[9]
                if color != 0:
                    most_bits = 8
                if header.bits > most_bits or header.width * header.height > MAX_PIXELS:
                    return kept  # the caller refuses the image
                missing = _png_bytes(header, color, is_interlaced=bool(content[12]))
            elif kind == b"IDAT":
                missing -= _inflated(path, data, content, missing)
            elif kind == b"eXIf" and not header.exif and content[:2] in (b"II", b"MM"):
                header.exif = content
            kinds.append(kind)
            if kind[:1].isupper() and (kind != b"PLTE" or color == 3):
                kept.write(head + content + checksum)
    if missing > 0 or not data.eof:
        raise ImageFileError(_damaged(path, "it has too little data"))
    kept.seek(0)
    return kept


def _is_sound(kind: bytes, content: bytes, before: list[bytes], color: int) -> bool:
    """Return whether a chunk may follow the chunks `before` and has valid content."""
    if kind == b"IHDR":
        if len(content) != 13 or not any(content[:4]) or not any(content[4:8]):
            return False
        allowed = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
        return content[8] in allowed.get(content[9], ()) and content[10:12] == b"\0\0" and (
            content[12] < 2
        )  # fmt: skip
    if kind == b"PLTE":  # only a suggestion for other color types
        is_early = b"PLTE" not in before and b"IDAT" not in before
        return color != 3 or (is_early and len(content) in range(3, 769, 3))
    if kind == b"IDAT":
        has_colors = color != 3 or b"PLTE" in before
        return has_colors and (before[-1] == b"IDAT" or b"IDAT" not in before)
    if kind == b"IEND":
        return b"IDAT" in before
    return kind[:1].islower()


def _png_bytes(header: _Header, color: int, *, is_interlaced: bool) -> int:
    """Return the size of the rows in bytes, filter bytes included, over all interlace passes."""
    bits = header.bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    passes = ((0, 0, 1, 1),) if not is_interlaced else _ADAM7
    total = 0
    for left, top, across, down in passes:
        width = -(-max(0, header.width - left) // across)
        height = -(-max(0, header.height - top) // down)
        total += height * (1 + (width * bits + 7) // 8) if width else 0
    return total


def _inflated(path: Path, data: zlib._Decompress, content: bytes, missing: int) -> int:
    """Return the decompressed size of a data chunk in bytes, at most slightly above `missing`."""
    found = 0
    try:
        while content and not data.eof and found <= missing:
            found += len(data.decompress(content, _PIECE))
            content = data.unconsumed_tail
    except zlib.error as error:
        raise ImageFileError(_damaged(path, str(error))) from error
    return found


def _jpeg(path: Path, header: _Header) -> None:
    """Read the frame header and the EXIF blocks; the decoder reports a file that is not JPEG."""
    with path.open("rb") as file:
        file.seek(2)
        while True:
            marker = file.read(4)
            if len(marker) < 4 or marker[:2] == b"\xff\xda":
                return
            if marker[0] != 0xFF or marker[1] == 0:
                raise ImageFileError(_damaged(path, "extraneous bytes before a marker"))
            if marker[1] == 0xFF:  # a fill byte
                file.seek(-3, 1)
                continue
            if 0xD0 <= marker[1] <= 0xD7 or marker[1] == 0x01:  # markers without a length
                file.seek(-2, 1)
                continue
            size = int.from_bytes(marker[2:], "big") - 2
            content = file.read(max(size, 0))
            if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                if len(content) >= 5:
                    header.bits = content[0]
                    header.height = int.from_bytes(content[1:3], "big")
                    header.width = int.from_bytes(content[3:5], "big")
            elif marker[1] == 0xE1 and content[:6] == _EXIF:
                header.exif += content[6:]


def _damaged(path: Path, message: str) -> str:
    return f"{path}: the image is damaged ({message}); replace or remove it"


def _too_deep(source: str, bits: int) -> str:
    return f"{source}: has {bits} bits a channel, and 8 are read; convert it to 8 bits"

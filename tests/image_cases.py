"""Image files of every kind, and what the one rule (docs/reference/images.md) says of each.

The expected pixels are made with NumPy from the values that are written into the file, and never by
the reader that is tested.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 6, 9
# What an upright image looks like in a file of each EXIF orientation (TIFF 6.0, tag 274).
_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}
TOO_DEEP = "bits a channel, and 8 are read; convert it to 8 bits"


@dataclass(frozen=True)
class ImageCase:
    """A file, and its upright pixels `(H, W, 3) uint8`, or words of the refusal."""

    path: Path
    pixels: NDArray[np.uint8] | None = None
    refused: str = ""


def png(
    stored: NDArray[Any],
    *,
    bits: int = 8,
    color: int = 2,
    chunks: tuple[tuple[bytes, bytes], ...] = (),
    behind: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A PNG file, chunk by chunk (ISO/IEC 15948): `stored` is `(H, W)` or `(H, W, channels)`."""
    height, width = stored.shape[:2]
    rows = stored.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    elif bits == 8:
        packed = rows.astype(np.uint8)
    else:
        places = (rows[..., None].astype(np.uint8) >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)
    lines = np.hstack([np.zeros((height, 1), np.uint8), packed])
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines.tobytes())), *behind]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in (*parts, (b"IEND", b"")))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def exif(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """The TIFF block of EXIF with nothing but an orientation (SHORT by default)."""
    value = (
        struct.pack(f"{order}HH", orientation, 0)
        if kind == 3
        else struct.pack(f"{order}I", orientation)
    )
    entry = struct.pack(f"{order}HHI", 0x0112, kind, count) + value
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry + bytes(4)


def jpeg(stored: NDArray[np.uint8], block: bytes | None = None, **options: Any) -> bytes:
    """A JPEG file of an array, with an EXIF block."""
    file = io.BytesIO()
    tagged = {} if block is None else {"exif": b"Exif\0\0" + block}
    Image.fromarray(stored).save(file, "JPEG", quality=95, **tagged, **options)
    return file.getvalue()


def write_image_cases(folder: Path) -> list[ImageCase]:
    """Write every kind of file into a folder."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    smooth = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    gray = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    alpha = rng.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    deep = rng.integers(0, 1 << 16, (HEIGHT, WIDTH, 3))
    files: list[ImageCase] = []

    def add(name: str, content: bytes, expected: NDArray[np.uint8] | str) -> None:
        path = folder / name
        path.write_bytes(content)
        if isinstance(expected, str):
            files.append(ImageCase(path, refused=expected))
            return
        repeated = expected if expected.ndim == 3 else np.stack([expected] * 3, 2)
        files.append(ImageCase(path, np.ascontiguousarray(repeated)))

    add("color.png", png(color), color)
    add("gray.png", png(gray, color=0), gray)
    add("alpha.png", png(np.dstack([color, alpha]), color=6), color)
    add("gray_alpha.png", png(np.dstack([gray[..., None], alpha]), color=4), gray)
    for bits in (1, 2, 4):
        levels = gray >> (8 - bits)
        add(f"gray_{bits}.png", png(levels, bits=bits, color=0), levels * (255 // (2**bits - 1)))
    for bits in (1, 2, 4, 8):
        indices = gray >> (8 - min(bits, 4))
        palette = rng.integers(0, 256, (2 ** min(bits, 4), 3), dtype=np.uint8)
        entries = (b"PLTE", palette.tobytes())
        content = png(indices, bits=bits, color=3, chunks=(entries,))
        add(f"palette_{bits}.png", content, palette[indices])
        clear = png(indices, bits=bits, color=3, chunks=(entries, (b"tRNS", b"\x00\x80")))
        add(f"palette_{bits}_clear.png", clear, palette[indices])
    key = struct.pack(">HHH", *map(int, color[2, 3]))
    add("color_key.png", png(color, chunks=((b"tRNS", key),)), color)
    add("gray_key.png", png(gray, color=0, chunks=((b"tRNS", struct.pack(">H", 7)),)), gray)
    for gamma in (45455, 100000, 22000):
        add(f"gamma_{gamma}.png", png(color, chunks=((b"gAMA", struct.pack(">I", gamma)),)), color)
    add("gray_gamma.png", png(gray, color=0, chunks=((b"gAMA", struct.pack(">I", 10**5)),)), gray)
    add("srgb.png", png(color, chunks=((b"sRGB", b"\x00"),)), color)
    shade = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    add("primaries.png", png(color, chunks=((b"cHRM", shade),)), color)
    behind = (b"bKGD", struct.pack(">HHH", 9, 9, 9))
    add("background.png", png(np.dstack([color, alpha]), color=6, chunks=(behind,)), color)
    add("text.png", png(color, chunks=((b"tEXt", b"Orientation\x006"),)), color)
    frames = (b"acTL", struct.pack(">II", 2, 0))
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    add("animated.png", png(color, chunks=(frames, (b"fcTL", control))), color)
    add("half_animated.png", png(color, chunks=((b"acTL", b"\x00\x00"),)), color)
    add("private.png", png(color, chunks=((b"prVt", b"\x00" * 99),)), color)
    add("profile.png", png(color, chunks=((b"iCCP", b"name\x00\x00not compressed"),)), color)
    add("depth.png", png(color, chunks=((b"sBIT", b"\x05\x06\x05"),)), color)

    for turn, stored in _STORED.items():
        held = np.ascontiguousarray(stored(color))
        for order, mark in (("<", "II"), (">", "MM")):
            block = exif(turn, order=order)
            add(f"turn_{turn}_{mark}.png", png(held, chunks=((b"eXIf", block),)), color)
        add(f"turn_{turn}_behind.png", png(held, behind=((b"eXIf", exif(turn)),)), color)
        grays = np.ascontiguousarray(stored(gray))
        add(f"turn_{turn}_gray.png", png(grays, color=0, chunks=((b"eXIf", exif(turn)),)), gray)
        stored_smooth = np.ascontiguousarray(stored(smooth))
        plain = np.asarray(Image.open(io.BytesIO(jpeg(stored_smooth))))
        upright = _upright(plain, turn)
        add(f"turn_{turn}.jpg", jpeg(stored_smooth, exif(turn)), upright)
        add(f"turn_{turn}_long.jpg", jpeg(stored_smooth, exif(turn, kind=4, order=">")), upright)
    plain = np.asarray(Image.open(io.BytesIO(jpeg(smooth))))
    add("progressive.jpg", jpeg(smooth, progressive=True), np.asarray(
        Image.open(io.BytesIO(jpeg(smooth, progressive=True)))))  # fmt: skip
    grays = np.asarray(Image.open(io.BytesIO(jpeg(gray))))
    add("gray.jpg", jpeg(gray), grays)
    for name, block in {
        "empty": b"",
        "cut": exif(6)[:11],
        "cut_entry": exif(6)[:15],
        "no_tiff": b"XX" + exif(6)[2:],
        "other_magic": b"II\x2b\x00" + exif(6)[4:],
        "far": exif(6)[:4] + struct.pack("<I", 2**31) + exif(6)[8:],
        "at_the_end": exif(6)[:4] + struct.pack("<I", len(exif(6)) - 1) + exif(6)[8:],
        "zero": exif(0),
        "nine": exif(9),
        "huge": exif(65535),
        "as_text": exif(6, kind=2),
    }.items():
        add(f"exif_{name}.jpg", jpeg(smooth, block), plain)
        if name != "empty":
            add(f"exif_{name}.png", png(color, chunks=((b"eXIf", block),)), color)
    add("exif_two_values.jpg", jpeg(smooth, exif(6, count=2)), _upright(plain, 6))
    add("exif_values_nowhere.jpg", jpeg(smooth, exif(6, count=3)), plain)
    many = exif(6)[:8] + struct.pack("<H", 999) + exif(6)[10:]
    add("exif_many.jpg", jpeg(smooth, many), _upright(plain, 6))

    for name, stored, kind in (("color", deep, 2), ("gray", deep[..., 0], 0),
                               ("alpha", np.dstack([deep, deep[..., :1]]), 6),
                               ("gray_alpha", deep[..., :2], 4)):  # fmt: skip
        add(f"deep_{name}.png", png(stored, bits=16, color=kind), f"has 16 {TOO_DEEP}")
    twelve = bytearray(jpeg(smooth))
    at = twelve.index(b"\xff\xc0")
    twelve[at + 4] = 12
    add("deep.jpg", bytes(twelve), f"has 12 {TOO_DEEP}")
    file = io.BytesIO()
    Image.fromarray(smooth).convert("CMYK").save(file, "JPEG")
    add("cmyk.jpg", file.getvalue(), "is a CMYK image; convert it to RGB")
    add("cut.png", png(color)[:-30], "the image is damaged (")
    add("no_end.png", png(color)[:-12], "the image is damaged (")
    add("cut.jpg", jpeg(color)[: len(jpeg(color)) // 2], "the image is damaged (")
    flipped = bytearray(png(color))
    flipped[flipped.index(b"IDAT") + 12] ^= 0x10
    add("flipped.png", bytes(flipped), "the image is damaged (")
    other = bytearray(png(color, chunks=((b"tEXt", b"a\x00b"),)))
    other[other.index(b"tEXt") + 4] ^= 1
    add("flipped_text.png", bytes(other), "the image is damaged (")
    add("header.jpg", b"\xff\xd8\xff\xe0 no image", "the image is damaged (")
    for suffix, kind in (("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("webp", "WEBP")):
        file = io.BytesIO()
        Image.fromarray(color).save(file, kind)
        add(f"other.{suffix}", file.getvalue(), "is neither a PNG nor a JPEG image")
    add("words.png", b"hello", "is neither a PNG nor a JPEG image")
    add("none.png", b"", "is neither a PNG nor a JPEG image")
    add("named.jpg", png(color), "holds PNG data although its name says JPEG; rename or convert")
    add("named.png", jpeg(smooth), "holds JPEG data although its name says PNG; rename or convert")
    add("no_suffix", png(color), color)
    add("capital.PNG", png(color), color)
    bomb = png(np.zeros((1, 1), np.uint8), color=0)
    big = struct.pack(">IIBBBBB", 20_000, 5_001, 8, 0, 0, 0, 0)
    bomb = bomb[:8] + _chunk(b"IHDR", big) + bomb[33:]
    add("bomb.png", bomb, "20000x5001 pixels are over the limit of 100000000; scale it")
    return files


def _upright(stored: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """The inverse of `_STORED`: each is its own, but for the two quarter turns."""
    return _STORED[{6: 8, 8: 6}.get(turn, turn)](stored)

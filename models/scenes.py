"""Generated road scenes, a data set for a first run without a download.

Every frame is drawn from far to near, so that near objects hide far objects: sky, buildings, trees,
road in perspective, pavements, cars, people and poles. Sunlight, shadow, haze and sensor noise
follow. The hood of the camera's own car is ignored, as in real recordings. A frame depends only on
`(seed, split, index)`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from segdeploy.models.channels import RGB
from segdeploy.models.dataset import write_dataset

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
PALETTE = (
    (128, 160, 208),
    (128, 0, 0),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (64, 0, 128),
    (220, 100, 40),
    (192, 192, 128),
)
IGNORE_INDEX = 255
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE = range(len(CLASSES))

# Overlapping classes for multilabel networks, each with the classes above that are of it.
_PLANES = {
    "ground": (ROAD, PAVEMENT),
    "object": (TREE, CAR, PERSON, POLE),
    "vehicle": (CAR,),
    "person": (PERSON,),
}
PLANES = tuple(_PLANES)
PLANE_PALETTE = ((128, 64, 128), (128, 128, 0), (64, 0, 128), (220, 100, 40))

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def generate(
    split: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    channels: Sequence[str] = RGB,
    dtype: str = "uint8",
    *,
    multilabel: bool = False,
) -> Iterator[tuple[str, NDArray[Any], NDArray[np.uint8]]]:
    """Yield `count` frames as `(name, image (H, W, C) of dtype, mask (H, W) uint8)`.

    With `multilabel` the masks are bit planes of the classes `PLANES`.
    """
    planes = np.full(256, IGNORE_INDEX, np.uint8)
    for label in range(len(CLASSES)):
        planes[label] = sum(1 << at for at, held in enumerate(_PLANES.values()) if label in held)
    for index in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
        image, mask = draw_scene(rng, size)
        labels = planes[mask] if multilabel else mask
        yield f"{split}_{index:04d}", recorded(image, channels, dtype), labels


def write_scenes(
    folder: Path,
    counts: Mapping[str, int],
    size: tuple[int, int],
    seed: int = 0,
    channels: Sequence[str] = RGB,
    dtype: str = "uint8",
    *,
    multilabel: bool = False,
) -> Iterator[str]:
    """Write `counts` frames of each split as a new data set; yield each name once written.

    Raises:
        ModelInputError, OSError: as `dataset.write_dataset`.
    """
    return write_dataset(
        folder,
        classes=PLANES if multilabel else CLASSES,
        palette=PLANE_PALETTE if multilabel else PALETTE,
        ignore_index=IGNORE_INDEX,
        splits={
            split: generate(split, count, size, seed, channels, dtype, multilabel=multilabel)
            for split, count in counts.items()
        },
        channels=channels,
        dtype=dtype,
        bit_planes=multilabel,
    )


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one scene of `size` (H, W): image `(H, W, 3) uint8` and mask `(H, W) uint8`."""
    canvas = _Canvas(rng, size)
    _ground_and_sky(canvas)
    _buildings(canvas)
    objects = (_tree, _pole, _person, _car, _car)
    for depth in sorted(rng.uniform(0.12, 0.8, int(rng.integers(8, 15)))):
        place = objects[int(rng.integers(len(objects)))]
        place(canvas, float(depth))
    _bonnet(canvas)
    return _lit(canvas), np.array(canvas.mask)


# Shares of red, green and blue in the channels of other cameras. Near infrared is bright on plants.
_SHARES = {
    **{"R": (1, 0, 0), "G": (0, 1, 0), "B": (0, 0, 1)},
    **{"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)},
    **{"gray": (0.299, 0.587, 0.114), "nir": (0.3, 1.1, -0.4)},
}


def recorded(
    image: NDArray[np.uint8], channels: Sequence[str], dtype: str, largest: float = 1.0
) -> NDArray[Any]:
    """Return an RGB image as another camera would record it: `(H, W, C)` of `dtype`.

    A channel is a mixture of red, green and blue; one without a known name gets a mixture of its
    own. White is 255, 65535, or `largest` for float32.
    """
    if dtype == "uint8" and tuple(channels) == RGB:
        return image
    unknown = [name for name in channels if name not in _SHARES]
    shares = [
        _SHARES.get(name) or np.random.default_rng(unknown.index(name)).dirichlet((1, 1, 1))
        for name in channels
    ]
    light = np.clip(image.astype(np.float64) @ np.array(shares, np.float64).T / 255, 0, 1)
    levels = largest if dtype == "float32" else np.iinfo(dtype).max
    values: NDArray[Any] = light * levels if dtype == "float32" else np.rint(light * levels)
    return values.astype(dtype)


@dataclass
class _Canvas:
    """Image and mask that are painted together; `depth` runs from 0 (horizon) to 1 (camera)."""

    rng: np.random.Generator
    size: tuple[int, int]
    image: Image.Image = field(init=False)
    mask: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.size
        self.image = Image.new("RGB", (width, height))
        self.mask = Image.new("L", (width, height), IGNORE_INDEX)
        self.horizon = height * self.rng.uniform(0.36, 0.48)
        self.vanishing = width * self.rng.uniform(0.4, 0.6)
        self.road_half = width * self.rng.uniform(0.42, 0.62)

    def ground(self, depth: float, offset: float) -> tuple[float, float]:
        """Return the pixel (x, y) of the ground at `depth`; `offset` is in half road widths."""
        height, _ = self.size
        y = self.horizon + (height - self.horizon) * depth
        return self.vanishing + offset * self.road_half * depth, y

    def paint(self, label: int, color: Color, points: Points, grain: float = 14.0) -> None:
        """Fill a polygon with a textured color in the image and its class in the mask."""
        height, width = self.size
        stencil = Image.new("L", (width, height), 0)
        ImageDraw.Draw(stencil).polygon(points, fill=255)
        self._fill(label, color, stencil, grain)

    def paint_ellipse(self, label: int, color: Color, box: tuple[float, ...], grain: float) -> None:
        """Fill an ellipse within `box` (left, top, right, bottom)."""
        height, width = self.size
        stencil = Image.new("L", (width, height), 0)
        ImageDraw.Draw(stencil).ellipse(box, fill=255)
        self._fill(label, color, stencil, grain)

    def decorate(self, color: Color, points: Points) -> None:
        """Draw a detail that does not change the class: a window, a lane mark."""
        ImageDraw.Draw(self.image).polygon(points, fill=color)

    def color(self, low: int, high: int) -> Color:
        """Pick a random color with channels in `[low, high)`."""
        red, green, blue = (int(c) for c in self.rng.integers(low, high, 3))
        return red, green, blue

    def _fill(self, label: int, color: Color, stencil: Image.Image, grain: float) -> None:
        box = stencil.getbbox()
        if box is None:
            return
        cut = stencil.crop(box)
        width, height = cut.size
        texture = self.rng.normal(0.0, grain, (height, width, 1))
        texture += self.rng.normal(0.0, grain / 2, (height, 1, 1))
        pixels = np.clip(np.array(color) + texture, 0, 255).astype(np.uint8)
        self.image.paste(Image.fromarray(pixels), box, cut)
        self.mask.paste(label, box, cut)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _ground_and_sky(canvas: _Canvas) -> None:
    rng, (height, width) = canvas.rng, canvas.size
    blue = int(rng.integers(170, 250))
    sky = (blue - int(rng.integers(10, 90)), blue - int(rng.integers(5, 40)), blue)
    canvas.paint(SKY, sky, _box(0, 0, width, canvas.horizon + 1), grain=4)
    gray = int(rng.integers(115, 160))
    pavement = (gray + 18, gray + 8, gray)
    canvas.paint(PAVEMENT, pavement, _box(0, canvas.horizon, width, height), grain=9)
    far = canvas.ground(0.0, 0.0)
    asphalt = int(rng.integers(60, 105))
    road = [far, canvas.ground(1.2, 1.0), canvas.ground(1.2, -1.0)]
    canvas.paint(ROAD, (asphalt, asphalt, asphalt + 6), road, grain=8)
    for start in np.arange(0.1, 1.0, 0.18):
        near, end = float(start), float(start) + 0.09
        canvas.decorate(
            (225, 225, 215),
            [canvas.ground(near, o) for o in (-0.02, 0.02)]
            + [canvas.ground(end, o) for o in (0.02, -0.02)],
        )


def _buildings(canvas: _Canvas) -> None:
    rng, (height, _) = canvas.rng, canvas.size
    for side in (-1.0, 1.0):
        depth = 0.05
        while depth < 0.75:
            end = depth + float(rng.uniform(0.08, 0.22))
            if rng.random() < 0.8:
                offset = side * float(rng.uniform(1.5, 1.9))
                (x0, y0), (x1, y1) = canvas.ground(depth, offset), canvas.ground(end, offset)
                storey = height * float(rng.uniform(0.5, 1.3))
                top0, top1 = y0 - storey * depth - height * 0.06, y1 - storey * end - height * 0.06
                wall = canvas.color(85, 190)
                outer = x1 + side * height
                canvas.paint(BUILDING, wall, [(x0, y0), (x0, top0), (x1, top1), (x1, y1)])
                canvas.paint(BUILDING, wall, [(x1, y1), (x1, top1), (outer, top1), (outer, y1)])
                _windows(canvas, (x0, y0, top0), (x1, y1, top1), wall)
            depth = end + float(rng.uniform(0.0, 0.05))


def _windows(
    canvas: _Canvas,
    far: tuple[float, float, float],
    near: tuple[float, float, float],
    wall: Color,
) -> None:
    glass: Color = (wall[0] // 2, wall[1] // 2, min(wall[2] // 2 + 30, 255))
    for row in np.arange(0.12, 0.85, 0.2):
        for column in np.arange(0.12, 0.85, 0.3):
            corners: Points = []
            for along, up in ((0, 0), (0.16, 0), (0.16, 0.1), (0, 0.1)):
                a, u = float(column) + along, float(row) + up
                x = far[0] + (near[0] - far[0]) * a
                bottom, top = far[1] + (near[1] - far[1]) * a, far[2] + (near[2] - far[2]) * a
                corners.append((x, bottom + (top - bottom) * u))
            canvas.decorate(glass, corners)


def _beside_road(canvas: _Canvas) -> float:
    return float(canvas.rng.choice((-1.0, 1.0)) * canvas.rng.uniform(1.08, 1.45))


def _tree(canvas: _Canvas, depth: float) -> None:
    rng, (height, _) = canvas.rng, canvas.size
    x, y = canvas.ground(depth, _beside_road(canvas))
    tall = height * depth * float(rng.uniform(0.7, 1.1))
    trunk = tall * 0.05
    canvas.paint(TREE, (85, 62, 45), _box(x - trunk, y - tall * 0.5, x + trunk, y))
    leaf = (int(rng.integers(35, 90)), int(rng.integers(85, 140)), int(rng.integers(25, 65)))
    for _ in range(6):
        radius = tall * float(rng.uniform(0.14, 0.26))
        cx = x + tall * float(rng.uniform(-0.2, 0.2))
        cy = y - tall * float(rng.uniform(0.5, 0.9))
        canvas.paint_ellipse(
            TREE, leaf, (cx - radius, cy - radius, cx + radius, cy + radius), grain=24
        )


def _pole(canvas: _Canvas, depth: float) -> None:
    height, _ = canvas.size
    x, y = canvas.ground(depth, _beside_road(canvas))
    tall, half = height * depth * 0.8, max(1.2, height * depth * 0.014)
    gray = int(canvas.rng.integers(70, 190))
    canvas.paint(POLE, (gray, gray, gray), _box(x - half, y - tall, x + half, y), grain=6)
    if canvas.rng.random() < 0.5:
        sign = height * depth * 0.06
        canvas.paint(
            POLE, canvas.color(40, 250), _box(x - sign, y - tall, x + sign, y - tall + sign)
        )


def _person(canvas: _Canvas, depth: float) -> None:
    rng, (height, _) = canvas.rng, canvas.size
    offset = _beside_road(canvas) if rng.random() < 0.75 else float(rng.uniform(-0.9, 0.9))
    x, y = canvas.ground(depth, offset)
    tall = height * depth * 0.38
    legs, coat = canvas.color(20, 110), canvas.color(30, 240)
    for shift in (-0.07, 0.05):
        canvas.paint(
            PERSON, legs, _box(x + shift * tall, y - tall * 0.45, x + (shift + 0.06) * tall, y)
        )
    canvas.paint(
        PERSON, coat, _box(x - tall * 0.12, y - tall * 0.84, x + tall * 0.12, y - tall * 0.42)
    )
    head = tall * 0.09
    canvas.paint_ellipse(
        PERSON, (205, 160, 130), (x - head, y - tall, x + head, y - tall + 2 * head), grain=8
    )


def _car(canvas: _Canvas, depth: float) -> None:
    rng = canvas.rng
    x, y = canvas.ground(depth, float(rng.choice((-0.5, 0.5)) + rng.uniform(-0.12, 0.12)))
    wide = canvas.road_half * depth * 0.36
    tall = wide * float(rng.uniform(1.1, 1.4))
    body = canvas.color(25, 235)
    canvas.paint(CAR, body, _box(x - wide, y - tall * 0.6, x + wide, y - tall * 0.1), grain=7)
    roof = [(x - wide * 0.85, y - tall * 0.58), (x - wide * 0.6, y - tall)]
    roof += [(x + wide * 0.6, y - tall), (x + wide * 0.85, y - tall * 0.58)]
    canvas.paint(CAR, body, roof, grain=7)
    glass = [(px * 0.85 + x * 0.15, py + (y - tall * 0.75 - py) * 0.3) for px, py in roof]
    canvas.decorate((40, 48, 60), glass)
    for side in (-0.75, 0.75):
        wheel = wide * 0.2
        cx = x + side * wide
        canvas.paint_ellipse(
            CAR, (25, 25, 28), (cx - wheel, y - tall * 0.25, cx + wheel, y), grain=5
        )
        lamp = _box(cx - wheel * 0.6, y - tall * 0.48, cx + wheel * 0.6, y - tall * 0.38)
        canvas.decorate((215, 60, 50) if rng.random() < 0.6 else (240, 235, 200), lamp)


def _bonnet(canvas: _Canvas) -> None:
    height, width = canvas.size
    rise = height * float(canvas.rng.uniform(0.03, 0.08))
    box = (width * 0.1, height - rise, width * 0.9, height + 2 * rise)
    canvas.paint_ellipse(IGNORE_INDEX, canvas.color(20, 60), box, grain=3)


def _lit(canvas: _Canvas) -> NDArray[np.uint8]:
    rng, (height, width) = canvas.rng, canvas.size
    soft = canvas.image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9))))
    light = np.asarray(soft, np.float32) / 255
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    light = light * (1 + float(rng.uniform(-0.25, 0.25)) * columns)
    shadow_edge = float(rng.uniform(-1.5, 1.5))
    light = np.where(
        columns + 0.8 * rows < shadow_edge, light * float(rng.uniform(0.6, 0.9)), light
    )
    haze = float(rng.uniform(0.0, 0.3)) * np.exp(-((rows - canvas.horizon / height) ** 2) / 0.02)
    light = light * (1 - haze) + 0.8 * haze
    warmth = np.array(rng.uniform(0.9, 1.1, 3), np.float32)
    light = np.clip(light * warmth * float(rng.uniform(0.65, 1.2)), 0, 1)
    light = light ** float(rng.uniform(0.8, 1.25))
    noise = rng.normal(0, float(rng.uniform(0.01, 0.035)), light.shape)
    pixels: NDArray[np.uint8] = (np.clip(light + noise, 0, 1) * 255).round().astype(np.uint8)
    return pixels

"""Drawing of scenes with exact integers; what users import is `gossamer.data.scenes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
SPLITS = {"train": 1, "val": 2, "test": 3}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
RGB = {
    "red": (215, 40, 40),
    "green": (40, 165, 55),
    "blue": (45, 75, 225),
    "yellow": (235, 220, 45),
    "purple": (150, 50, 185),
    "orange": (240, 130, 25),
    "cyan": (55, 205, 215),
    "white": (242, 242, 242),
}
PIXELS = {"small": (9, 10), "medium": (14, 15), "large": (20, 22)}
"""Lowest and highest diameter of each size class, in pixels of a 64 x 64 picture."""

HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = (
    ("red", "diamond"),
    ("green", "ring"),
    ("blue", "triangle"),
    ("yellow", "cross"),
    ("purple", "square"),
    ("cyan", "circle"),
)
"""Colour-shape pairs that the detector's training scenes never contain; each colour and shape occurs in other pairs."""


class Draw:
    """A stream of exact integers from PCG64's raw output, seeded by a tuple of non-negative integers."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))
        self._pool: list[int] = []

    def below(self, n: int) -> int:
        """An integer in 0..n-1, uniform up to 2^-32."""
        if not self._pool:
            self._pool = self._bits.random_raw(128).tolist()
        return ((self._pool.pop() >> 32) * n) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in low..high, both ends included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        """One element of a non-empty sequence."""
        return items[self.below(len(items))]

    def subset(self, items: tuple[str, ...], n: int) -> list[str]:
        """`n` different elements in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(n)]

    def octets(self, n: int) -> NDArray[np.uint8]:
        """`n` random bytes."""
        raw = self._bits.random_raw((n + 7) // 8).astype("<u8")
        return np.frombuffer(raw.tobytes(), dtype=np.uint8)[:n]


@dataclass(frozen=True)
class Object:
    """One thing in a scene; `box` as in the module's text, `diameter` in pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    box: tuple[int, int, int, int]
    diameter: int

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and the truth about it.

    image: uint8, H x W x 3. owner: int8, H x W, the index of the object seen at that pixel, -1 for the background.
    objects: from the lowest to the uppermost. captions: lower-case sentences in the closed vocabulary.
    """

    split: str
    index: int
    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    objects: tuple[Object, ...]
    captions: tuple[str, ...]

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return int(self.image.shape[1])


@lru_cache(maxsize=1024)
def shape_alpha(shape: str, diameter: int) -> NDArray[np.int32]:
    """Coverage of each pixel by the shape, 0..16 (4 x 4 samples a pixel), int32, diameter x diameter."""
    n = 4 * diameter
    axis = 2 * np.arange(n) + 1 - n  # odd numbers, -n < a < n: exact, no floating point
    u, v = axis[None, :], axis[:, None]
    if shape == "circle":
        inside = u * u + v * v <= n * n
    elif shape == "ring":
        inside = (u * u + v * v <= n * n) & (10 * (u * u + v * v) >= 3 * n * n)
    elif shape == "square":
        inside = (10 * abs(u) <= 9 * n) & (10 * abs(v) <= 9 * n)
    elif shape == "triangle":
        inside = 2 * abs(u) <= v + n
    elif shape == "diamond":
        inside = abs(u) + abs(v) <= n
    elif shape == "cross":
        inside = (3 * abs(u) <= n) | (3 * abs(v) <= n)
    else:
        raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")
    covered: NDArray[np.int32] = inside.reshape(diameter, 4, diameter, 4).sum(axis=(1, 3)).astype(np.int32)
    return covered


@lru_cache(maxsize=1024)
def _extent(shape: str, diameter: int) -> tuple[int, int, int, int]:
    """The tight box of the shape inside its diameter x diameter frame, counting pixels covered by half or more."""
    solid = shape_alpha(shape, diameter) >= 8
    xs, ys = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


@lru_cache(maxsize=256)
def _shade(texture: str, diameter: int, scale: int) -> NDArray[np.int32]:
    """Brightness of the texture in 1/16ths, int32, diameter x diameter; `scale` is the picture's width / 32."""
    pixel = np.arange(diameter)
    a = pixel // scale
    x, y = a[None, :], a[:, None]
    if texture == "striped":
        dark = (pixel[None, :] + pixel[:, None]) // scale % 2 == 1
    elif texture == "dotted":
        dark = (x % 2 == 1) & (y % 2 == 1)
    else:
        dark = np.zeros((diameter, diameter), dtype=bool)
    return np.where(dark, 9, 16).astype(np.int32) + np.zeros((diameter, diameter), dtype=np.int32)


def _places(draw: Draw, diameters: list[int], width: int) -> list[tuple[int, int]]:
    """Upper left corners such that no two frames share more than a fifth of the smaller one's area."""
    order = sorted(range(len(diameters)), key=lambda i: -diameters[i])
    places: dict[int, tuple[int, int]] = {}
    for attempt in range(40):
        places = {}
        for i in order:
            d = diameters[i]
            for _ in range(12):
                x, y = draw.below(width - d + 1), draw.below(width - d + 1)
                for j, (ox, oy) in places.items():
                    e = diameters[j]
                    w, h = min(x + d, ox + e) - max(x, ox), min(y + d, oy + e) - max(y, oy)
                    if w > 0 and h > 0 and 5 * w * h > min(d, e) ** 2 and attempt < 39:
                        break
                else:
                    places[i] = (x, y)
                    break
            else:
                break
        if len(places) == len(diameters):
            break
    return [places[i] for i in range(len(diameters))]


def _background(draw: Draw, width: int) -> NDArray[np.int32]:
    """A grey ramp with faint rectangles (clutter): int32, H x W x 3."""
    base, slope = draw.between(45, 105), draw.between(-12, 12)
    ramp = base + slope * np.arange(width, dtype=np.int32) // width
    grey = np.repeat(ramp[None, :], width, axis=0) if draw.below(2) else np.repeat(ramp[:, None], width, axis=1)
    for _ in range(draw.below(5)):
        w, h = draw.between(width // 16, width // 3), draw.between(width // 16, width // 3)
        x, y = draw.below(width - w), draw.below(width - h)
        grey[y : y + h, x : x + w] += draw.between(-14, 14)
    return np.repeat(grey[:, :, None], 3, axis=2)


def scene(
    split: str,
    index: int,
    *,
    size: int = 64,
    exclude: tuple[tuple[str, str], ...] = (),
    most_objects: int = 6,
) -> Scene:
    """Scene number `index` of a split: 1 to `most_objects` objects in a `size` x `size` picture.

    `exclude` lists colour-shape pairs that must not occur (see `HELD_OUT_PAIRS`). The colours and shapes of a scene
    come from a random palette of it, so that several objects often share a colour or a shape.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if index < 0 or size < 32:
        raise ValueError("index must be 0 or more and size 32 pixels or more")
    draw = Draw(SPLITS[split], index, 0)
    count = 1 if draw.below(20) == 0 else draw.between(2, most_objects)
    colours = draw.subset(COLOURS, draw.between(2, len(COLOURS)))
    shapes = draw.subset(SHAPES, draw.between(2, len(SHAPES)))
    kinds: list[tuple[str, str, str, str, int]] = []
    for _ in range(count):
        pair = (draw.pick(colours), draw.pick(shapes))
        while pair in exclude:
            pair = (draw.pick(COLOURS), draw.pick(SHAPES))
        step = draw.below(3)
        low, high = PIXELS[SIZES[step]]
        diameter = (draw.between(low, high) * size + 32) // 64
        texture = TEXTURES[max(0, draw.below(6) - 3)]
        kinds.append((*pair, SIZES[step], texture, diameter))
    places = _places(draw, [k[4] for k in kinds], size)

    canvas = _background(draw, size)
    owner = np.full((size, size), -1, dtype=np.int8)
    objects = []
    for number, ((colour, shape, size_word, texture, d), (x, y)) in enumerate(zip(kinds, places, strict=True)):
        alpha = shape_alpha(shape, d)
        rgb = np.array([c + draw.between(-12, 12) for c in RGB[colour]], dtype=np.int32)
        paint = _shade(texture, d, size // 32)[:, :, None] * rgb >> 4
        part = canvas[y : y + d, x : x + d]
        part += (paint - part) * alpha[:, :, None] >> 4
        owner[y : y + d, x : x + d][alpha >= 8] = number
        ex = _extent(shape, d)
        objects.append(Object(shape, colour, size_word, texture, (x + ex[0], y + ex[1], x + ex[2], y + ex[3]), d))
    noise = draw.octets(canvas.size).reshape(canvas.shape).astype(np.int32)
    canvas += ((noise & 15) + (noise >> 4)) - 15
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    found = tuple(objects)
    return Scene(split, index, image, owner, found, _captions(found, size))


def region(centre: tuple[float, float], width: int) -> str | None:
    """The answer to "where": a corner, "center", or None where neither word clearly fits."""
    dx, dy = (centre[0] - width / 2) * 64 / width, (centre[1] - width / 2) * 64 / width
    if max(abs(dx), abs(dy)) <= 5:
        return "center"
    if min(abs(dx), abs(dy)) < 7:
        return None
    return ("top" if dy < 0 else "bottom") + ("-left" if dx < 0 else "-right")


def _captions(objects: tuple[Object, ...], width: int) -> tuple[str, ...]:
    """One caption that counts, and one for each object."""
    many = "one object" if len(objects) == 1 else f"{NUMBERS[len(objects)]} objects"
    lines = [f"there is {many}" if len(objects) == 1 else f"there are {many}"]
    for o in objects:
        place = region(o.centre, width)
        lines.append(f"a {o.size} {o.texture} {o.colour} {o.shape}" + (f" {place}" if place else ""))
    return tuple(lines)

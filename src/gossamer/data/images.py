"""Images from anywhere, read late and the same way: 8-bit RGB, upright, never a decompression bomb."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: 64 megapixels are 192 MB in memory."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


@dataclass(frozen=True)
class ImageRef:
    """An image that is not loaded yet. Two references with one `key` are the same image; `load()` gives RGB."""

    key: str
    load: Callable[[], Image] = field(compare=False, repr=False)


def image_file(path: Path, where: str) -> ImageRef:
    """A reference to an image file whose header has been checked.

    `where` names the line or entry that asked for it, e.g. `val.jsonl line 3`. Raises `DataError` if the file is
    missing, is not an image, or has more than `MOST_PIXELS` pixels.
    """
    if not path.is_file():
        raise DataError(f"{where}: image {path} does not exist; image paths are relative to the file that names them")
    _open(path, where).close()
    return ImageRef(str(path), lambda: load_image(path, where))


def image_array(array: Any, key: str) -> ImageRef:
    """A reference to a uint8 array in memory: H x W (grey) or H x W x 3 (RGB)."""

    def load() -> Image:
        from PIL import Image as Pillow

        return Pillow.fromarray(array).convert("RGB")

    return ImageRef(key, load)


def scene_image(split: str, index: int, size: int = 64) -> ImageRef:
    """A reference to a rendered scene of `size` x `size` pixels (see `gossamer.data.scenes`)."""
    return ImageRef(f"scenes/{split}/{index}/{size}", lambda: _rendered(split, index, size))


def load_image(path: Path, where: str) -> Image:
    """Decodes an image file to RGB, turned as its EXIF tag says. Raises `DataError` if it is not a whole image."""
    return _upright_rgb(_open(path, where), str(path), where)


def image_from_bytes(data: bytes, where: str) -> Image:
    """The same of a file's content, of the formats that the web knows; `where` names what it came with."""
    return _upright_rgb(_open(io.BytesIO(data), where, _FORMATS), "data", where)


def _upright_rgb(image: Image, name: str, where: str) -> Image:
    from PIL import ImageOps

    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: image {name} is damaged ({error}); replace it by a whole image file") from error
    if upright.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image as Pillow

        return Pillow.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")


def _open(file: Path | io.BytesIO, where: str, formats: tuple[str, ...] | None = None) -> Image:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    name = str(file) if isinstance(file, Path) else "data"
    too_large = f"{where}: image {name} has too many pixels; at most {MOST_PIXELS // 10**6} megapixels are accepted"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            image = Pillow.open(file, formats=formats)
    except Pillow.DecompressionBombError as error:
        raise DataError(too_large) from error
    except FileNotFoundError as error:
        raise DataError(f"{where}: image {name} does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: {name} is not an image; PNG, JPEG, WebP, BMP, TIFF and GIF are read") from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise DataError(too_large)
    return image


@lru_cache(maxsize=256)
def _rendered(split: str, index: int, size: int) -> Image:
    from PIL import Image as Pillow

    from gossamer.data.scenes import scene

    return Pillow.fromarray(scene(split, index, size=size).image)

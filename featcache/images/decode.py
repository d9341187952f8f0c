"""One decode policy: bytes or an array in, an upright 8-bit RGB image out.

| what is in the file | what comes out |
|---|---|
| EXIF orientation | applied |
| grey, 1-bit, palette, CMYK, YCbCr | converted to RGB |
| alpha, or a transparent palette colour | laid over white, or black if asked |
| 16-bit grey | the whole range 0 … 65535 scaled to 0 … 255 |
| 32-bit integer | as 16-bit if it fits, else its own minimum … maximum |
| float | 0 … 1 scaled to 0 … 255 if it fits, else its own minimum … maximum |
| several frames | the first |
| a JPEG at least twice as large as asked for | decoded at 1/2, 1/4 or 1/8 of its size |
| HEIC | with pillow-heif (the extra `heif`), turned upright by it |
| more pixels than Pillow allows | refused: a decompression bomb |
| another format than `SUFFIXES` name | refused: Pillow runs Ghostscript on EPS |
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featcache.errors import FeatcacheError
from featcache.images.files import HEIF, NEEDS_HEIF, suffixes
from featcache.images.manifest import Content

POLICY = 2  # part of every cache key: raise it when a change here can change a pixel

# What Pillow's decoders have been seen to raise on broken files.
_BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError,
    OverflowError, ZeroDivisionError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError, UnidentifiedImageError,
)  # fmt: skip
_HEIF_BEGINS = (b"ftypheic", b"ftypheix", b"ftypmif1")  # from byte 4 on
BYTES = 16  # that a pixel takes while it is decoded: four copies of RGBA
_UNKNOWN = 1 << 25  # pixels of an image whose header can't be read
_BAND = 1 << 20  # pixels that are scaled at once


class BadImage(FeatcacheError):
    """One image that can't be decoded; it is listed and left out."""


def decode(
    content: Content,
    alpha: str = "white",
    at_least: int = 0,
    reserve: Callable[[int], None] | None = None,
) -> Image.Image:
    """Decode one image.

    Parameters
    ----------
    content : bytes or uint8 array of shape (h, w), (h, w, 3) or (h, w, 4)
        A file's bytes, or pixels.
    alpha : {"white", "black"}, default "white"
        What shows through transparent pixels.
    at_least : int, default 0
        A JPEG may come out smaller, as long as its shorter side has this many pixels: decoding
        at 1/2, 1/4 or 1/8 of the size is part of the format, and fast. 0: never.
    reserve : callable, optional
        Called with the number of pixels, which the header tells, before they are decoded.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright.

    Raises
    ------
    BadImage
        If it is no image, is cut short, or is a decompression bomb.
    MemoryError
        If there is too little memory for it: nothing is known of the image then.
    """
    if isinstance(content, bytes) and not content:
        raise BadImage("the file is empty")
    pixels = _UNKNOWN
    try:
        image = (
            Image.open(io.BytesIO(content), formats=_formats())
            if isinstance(content, bytes)
            else Image.fromarray(content)
        )
        whole = image.size
        if at_least:
            image.draft(None, (at_least, at_least))
        # A progressive JPEG's decoder holds all of it, whatever comes out.
        pixels = math.prod(whole if "progressive" in image.info else image.size)
        if reserve is not None:
            reserve(pixels)
        image.load()
    except UnidentifiedImageError:
        if isinstance(content, bytes) and content[4:12] in _HEIF_BEGINS:
            raise BadImage(f"{NEEDS_HEIF}, then extract with --retry-failed") from None
        raise BadImage("not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"a decompression bomb: {error}") from None
    except _BROKEN as error:
        # JPEG's, WebP's and other decoders say of a want of memory that the file is broken.
        np.empty(pixels * BYTES, np.uint8)  # MemoryError
        raise BadImage(f"can't be decoded: {error or type(error).__name__}") from None
    try:
        return _to_rgb(_upright(image), alpha)
    except _BROKEN as error:
        raise BadImage(f"can't be converted to RGB: {error or type(error).__name__}") from None


def reduction(content: Content, at_least: int) -> int:
    """By how much `decode` reduces an image: 1, 2, 4 or 8; 1 for what can't be opened."""
    if not at_least or not isinstance(content, bytes) or not content.startswith(b"\xff\xd8"):
        return 1
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            times = min(image.size) // at_least
    except _BROKEN:
        return 1
    return max(by for by in (1, 2, 4, 8) if by <= max(times, 1))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that `SUFFIXES` stand for, as far as it was built with them."""
    if suffixes() >= HEIF:
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    known = Image.registered_extensions()
    return tuple(sorted({known[suffix] for suffix in suffixes() if suffix in known}))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:  # damaged EXIF says nothing about which way is up
        return image


def _to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        front = image.convert("RGBA")
        back = Image.new("RGBA", front.size, alpha)
        return Image.alpha_composite(back, front).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """A 16-bit, 32-bit or float image as 8-bit grey: scaled, where Pillow would clip."""
    values = np.asarray(image)  # (h, w)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinite values")
    full = 1.0 if image.mode == "F" else 65535.0
    fits = low >= 0 and high <= full
    if not fits:
        full = (high - low) or 1.0
    scaled = np.empty(values.shape, np.uint8)  # (h, w)
    rows = max(1, _BAND // values.shape[1])
    for top in range(0, len(values), rows):
        band = values[top : top + rows].astype(np.float64)  # (rows, w)
        scaled[top : top + rows] = np.rint((band if fits else band - low) * (255.0 / full))
    return Image.fromarray(scaled)

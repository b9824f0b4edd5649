"""Greyscale PNG files: 16-bit images, 8- or 16-bit label ids."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.files import atomic_path

MAX_PIXELS = 2**26  # 8192²; more is a damaged header or a bomb
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns there and refuses at twice that
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_MODES = {"L", "I;16", "I;16B", "I"}


def write_png(path: Path | str, pixels: NDArray) -> None:
    """Write a (H, W) uint8 or uint16 array atomically; fast compression, since slices are many and small."""
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: a greyscale PNG needs a 2-D uint8 or uint16 array, got {pixels.dtype} {pixels.shape}"
        )
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", compress_level=3)


def read_png(path: Path | str, *, image_only: bool = False) -> NDArray:
    """Read a greyscale (or palette) PNG as a (H, W) uint8 or uint16 array.

    Palette files give their indices, which is how label maps are commonly stored; image_only refuses them, because
    indices are no intensities. Raises ValueError naming the file
    for colour images, unreadable files and files that are not PNG.
    """
    try:
        content = Path(path).read_bytes()
        _check_sums(content)
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "PNG":
                raise ValueError(f"{path}: expected a PNG file, found {image.format}")
            if image.mode == "P" and not image_only:
                return np.asarray(image, np.uint8)
            if image.mode not in _GREY_MODES:
                advice = "convert it to greyscale" if image_only else "colour-coded labels must be converted to ids"
                raise ValueError(
                    f"{path}: expected a greyscale PNG (mode L or 16-bit), found mode {image.mode}; {advice} first"
                )
            pixels = np.asarray(image)
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: {_announced(path)} pixels; a slice has {MAX_PIXELS} at most") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: unreadable PNG ({error})") from None
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def _check_sums(content: bytes) -> None:
    """OSError where a chunk of the PNG is cut or its checksum is wrong, which Pillow does not look at in all of them."""
    position = len(_SIGNATURE)
    if not content.startswith(_SIGNATURE):
        return  # some other file, about which Pillow knows better
    while position < len(content):
        size, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        end = position + 8 + size
        if len(content) < end + 4:
            break
        if zlib.crc32(memoryview(content)[position + 4 : end]) != int.from_bytes(content[end : end + 4]):
            raise OSError(f"wrong checksum at byte {end}")
        if kind == b"IEND":
            return
        position = end + 4
    raise OSError("truncated")


def _announced(path: Path | str) -> str:
    with open(path, "rb") as file:
        start = file.read(24)
    return f"{int.from_bytes(start[16:20])} x {int.from_bytes(start[20:24])}"


def as_16_bit(pixels: NDArray) -> NDArray[np.uint16]:
    """8-bit levels on the 16-bit scale (0..255 -> 0..65535); 16-bit pixels as they are."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257

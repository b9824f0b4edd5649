"""Greyscale PNG files: 16-bit images, 8- or 16-bit label ids."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.files import atomic_path
from dataloaders.io.spec import DataSpec

MAX_PIXELS = 2**26  # 8192²; more is a damaged header or a bomb
MIN_RANGE = 2**14  # 16-bit images that stay below are those of scanners of 12 or 14 bits
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns there and refuses at twice that
_GREY_MODES = {"1", "L", "I;16", "I;16B", "I"}
_DEPTH = "bit depth"  # key in Pillow's info
CONVERSION = "scripts/prepare_data.py --format png turns colours into ids"


class NoGrey(ValueError):  # noqa: N818 (what the file is)
    """A PNG of colours, or of palette indices that are no ids."""


def write_png(path: Path | str, pixels: NDArray) -> None:
    """Write a (H, W) uint8 or uint16 array atomically; fast compression, since slices are many and small."""
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: a greyscale PNG needs a 2-D uint8 or uint16 array, got {pixels.dtype} {pixels.shape}"
        )
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", compress_level=3)


def read_png(path: Path | str, *, image_only: bool = False) -> NDArray:
    """Read a greyscale PNG as a (H, W) uint8 or uint16 array; colour files whose channels are equal count as grey.

    Label maps come as they are stored: palette files as their indices, 1-, 2- and 4-bit files as 0, 1, 2, …. image_only is
    for intensities: 1-, 2- and 4-bit levels span 0..255, palettes must be grey and give their greys. Raises ValueError
    naming the file for colour images, unreadable files and files that are not PNG.
    """
    with _opened(path) as image:
        return _grey(path, image, image_only)


def read_slice(path: Path, spec: DataSpec, *, image_only: bool = False) -> NDArray:
    """A label map, or with image_only an image, of a folder with a manifest; as `read_png`.

    ValueError naming the file too where it has not the manifest's size, and for a label map with other ids.
    """
    pixels = read_png(path, image_only=image_only)
    if pixels.shape != tuple(spec.size):
        raise ValueError(f"{path}: is {pixels.shape}, the manifest says {tuple(spec.size)}")
    if not image_only and pixels.max() >= spec.num_labels:
        raise ValueError(f"{path}: label id {pixels.max()}, allowed are 0..{spec.num_labels - 1}")
    return pixels


def _grey(path: Path | str, image: Image.Image, image_only: bool) -> NDArray:
    depth = image.info[_DEPTH]
    if image.mode in _GREY_MODES:
        pixels = np.asarray(image.convert("L") if depth == 1 else image)
        if depth < 8 and not image_only:
            pixels = pixels // (255 // (2**depth - 1))  # Pillow spreads the levels over 0..255
        return pixels.astype(np.uint8 if depth <= 8 else np.uint16)
    if image.mode == "P" and not image_only:
        return np.asarray(image, np.uint8)
    colours = np.asarray(image.convert("RGBA"))
    grey = colours[..., 0]
    if depth == 16:
        problem = "16-bit colour"
    elif image.mode != "P" and (colours[..., 3] < 255).any():
        problem = "transparent pixels"
    elif (colours[..., :3] != grey[..., None]).any():
        problem = "colours"
    else:
        return grey
    advice = "convert it to greyscale first" if image_only else CONVERSION
    raise NoGrey(f"{path}: expected a greyscale PNG, found {problem} (mode {image.mode}); {advice}")


class Palettes:
    """Label maps read as ids, for as long as all palettes among them give one id one colour."""

    def __init__(self) -> None:
        self._of_id: dict[int, tuple[tuple[int, ...], Path]] = {}
        self._of_colour: dict[tuple[int, ...], tuple[int, Path]] = {}

    def read(self, path: Path) -> NDArray:
        """As `read_png`; NoGrey too where an id has another colour, or a colour another id, than in a file before."""
        with _opened(path) as image:
            ids = _grey(path, image, image_only=False)
            flat = (image.getpalette("RGB") if image.mode == "P" else None) or []
        for i in np.unique(ids).tolist() if flat else []:
            self.add(i, tuple(flat[3 * i : 3 * i + 3]), path)
        return ids

    def add(self, i: int, colour: tuple[int, ...], path: Path) -> None:
        """An id and its colour in a file; NoGrey as in `read`."""
        other_colour, first = self._of_id.setdefault(i, (colour, path))
        other_id, second = self._of_colour.setdefault(colour, (i, path))
        if (other_colour, other_id) != (colour, i):
            other = first if other_colour != colour else second
            raise NoGrey(
                f"{path}: its palette is not that of {other} (index {i} is {colour}), so an index is no label id; "
                + CONVERSION
            )

    @property
    def found(self) -> list[tuple[int, tuple[int, ...], str]]:
        """What `add` was given: of each id one file."""
        return [(i, colour, str(path)) for i, (colour, path) in self._of_id.items()]


def read_colours(path: Path | str) -> NDArray[np.int32]:
    """Colours of a PNG of any kind as r·65536 + g·256 + b, (H, W); ValueError for unreadable files."""
    with _opened(path) as image:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), -1, 0)
    return red * 65536 + green * 256 + blue


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """The checked image, its bit depth under `_DEPTH`; ValueError for what is no whole PNG."""
    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "PNG":
                raise ValueError(f"{path}: expected a PNG file, found {image.format}")
            image.verify()  # the checksums of all chunks, of which loading leaves some out
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            image.info[_DEPTH] = content[24]
            yield image
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: {_announced(path)} pixels; a slice has {MAX_PIXELS} at most") from None
    except (OSError, SyntaxError, IndexError) as error:  # the last: no pixels in it
        raise ValueError(f"{path}: unreadable PNG ({error})") from None


def _announced(path: Path | str) -> str:
    with open(path, "rb") as file:
        start = file.read(24)
    return f"{int.from_bytes(start[16:20])} x {int.from_bytes(start[20:24])}"


def as_16_bit(pixels: NDArray, levels: int | None = None) -> NDArray[np.uint16]:
    """8-bit levels on the 16-bit scale (0..255 -> 0..65535); 16-bit pixels as they are, or 0..levels likewise."""
    if levels is not None and levels < np.iinfo(pixels.dtype).max:
        return np.rint(np.minimum(pixels, levels) * (65535 / levels)).astype(np.uint16)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257

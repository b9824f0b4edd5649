"""PNG files as other programs write them: low bit depths, palettes, grey stored as colour."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.png import read_colours, read_png

IDS = np.arange(64).reshape(8, 8) % 4


def low_depth(path: Path, ids: NDArray, depth: int) -> Path:
    """A greyscale PNG of 1, 2 or 4 bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bits = (ids[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], depth, 0, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_low_bit_depths_are_ids_as_stored_and_levels_up_to_255(tmp_path: Path, depth: int) -> None:
    ids = np.arange(64).reshape(8, 8) % 2**depth
    path = low_depth(tmp_path / "x.png", ids, depth)
    assert np.array_equal(read_png(path), ids)
    assert np.array_equal(read_png(path, image_only=True), ids * (255 // (2**depth - 1)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_grey(tmp_path: Path, mode: str) -> None:
    Image.fromarray(IDS.astype(np.uint8) * 60).convert(mode).save(tmp_path / "x.png")
    assert np.array_equal(read_png(tmp_path / "x.png"), IDS * 60)
    assert np.array_equal(read_png(tmp_path / "x.png", image_only=True), IDS * 60)


def test_colours_transparency_and_16_bit_colour_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[1, 1] = (0, 128, 255)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    with pytest.raises(
        ValueError, match=r"colour\.png: .*found colours \(mode RGB\); scripts/prepare_data.py --format png"
    ):
        read_png(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="convert it to greyscale"):
        read_png(tmp_path / "colour.png", image_only=True)
    assert read_colours(tmp_path / "colour.png")[1, 1] == 128 * 256 + 255
    Image.fromarray(np.full((4, 4, 2), 100, np.uint8), "LA").save(tmp_path / "seen_through.png")
    with pytest.raises(ValueError, match="transparent pixels"):
        read_png(tmp_path / "seen_through.png")


def test_palettes_are_ids_for_labels_and_greys_for_images(tmp_path: Path) -> None:
    image = Image.fromarray(IDS.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_png(tmp_path / "x.png"), IDS)
    assert np.array_equal(read_colours(tmp_path / "x.png"), np.array([0, 0xFF0000, 0xFF00, 0x090909])[IDS])
    with pytest.raises(ValueError, match=r"found colours \(mode P\)"):
        read_png(tmp_path / "x.png", image_only=True)
    image.putpalette([0, 0, 0, 50, 50, 50, 200, 200, 200, 9, 9, 9])
    image.save(tmp_path / "grey.png")
    assert np.array_equal(read_png(tmp_path / "grey.png", image_only=True), np.array([0, 50, 200, 9])[IDS])

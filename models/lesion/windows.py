"""Patches: a grid that covers everything, patches around lesions, and the way back by weighted average.

Legend: B batch, C channels, S the two or three spatial axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Corner = tuple[int, ...]


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of windows of `size` at `stride` that cover 0..length-1; the last one ends at the border.

    The public code keeps whole strides only, so up to stride - 1 rows and columns are never seen. A length below
    `size` has the one window at 0.
    """
    if length <= size:
        return [0]
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def grid(shape: Sequence[int], size: int, stride: int) -> list[Corner]:
    """Corners of all windows over an image of `shape`."""
    return list(itertools.product(*(window_starts(n, size, stride) for n in shape)))


def place(corner: Corner, size: int) -> Any:
    """Index of the window at `corner` in (..., *S)."""
    return (..., *(slice(c, c + size) for c in corner))


def cut(x: Tensor, corner: Corner, size: int) -> Tensor:
    """The window of (..., *S) at `corner`."""
    return x[place(corner, size)]


def average_windows(shape: Sequence[int], size: int, stride: int, paint: Callable[[Corner], Tensor]) -> Tensor:
    """Mean of overlapping windows: `paint` gives (B, C, *window) for a corner; result (B, C, *shape).

    Every pixel is covered (see `window_starts`); where the public code's grid ended there were 0/0.
    """
    total, count = None, torch.zeros(tuple(shape))
    for corner in grid(shape, size, stride):
        image = paint(corner)
        if total is None:
            total = image.new_zeros((*image.shape[:2], *shape))
            count = count.to(image.device)
        total[place(corner, size)] += image
        count[place(corner, size)] += 1
    assert total is not None
    return total / count.clamp_min(1)


def random_corners(
    lesion: Tensor, body: Tensor, count: int, size: int, share: float, rng: torch.Generator | None
) -> list[Corner]:
    """Corners of `count` windows of one sample (*S): each holds a lesion pixel with probability `share`, if there is one.

    The pixel lies anywhere in the window but its outer eighth; the other windows hold a pixel of the body.
    """
    found: dict[bool, Tensor] = {True: lesion.nonzero(), False: body.nonzero()}
    corners = []
    for _ in range(count):
        wanted = bool(torch.rand((), generator=rng) < share) and len(found[True]) > 0
        points = found[wanted] if len(found[wanted]) else torch.zeros((1, lesion.ndim), dtype=torch.long)
        point = points[int(torch.randint(len(points), (), generator=rng))].tolist()
        margin = size // 8
        offsets = torch.randint(margin, max(size - margin, margin + 1), (lesion.ndim,), generator=rng).tolist()
        corners.append(
            tuple(min(max(p - o, 0), max(n - size, 0)) for p, o, n in zip(point, offsets, lesion.shape, strict=True))
        )
    return corners


def grid_corners(body: Tensor, count: int, size: int, stride: int, rng: torch.Generator | None) -> list[Corner]:
    """`count` different windows of the published training grid that hold a pixel of the body, as far as there are any.

    The public code asks for voxels that are not 0, which resampling rings make true almost everywhere.
    """
    corners = [corner for corner in grid(body.shape, size, stride) if bool(cut(body, corner, size).any())]
    order = torch.randperm(len(corners), generator=rng).tolist()
    return [corners[i] for i in order[:count]]

"""Patches of training: a grid that covers everything, and patches around lesions. S: the two or three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Corner = tuple[int, ...]


def grid(shape: Sequence[int], size: int, stride: int) -> list[Corner]:
    """Corners of patches of `size` at `stride` that cover an image of `shape`; the last ones end at its border.

    The public code keeps whole strides only, so up to stride - 1 rows and columns are never seen.
    """
    from monai.data.utils import dense_patch_slices  # seconds to import

    patches = dense_patch_slices(shape, (size,) * len(shape), (stride,) * len(shape))
    return [tuple(int(part.start) for part in patch) for patch in patches]


def cut(x: Tensor, corner: Corner, size: int) -> Tensor:
    """The patch of (..., *S) at `corner`."""
    place: Any = (..., *(slice(c, c + size) for c in corner))
    return x[place]


def random_corners(
    lesion: Tensor, body: Tensor, count: int, size: int, share: float, rng: torch.Generator | None
) -> list[Corner]:
    """Corners of `count` patches of one sample (*S): each holds a lesion pixel with probability `share`, if there is one.

    The pixel lies anywhere in the patch but its outer eighth; the other patches hold a pixel of the body.
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
    """`count` different patches of the published training grid that hold a pixel of the body, as far as there are any.

    The public code asks for voxels that are not 0, which resampling rings make true almost everywhere.
    """
    corners = [corner for corner in grid(body.shape, size, stride) if bool(cut(body, corner, size).any())]
    order = torch.randperm(len(corners), generator=rng).tolist()
    return [corners[i] for i in order[:count]]

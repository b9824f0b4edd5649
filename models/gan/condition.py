"""What a generator is conditioned on: label maps, noise, position; at every resolution, computed once per forward pass.

Legend: B batch, K label slices (1, or 1 + 2k in 2.5-D), N labels, Z noise length, H W pixels.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


class Condition:
    """Labels and noise at one resolution; `at` gives the same at another one.

    label: (B, K, H, W) int64, the slice itself first, then its neighbours in slice order.
    noise: None, (B, Z) for the whole image, or (B, N, Z) by class of the slice.
    grain: None, or noise for single pixels (B, L, H, W) of the finest size, of which the k-th channel is for the k-th
    halving of it.
    """

    def __init__(self, label: Tensor, num_labels: int, noise: Tensor | None, grain: Tensor | None = None) -> None:
        assert label.ndim == 4, label.shape
        self.label, self.num_labels, self.noise, self.grain = label, num_labels, noise, grain
        self.levels: dict[tuple[int, int], Condition] = {self.size: self}  # shared by all resolutions
        self._windows: dict[int, Tensor] = {}
        self._meetings: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Pixels (H, W)."""
        return self.label.shape[2], self.label.shape[3]

    def at(self, size: tuple[int, int]) -> Condition:
        """The condition at a size that divides this one, remembered: of each block of pixels the first."""
        if size not in self.levels:
            label = self.label[:, :, :: self.size[0] // size[0], :: self.size[1] // size[1]]
            self.levels[size] = Condition(label, self.num_labels, self.noise, self.grain)
            self.levels[size].levels = self.levels
        return self.levels[size]

    @cached_property
    def dense(self) -> Tensor:
        """Noise and one-hot labels (B, Z + K·N, H, W) float32, channels last in memory."""
        parts = list(one_hot(self.label, self.num_labels).unbind(1))  # K of (B, H, W, N)
        if self.noise is not None and self.noise.ndim == 2:
            parts.insert(0, self.noise[:, None, None].expand(-1, *self.size, -1))
        elif self.noise is not None:
            batch = torch.arange(len(self.noise), device=self.noise.device)[:, None, None]
            parts.insert(0, self.noise[batch, self.label[:, 0]])
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)

    @cached_property
    def rows(self) -> tuple[Tensor, int]:
        """Each label's row in a table of what a convolution makes of it, (B, K, H, W) int64, and how many these are.

        K·N, slice by slice; with noise, which is another in each image, the slice itself has rows of each: (B + K - 1)·N.
        """
        B, K = self.label.shape[:2]
        own = 1 if self.noise is None else B
        first = self.num_labels * (own - 1 + torch.arange(K, device=self.label.device)).repeat(B, 1)
        first[:, 0] = self.num_labels * (torch.arange(B, device=self.label.device) % own)
        return self.label + first[:, :, None, None], (own + K - 1) * self.num_labels

    def windows(self, kernel: int) -> Tensor:
        """What a convolution of this size meets of the labels around each pixel: (B·H·W, K·kernel²) int32, remembered.

        Each is a row of a table (kernel², R + 1), with `rows` R and a last one for what lies outside.
        """
        if kernel not in self._windows:
            (height, width), (numbers, count) = self.size, self.rows
            padded = F.pad(numbers.int(), (kernel // 2,) * 4, value=count)
            met = [padded[:, :, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
            found = torch.stack([ids + place * (count + 1) for place, ids in enumerate(met)], dim=-1)
            self._windows[kernel] = found.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)
        return self._windows[kernel]

    def meetings(self, kernel: int) -> tuple[Tensor, Tensor]:
        """The other way round, remembered: for each row of a table (kernel², R) the pixels whose windows hold it.

        Returns pixels (kernel²·K·B·H·W,), numbered in images (B, H, W) with a margin of kernel // 2 on all sides, and where
        each row's begin among them (kernel²·R,), both int32.
        """
        if kernel not in self._meetings:
            (B, _, H, W), (numbers, count), margin = self.label.shape, self.rows, kernel // 2
            width, device = W + 2 * margin, self.label.device
            inner = torch.arange(B * (H + 2 * margin) * width, device=device).view(B, -1, width)[:, :H, :W].flatten()
            slices = numbers.transpose(0, 1).flatten(1)  # (K, B·H·W)
            pixels = inner[slices.argsort(dim=1, stable=True)].flatten()
            counts = slices.flatten().bincount(minlength=count).repeat(kernel**2)
            back = torch.arange(2 * margin, -1, -1, device=device)  # from a pixel to the one in whose window it is
            shifts = (back[:, None] * width + back).flatten()
            found = (shifts[:, None] + pixels).flatten()
            self._meetings[kernel] = found.int(), (counts.cumsum(0) - counts).int()
        return self._meetings[kernel]

    def pixel_grain(self, size: tuple[int, int]) -> Tensor:
        """The grain (B, 1, H', W') of a size that is the finest one halved less than L times."""
        assert self.grain is not None
        factor = self.grain.shape[2] // size[0]
        level = factor.bit_length() - 1
        return self.grain[:, level : level + 1, : size[0], : size[1]]

    @cached_property
    def offsets(self) -> Tensor:
        """Position of each pixel in its class: (B, 2, H, W), row and column distance to the class's centroid.

        Divided by the class's largest distance, so in [-1, 1] (the position map of CLADE: Tan et al., TPAMI 2021, sec. 3.3).
        """
        return class_offsets(self.label[:, 0], self.num_labels)


def one_hot(label: Tensor, num_labels: int) -> Tensor:
    """(B, …) int64 in 0..N-1 -> (B, …, N) float32; torch's own goes by way of 64-bit integers. RuntimeError beyond N."""
    return torch.zeros(*label.shape, num_labels, device=label.device).scatter_(-1, label.unsqueeze(-1), 1.0)


def class_offsets(label: Tensor, num_labels: int) -> Tensor:
    """label (B, H, W) int64 -> (B, 2, H, W) float32 in [-1, 1]: see `Condition.offsets`."""
    B, H, W = label.shape
    rows = torch.arange(H, device=label.device, dtype=torch.float32)[:, None].expand(H, W)
    columns = torch.arange(W, device=label.device, dtype=torch.float32).expand(H, W)
    grid = torch.stack([rows, columns]).flatten(1).expand(B, -1, -1)  # (B, 2, H·W)
    index = label.flatten(1)[:, None].expand(-1, 2, -1)
    empty = torch.zeros(B, 2, num_labels, device=label.device)
    count = empty.scatter_add(2, index, torch.ones_like(grid))
    centroid = empty.scatter_add(2, index, grid) / count.clamp(min=1)
    offset = grid - centroid.gather(2, index)
    reach = empty.scatter_reduce(2, index, offset.abs(), "amax")
    return (offset / reach.gather(2, index).clamp(min=1)).view(B, 2, H, W)

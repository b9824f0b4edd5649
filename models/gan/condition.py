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
        if self.noise is not None:
            parts.insert(0, self.pixel_noise(self.noise))
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)

    def pixel_noise(self, noise: Tensor) -> Tensor:
        """The noise at every pixel (B, H, W, Z), without copies where it is the same for all."""
        if noise.ndim == 2:
            return noise[:, None, None].expand(-1, *self.size, -1)
        batch = torch.arange(len(noise), device=noise.device)[:, None, None]
        return noise[batch, self.label[:, 0]]

    def windows(self, kernel: int) -> Tensor:
        """What a convolution of this size meets of the labels around each pixel: (B·H·W, K·kernel²) int32, remembered.

        Each is the row of its weights in a table (kernel², K·N + 1), of which the last column is for what lies outside.
        """
        if kernel not in self._windows:
            (height, width), rows = self.size, self.label.shape[1] * self.num_labels
            first = torch.arange(0, rows, self.num_labels, device=self.label.device)[:, None, None]
            padded = F.pad((self.label + first).int(), (kernel // 2,) * 4, value=rows)
            met = [padded[:, :, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
            found = torch.stack([ids + place * (rows + 1) for place, ids in enumerate(met)], dim=-1)
            self._windows[kernel] = found.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)
        return self._windows[kernel]

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

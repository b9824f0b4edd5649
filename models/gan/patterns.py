"""Convolutions of label maps, computed once per distinct window instead of once per pixel.

A label map is mostly flat: far fewer 5×5 windows occur than there are pixels (a fifth to a quarter of the pixels in brain
and abdomen at 128²). Two stacked 3×3 convolutions of one-hot labels and constant noise take the same value wherever the
same window occurs, borders included, so they are computed for the distinct windows and looked up for the pixels. The
arithmetic is that of the convolution, term by term; only the order of sums differs.
Legend: B batch, K label slices, N labels, Z noise length, H W pixels, U and V distinct 3×3 and 5×5 windows, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9  # of a 3×3 kernel


@dataclass
class Patterns:
    """Distinct windows of a batch of label maps.

    features: (U, 9·K·N + 9·B) float32: one-hot labels of the distinct 3×3 windows tap by tap, and for each image which
        taps lie inside it. taps: (V·9,) int64 into U + 1 rows, the distinct 5×5 windows as 3×3 windows of 3×3 windows;
        U stands for "outside the image". index: (B·H·W,) int64 into V, the 5×5 window of each pixel.
    shape: (B, H, W).
    """

    features: Tensor
    taps: Tensor
    index: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, label: Tensor, num_labels: int) -> Patterns:
        """label (B, K, H, W) int64 -> its distinct windows."""
        B, K, H, W = label.shape
        code = torch.arange(B, device=label.device)[:, None, None].expand(B, H, W)  # noise differs by image
        for k in range(K):
            count, code = _compact(code * num_labels + label[:, k])  # renumbered each time, so that nothing overflows
        small, first = _windows(code, count)  # ids of 3×3 windows
        large, second = _windows(small, len(first))
        return cls(
            _features(label, num_labels, first),
            _unfold(small, len(first))[second].flatten(),
            large.flatten(),
            (B, H, W),
        )

    @property
    def distinct(self) -> float:
        """Distinct 5×5 windows per pixel."""
        return len(self.taps) / TAPS / len(self.index)

    def first(self, weight: Tensor, bias: Tensor | None, noise: Tensor | None) -> Tensor:
        """First convolution and ReLU on the distinct 3×3 windows: (U + 1, C), a row of zeros for "outside" last.

        weight: (C, Z + K·N, 3, 3). noise: (B, Z) or None.
        """
        z = 0 if noise is None else noise.shape[1]
        by_tap = weight.flatten(2).permute(2, 1, 0)  # (9, Z + K·N, C)
        table = by_tap[:, z:].reshape(-1, len(weight))
        if noise is None:
            hidden = self.features[:, : len(table)] @ table
        else:
            constant = torch.einsum("bz,tzc->tbc", noise.to(weight.dtype), by_tap[:, :z]).reshape(-1, len(weight))
            hidden = self.features @ torch.cat([table, constant])
        hidden = F.relu(hidden if bias is None else hidden + bias)
        return F.pad(hidden, (0, 0, 0, 1))

    def second(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Second convolution of the distinct 5×5 windows: hidden (U + 1, C), weight (D, C, 3, 3) -> (V, D)."""
        rows = hidden.index_select(0, self.taps).view(-1, TAPS * hidden.shape[1])
        return torch.addmm(bias, rows, weight.flatten(2).permute(2, 1, 0).reshape(-1, len(weight)))

    def modulate(self, x: Tensor, values: Tensor) -> Tensor:
        """x · scale + shift at every pixel: x (B, C, H, W), values (V, 2·C) scale and shift by window -> (B, C, H, W)."""
        return _Modulate.apply(x, values, self.index)


class _Modulate(torch.autograd.Function):
    """Looks scale and shift up for the pixels, in the backward pass again instead of keeping them: B·H·W·2C floats less."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, values, index)
        rows = _rows(x)
        C = rows.shape[1]
        looked_up = values.index_select(0, index)
        return _image(torch.addcmul(looked_up[:, C:], rows, looked_up[:, :C]), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values, index = ctx.saved_tensors
        rows, grad_rows = _rows(x), _rows(grad)
        C = rows.shape[1]
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = _image(values[:, :C].index_select(0, index).mul_(grad_rows), x)
        if ctx.needs_input_grad[1]:
            # Gradients of the pixels of a window add up; scale and shift in turn, so that the buffer stays small.
            where = index[:, None].expand(-1, C)
            scale = torch.zeros(len(values), C, dtype=grad.dtype, device=grad.device)
            shift = torch.zeros_like(scale)
            grad_values = torch.cat(
                [scale.scatter_add_(0, where, grad_rows * rows), shift.scatter_add_(0, where, grad_rows)], dim=1
            )
        return grad_x, grad_values, None


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B·H·W, C), without a copy where the memory is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_rows`."""
    B, C, H, W = like.shape
    return rows.view(B, H, W, C).permute(0, 3, 1, 2)


def _compact(code: Tensor) -> tuple[int, Tensor]:
    """(number of distinct values, values renumbered from 0)."""
    values, renumbered = torch.unique(code, return_inverse=True)
    return len(values), renumbered


def _windows(code: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids of the distinct 3×3 windows of code (B, H, W) with values 0..count-1, and one pixel of each.

    Rows are renumbered before columns are joined, so the codes of three stay far below 2^63. Returns (B, H, W), (U,).
    """
    padded = F.pad(code, (1, 1, 1, 1), value=count)
    base = count + 1
    rows, joined = _compact((padded[..., :-2] * base + padded[..., 1:-1]) * base + padded[..., 2:])
    total, ids = _compact((joined[:, :-2] * rows + joined[:, 1:-1]) * rows + joined[:, 2:])
    pixel = torch.empty(total, dtype=torch.long, device=code.device)
    pixel[ids.flatten()] = torch.arange(ids.numel(), device=code.device)  # any pixel of a window will do
    return ids, pixel


def _unfold(code: Tensor, outside: int) -> Tensor:
    """(B, H, W) -> (B·H·W, 9): the 3×3 neighbourhood of each pixel, row by row."""
    padded = F.pad(code, (1, 1, 1, 1), value=outside)
    return padded.unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, TAPS)


def _features(label: Tensor, num_labels: int, pixels: Tensor) -> Tensor:
    """One-hot windows and image indicators of the given pixels: (U, 9·K·N + 9·B), see `Patterns`."""
    B, K, H, W = label.shape
    windows = torch.stack([_unfold(label[:, k], num_labels)[pixels] for k in range(K)], dim=2)  # (U, 9, K)
    one_hot = F.one_hot(windows, num_labels + 1)[..., :num_labels]  # "outside" has no column: zero padding
    inside = windows[:, :, :1] < num_labels
    image = F.one_hot(pixels // (H * W), B)[:, None] * inside  # (U, 9, B)
    return torch.cat([one_hot.flatten(1), image.flatten(1)], dim=1).float()

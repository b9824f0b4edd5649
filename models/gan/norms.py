"""Normalisation that is conditioned on labels: SPADE and CLADE, over batch, instance or group statistics.

Legend: B batch, C channels, K label slices, N labels, Z noise length, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.gan.condition import Condition
from models.gan.options import GanConfig
from models.layers import SyncedBatchNorm2d

GROUPS = 32
# Of CLADE's tables by class and of its map of the noise at the start: classes must differ by more than draws do.
TABLE_STD, NOISE_STD = 0.3, 0.02


class InstanceNorm(nn.Module):
    """Instance normalisation without scale and shift that keeps the memory layout (torch's own copies channels-last)."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, each image and channel with mean 0 and variance 1."""
        var, mean = torch.var_mean(x.float(), dim=(2, 3), unbiased=False, keepdim=True)
        scale = torch.rsqrt(var + self.eps)
        return torch.addcmul((-mean * scale).to(x.dtype), x, scale.to(x.dtype))


def param_free_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation without scale and shift: ``batch`` (over all ranks), ``instance``, ``group`` (32 or fewer), ``none``."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return SyncedBatchNorm2d(channels, affine=False)
    if kind == "instance":
        return InstanceNorm()
    groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=False)


class ConditionedNorm(nn.Module):
    """Base of the norms whose scale and shift come from a `Condition`: norm(x) · scale + shift."""

    norm: nn.Module

    def forward(self, x: Tensor, condition: Condition, normalised: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W). normalised: `norm(x)` where the caller has it already."""
        normalised = self.norm(x) if normalised is None else normalised
        scale, shift = self.modulation(condition.at((x.shape[2], x.shape[3])))
        return torch.addcmul(shift, normalised, scale)

    def modulation(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C, H, W) at the condition's own size."""
        raise NotImplementedError


class SumOfRows(torch.autograd.Function):
    """For each pixel the sum of the rows of the labels around it, (kernel², R, hidden) -> (B·H·W, hidden); backward alike.

    torch's own way back, pixel by pixel, takes longer than a dense convolution; here each row gathers its pixels.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, condition: Condition, kernel: int) -> Tensor:
        """See the class."""
        ctx.condition, ctx.kernel, ctx.shape = condition, kernel, table.shape
        with_outside = F.pad(table, (0, 0, 0, 1)).flatten(0, 1)
        return F.embedding_bag(condition.windows(kernel), with_outside, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """See the class."""
        B, _, H, W = ctx.condition.label.shape
        pixels, starts = ctx.condition.meetings(ctx.kernel)
        padded = F.pad(gradient.view(B, H, W, -1), (0, 0, *(ctx.kernel // 2,) * 4)).flatten(0, 2)
        return F.embedding_bag(pixels, padded, starts, mode="sum").view(ctx.shape), None, None


class Spade(ConditionedNorm):
    """Spatially-adaptive normalisation (Park et al., CVPR 2019, sec. 3.1): norm(x) · (1 + gamma(c)) + beta(c).

    c is the condition (labels and noise) at the size of x; gamma and beta come from a two-layer convolution of c.
    tuned: gamma and beta in one convolution, and on CPUs labels by their weights; equal up to rounding.
    """

    def __init__(
        self, channels: int, condition_channels: int, hidden: int, kernel: int, norm: str, tuned: bool = True
    ) -> None:
        super().__init__()
        self.tuned = tuned
        self.norm = param_free_norm(norm, channels)
        self.shared = nn.Conv2d(condition_channels, hidden, kernel, padding=kernel // 2)
        self.gamma = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)
        self.beta = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)

    def modulation(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """See `ConditionedNorm`."""
        if not self.tuned:
            hidden = F.relu(self.shared(condition.dense))
            return 1 + self.gamma(hidden), self.beta(hidden)
        sparse = condition.label.device.type == "cpu"  # of a one-hot vector all but one are zeros
        hidden = F.relu(self._sum_of_weights(condition) if sparse else self.shared(condition.dense))
        assert self.gamma.bias is not None
        assert self.beta.bias is not None
        weight = torch.cat([self.gamma.weight, self.beta.weight])
        bias = torch.cat([self.gamma.bias + 1, self.beta.bias])
        scale, shift = F.conv2d(hidden, weight, bias, padding=self.gamma.padding).chunk(2, dim=1)
        return scale, shift

    def _sum_of_weights(self, condition: Condition) -> Tensor:
        """What `shared` makes of the condition, (B, hidden, H, W): for each pixel the sum of its labels' weights."""
        conv, (B, K, H, W), N = self.shared, condition.label.shape, condition.num_labels
        assert conv.bias is not None
        Z = conv.in_channels - K * N
        table = conv.weight[:, Z:].permute(2, 3, 1, 0).flatten(0, 1)  # (kernel², K·N, hidden)
        if condition.noise is not None:
            noise = condition.noise if condition.noise.ndim == 3 else condition.noise[:, None]  # (B, N or 1, Z)
            drawn = torch.einsum("bnz,hzij->ijbnh", noise, conv.weight[:, :Z]).flatten(0, 1)
            table = torch.cat([(table[:, None, :N] + drawn).flatten(1, 2), table[:, N:]], dim=1)
        if torch.is_autocast_enabled("cpu"):
            table = table.to(torch.get_autocast_dtype("cpu"))
        hidden = SumOfRows.apply(table, condition, conv.kernel_size[0]) + conv.bias.to(table.dtype)
        return hidden.view(B, H, W, -1).permute(0, 3, 1, 2)


class Clade(ConditionedNorm):
    """Class-adaptive normalisation with position map (CLADE-ICPE; Tan et al., TPAMI 2021, sec. 3.2 and 3.3).

    gamma and beta are looked up by class and modulated by the pixel's place in its class:
    out = norm(x) · (1 + G[y]·(1 + a·p)) + B[y]·(1 + b·p), with p the offset to the class's centroid. Noise, which the
    paper does not have, adds a linear map to G and B. In 2.5-D the tables of the neighbours' classes are added.
    A hundredth of SPADE's arithmetic.
    """

    def __init__(self, channels: int, num_labels: int, slices: int, z_dim: int, norm: str) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.norm = param_free_norm(norm, channels)
        self.table = nn.Parameter(torch.zeros(slices, num_labels, 2 * channels))  # gamma, beta by class
        nn.init.normal_(self.table, std=TABLE_STD)
        self.position = nn.Conv2d(2, 2, 1)  # row and column offset -> strength of gamma and of beta
        self.noise = nn.Linear(z_dim, 2 * channels, bias=False) if z_dim else None
        if self.noise is not None:
            nn.init.normal_(self.noise.weight, std=NOISE_STD)

    def modulation(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """See `ConditionedNorm`."""
        B, K, H, W = condition.label.shape
        offset = torch.arange(K, device=condition.label.device)[:, None, None] * self.num_labels
        rows = F.embedding_bag(
            (condition.label + offset).permute(0, 2, 3, 1).reshape(-1, K), self.table.flatten(0, 1), mode="sum"
        )
        both = rows.view(B, H, W, -1).permute(0, 3, 1, 2) if self.noise is None else self._with_noise(rows, condition)
        strength = 1 + self.position(condition.offsets)
        gamma, beta = both.chunk(2, dim=1)
        return 1 + gamma * strength[:, :1], beta * strength[:, 1:]

    def _with_noise(self, rows: Tensor, condition: Condition) -> Tensor:
        B, _, H, W = condition.label.shape
        noise = condition.noise
        assert self.noise is not None
        assert noise is not None
        if noise.ndim == 3:
            batch = torch.arange(B, device=noise.device)[:, None, None]
            added = self.noise(noise)[batch, condition.label[:, 0]]
        else:
            added = self.noise(noise)[:, None, None]
        return (rows.view(B, H, W, -1) + added).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class NormOptions:
    """How every conditioned norm of a generator is built: by the method's options, for num_labels N and z_dim Z.

    tuned: see `Spade`.
    """

    options: GanConfig
    num_labels: int
    z_dim: int
    tuned: bool = True

    @property
    def slices(self) -> int:
        """K: the slice itself and its neighbours."""
        return 1 + 2 * self.options.neighbours

    @property
    def condition_channels(self) -> int:
        """Channels of the dense condition."""
        return self.z_dim + self.slices * self.num_labels

    def make(self, channels: int, own_statistics: bool = True) -> ConditionedNorm:
        """A norm of this many channels; without own statistics it is always given the normalised input."""
        o, beneath = self.options, self.options.param_free_norm if own_statistics else "none"
        if o.norm == "clade":
            return Clade(channels, self.num_labels, self.slices, self.z_dim, beneath)
        return Spade(channels, self.condition_channels, o.spade_hidden, o.spade_ks, beneath, self.tuned)

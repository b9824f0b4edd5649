"""Gaussian mixture by label: intensities drawn per label from priors fitted to training images.

Priors as in SynthSeg (Billot et al., Med. Image Anal. 2023; `build_intensity_stats` of lab2im): per subject a median and
1.4826·MAD for each label, then mean and standard deviation of those over subjects.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from models.base import Batch, Method, SampleRandom
from spec import DataSpec

BINS = 4096  # over [-1, 1]: half a bin is 0.5 HU in the CT window
MAD_TO_STD = 1.4826


class Gmm(Method):
    """I = blur(mean[label] + g · std[label] · noise); mean and std of each label drawn per case from the fitted prior.

    The gain g undoes the blur's loss of variance, so that inside a label the standard deviation is the fitted one.

    Buffers, all (C, N) in model units: mean_center and mean_spread (mean and standard deviation over subjects of the
    labels' means), std_center and std_spread (the same of their standard deviations).
    """

    mean_center: Tensor
    mean_spread: Tensor
    std_center: Tensor
    std_spread: Tensor

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config.gmm, spec
        shape = (spec.num_channels, spec.num_labels)
        for name in ("mean_center", "mean_spread", "std_center", "std_spread"):
            self.register_buffer(name, torch.full(shape, float("nan")))

    def fit(self, batches: Iterable[Batch]) -> None:
        """One pass over the training slices; see `_fill_unseen` for labels that it does not show."""
        histograms: dict[str, Tensor] = {}
        for batch in batches:
            assert batch.image is not None
            for patient, label, image in zip(batch.patients, batch.label, batch.image, strict=True):
                counts = label_histograms(label, image, self.spec.num_labels)
                histograms[patient] = histograms[patient] + counts if patient in histograms else counts
        means, stds = zip(*(histogram_moments(h, self.config.robust) for h in histograms.values()), strict=True)
        self.mean_center, self.mean_spread = _over_subjects(torch.stack(means))
        self.std_center, self.std_spread = _over_subjects(torch.stack(stds))
        self._fill_unseen()

    def _fill_unseen(self) -> None:
        """Labels that no training slice shows get the mean of the others but background, with one warning.

        A single voxel of a rare organ in the test split must not keep the rest from being synthesised.
        """
        unseen = self.mean_center.isnan().any(0)
        if unseen.any():
            names = ", ".join(self.spec.labels[i].name for i in unseen.nonzero().flatten().tolist())
            warnings.warn(f"no training slice shows {names}; the mean of the other labels stands in", stacklevel=2)
            for name, tensor in self.state_dict().items():
                known = tensor[:, 1:] if (~unseen[1:]).any() else tensor
                getattr(self, name)[:, unseen] = known.nanmean(1, keepdim=True)

    def draw(self, random: SampleRandom) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (C, N) of one case, drawn from the prior over subjects."""
        if not self.config.vary:
            return self.mean_center, self.std_center
        noise = torch.randn(2, *self.mean_center.shape, generator=random.case)
        for label, stream in random.labels.items():
            noise[:, :, label] = torch.randn(2, len(self.mean_center), generator=stream)
        noise = noise.to(self.mean_center.device)
        mean = self.mean_center + self.mean_spread * noise[0]
        return mean, (self.std_center + self.std_spread * noise[1]).clamp(min=0)

    @torch.no_grad()
    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]."""
        gain = 1.0 / float((gaussian_kernel(self.config.blur) ** 2).sum())
        images = []
        for label, random in zip(batch.label, randoms, strict=True):
            mean, std = self.draw(random)
            noise = torch.randn(len(mean), *label.shape, generator=random.slice).to(label.device)
            images.append(mean[:, label] + gain * std[:, label] * noise)  # (C, H, W)
        return gaussian_blur(torch.stack(images), self.config.blur).clamp(-1, 1)

    @property
    def resamples(self) -> bool:
        """Labels have priors of their own to draw from, unless the prior's centre is used."""
        return self.config.vary

    def release(self) -> dict[str, Tensor]:
        """The four prior tensors."""
        return self.state_dict()

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load the four prior tensors."""
        self.load_state_dict(tensors)


def label_histograms(label: Tensor, image: Tensor, num_labels: int) -> Tensor:
    """Intensity histograms by label. label (H, W) int64, image (C, H, W) in [-1, 1] -> counts (C, N, BINS) int64."""
    level = ((image + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    index = label * BINS + level  # (C, H, W)
    counts = [torch.bincount(channel.flatten(), minlength=num_labels * BINS) for channel in index]
    return torch.stack(counts).view(len(image), num_labels, BINS)


def histogram_moments(counts: Tensor, robust: bool) -> tuple[Tensor, Tensor]:
    """Centre and spread of each histogram. counts (C, N, BINS) -> two (C, N) tensors; NaN where a label is empty.

    robust: median and 1.4826·MAD; otherwise mean and standard deviation.
    """
    centers = (torch.arange(BINS, device=counts.device, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
    total = counts.sum(-1)
    if robust:
        median = _weighted_median(centers.expand(counts.shape), counts)
        deviation = (centers - median[..., None]).abs()
        order = deviation.argsort(-1)
        mad = _weighted_median(deviation.gather(-1, order), counts.gather(-1, order))
        center, spread = median, MAD_TO_STD * mad
    else:
        weight = counts / total.clamp(min=1)[..., None]
        center = (weight * centers).sum(-1)
        spread = (weight * (centers - center[..., None]) ** 2).sum(-1).sqrt()
    empty = total == 0
    return center.masked_fill(empty, float("nan")).float(), spread.masked_fill(empty, float("nan")).float()


def _weighted_median(values: Tensor, counts: Tensor) -> Tensor:
    """Lower median of sorted `values` (..., n) with multiplicities `counts` (..., n) -> (...)."""
    cumulative = counts.cumsum(-1)
    half = (cumulative[..., -1:] + 1) // 2
    position = torch.searchsorted(cumulative, half.clamp(min=1)).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, position).squeeze(-1)


def _over_subjects(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over subjects that show the label. (S, C, N) -> two (C, N); one subject: spread 0."""
    known = ~values.isnan()
    n = known.sum(0)
    mean = values.nanmean(0)
    squares = torch.where(known, (values - mean) ** 2, torch.zeros_like(values)).sum(0)
    spread = (squares / (n - 1).clamp(min=1)).sqrt()
    return mean, torch.where(n > 0, spread, mean)


def gaussian_kernel(sigma: float) -> Tensor:
    """Normalised 1-D Gaussian out to three standard deviations; a single 1 for sigma 0."""
    radius = max(1, round(3 * sigma)) if sigma > 0 else 0
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / max(sigma, 1e-6)) ** 2)
    return kernel / kernel.sum()


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with replicated edges. image (B, C, H, W), sigma in pixels; 0 returns the image."""
    kernel = gaussian_kernel(sigma).to(image)
    radius = len(kernel) // 2
    B, C, H, W = image.shape
    flat = F.pad(image.reshape(B * C, 1, H, W), (radius,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view(B, C, H, W)

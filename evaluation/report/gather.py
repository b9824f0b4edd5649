"""One pass over the images of all methods: intensities by label and power spectra, which the plots need."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import Case, Slice
from dataloaders.io.png import as_16_bit, read_slice
from evaluation.compare import Entrant
from evaluation.metrics.spectrum import SMALLEST_SIDE, CaseSpectrum
from evaluation.pairs import View, paired_slices, view_of

BINS = 2048  # of the intensity histograms: 2 HU in the CT window


@dataclass(frozen=True)
class Distributions:
    """Histograms (N labels, BINS) of one channel in physical units [low, high]: the real images' and each method's."""

    low: float
    high: float
    real: NDArray[np.int64]
    generated: tuple[NDArray[np.int64], ...]

    @property
    def values(self) -> NDArray[np.float64]:
        """Centres of the bins, (BINS,)."""
        return np.asarray(self.low + (np.arange(BINS) + 0.5) * ((self.high - self.low) / BINS), np.float64)


@dataclass(frozen=True)
class Spectra:
    """Radial power spectra of one channel, one row per case: (cases, bins), in (unit)²·mm²; frequencies in cycles/mm."""

    frequencies: NDArray[np.float64]
    real: NDArray[np.float64]
    generated: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Picture:
    """One slice and channel: label ids, and 16-bit levels of the real and of each method's image, all (H, W)."""

    label: NDArray
    real: NDArray[np.uint16]
    generated: tuple[NDArray[np.uint16], ...]


def read_label(entrant: Entrant, item: Slice) -> NDArray:
    """Label map of a slice, 0 where there is none."""
    if not item.label:
        return np.zeros(entrant.spec.size, np.uint8)
    return read_slice(entrant.folder / item.label, entrant.spec)


def read_picture(entrants: Sequence[Entrant], case: Case, item: Slice, channel: int, label: NDArray) -> Picture:
    """One channel of a slice in all methods."""

    def read(entrant: Entrant, path: str) -> NDArray[np.uint16]:
        return as_16_bit(read_slice(entrant.folder / path, entrant.spec, image_only=True))

    real = read(entrants[0], item.images[channel])
    fakes = tuple(read(e, e.slice(case.id, item.index).generated[channel]) for e in entrants)
    return Picture(label, real, fakes)


def pictures(entrants: Sequence[Entrant]) -> Iterator[tuple[Case, Slice, int, Picture]]:
    """All slices, by case and index, each channel after the other; every file is read once."""
    for case in entrants[0].manifest.cases:
        for item in sorted(paired_slices(case), key=lambda item: item.index):
            label = read_label(entrants[0], item)
            for channel in range(len(item.images)):
                yield case, item, channel, read_picture(entrants, case, item, channel, label)


class _Channel:
    """Sums of one channel."""

    def __init__(self, windows: Sequence[Window], labels: int, methods: int) -> None:
        self.low, self.high = min(w.low for w in windows), max(w.high for w in windows)
        self.counts = np.zeros((1 + methods, labels * BINS), np.int64)
        self.cases: dict[str, list[CaseSpectrum]] = {}

    def add(self, case: Case, window: Window, picture: Picture, view: View, spacing: tuple[float, float]) -> None:
        """One slice. view: its part without padding, which has no texture. spacing: mm between rows, between columns."""
        lookup = _bin_of_level(window, self.low, self.high)
        labels = picture.label.astype(np.int64) * BINS
        for counts, levels in zip(self.counts, (picture.real, *picture.generated), strict=True):
            counts += np.bincount((labels + lookup[levels]).ravel(), minlength=len(counts))
        if min(picture.real[view].shape) >= SMALLEST_SIDE:
            real = window.decode(picture.real[view])
            spectra = self.cases.setdefault(case.id, [CaseSpectrum(spacing) for _ in picture.generated])
            for spectrum, levels in zip(spectra, picture.generated, strict=True):
                spectrum.add(real, window.decode(levels[view]))

    def gathered(self) -> tuple[Distributions, Spectra | None]:
        """All of it; no spectra where slices are too small for any."""
        counts = self.counts.reshape(len(self.counts), -1, BINS)
        found = Distributions(self.low, self.high, counts[0], tuple(counts[1:]))
        if not self.cases:
            return found, None
        of_cases = [*self.cases.values()]
        shown = min((spectra[0].frequencies for spectra in of_cases), key=lambda own: own[-1])  # all cases reach them
        real = np.stack([_curve_at(shown, spectra[0], 0) for spectra in of_cases])
        methods = range(len(of_cases[0]))
        generated = tuple(np.stack([_curve_at(shown, spectra[i], 1) for spectra in of_cases]) for i in methods)
        return found, Spectra(shown, real, generated)


def gather(entrants: Sequence[Entrant]) -> list[tuple[Distributions, Spectra | None]]:
    """One entry per channel."""
    spec, cases = entrants[0].spec, entrants[0].manifest.cases
    channels = [
        _Channel([case.windows[c] for case in cases], spec.num_labels, len(entrants)) for c in range(spec.num_channels)
    ]
    for case, _, channel, picture in pictures(entrants):
        view = view_of(spec.axis, case, picture.real.shape)
        channels[channel].add(case, case.windows[channel], picture, view, entrants[0].spacing(case)[1:])
    return [channel.gathered() for channel in channels]


def _curve_at(frequencies: NDArray, spectrum: CaseSpectrum, side: int) -> NDArray[np.float64]:
    """The real (0) or generated (1) curve of a case at frequencies of another pixel size; its own as they are."""
    own, curve = spectrum.frequencies, spectrum.curves[side]
    if np.allclose(own, frequencies, rtol=1e-6):
        return curve
    known = np.isfinite(curve)
    return np.interp(frequencies, own[known], curve[known])


@functools.lru_cache(maxsize=8)
def _bin_of_level(window: Window, low: float, high: float) -> NDArray[np.int32]:
    """(65536,) lookup from a 16-bit level to a bin of [low, high]."""
    values = window.decode(np.arange(LEVELS + 1)).astype(np.float64)
    return np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.int32)

"""Intensity priors of the generator from real images and their label maps; what scripts/estimate_priors.py does.

As lab2im's `build_intensity_stats`: each image is rescaled to 0-255 between its 2nd and 98th percentile, each class has a
median and 1.4826·MAD in it (or mean and standard deviation), and the prior is their mean and spread over subjects. The
percentiles count all voxels: where a head is small in its image, the upper one lies within the brain and cuts it off, so
that they can be chosen here.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dataloaders.geometry import AFFINE_TOLERANCE, to_ras
from dataloaders.image_generator import as_array
from dataloaders.label_schemes import read_scheme
from dataloaders.nifti import SUFFIXES, file_sha256, read_volume, stem, whole_numbers
from dataloaders.sources import CaseSource, find_pairs
from engine.files import atomic_path, write_json
from models.gmm.labels import LabelScheme, find_values
from models.gmm.priors import SCALE, FittedPrior, pool_subjects, subject_statistics

SCHEMA = "medsis-priors/1"


class SourceFaults(ValueError):  # noqa: N818 (several faults, one error)
    """What is wrong with the subjects, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Priors of a contrast, for the GMM generator, from images of that contrast and their label maps."""

    images: str
    """Folder, file or quoted glob of images (.nii, .nii.gz); names ending in _0000, _0001, ... are channels."""
    labels: str
    """Folder, file or quoted glob of their label maps, paired by file name."""
    out: Path
    """File to write; generate.py --priors and train.py --model gmm --gmm.priors read it."""
    channel: tuple[str, ...] = ()
    """Names of the channels, in order, e.g. T1w FLAIR; by default image, or channel_0, channel_1, ..."""
    scheme: str = "auto"
    """What the labels are: auto, freesurfer, feta, seeds, a .json file of label fields, or a prepared data folder."""
    generation_labels: Path | None = None
    """.npy file of every label that occurs, in SynthSeg's order, instead of --scheme."""
    generation_classes: Path | None = None
    """.npy file: intensity class of each of generation_labels; by default each its own."""
    robust: bool = True
    """Median and 1.4826 x MAD of each class instead of mean and standard deviation."""
    percentiles: tuple[float, float] = (2.0, 98.0)
    """Percentiles of each whole image that become 0 and 255; 0 99.9 where the head is small in the image."""
    arrays: Path | None = None
    """Also write <arrays>_means.npy and <arrays>_stds.npy, as lab2im and SynthSeg read them (normal priors)."""
    case_regex: str | None = None
    """Regular expression whose first group is the subject within a file's stem, where names do not agree by themselves."""
    num_workers: int = 0
    """Processes; 0 works in this one. Does not change the result."""


@dataclass(frozen=True)
class SubjectStatistics:
    """One subject: centre and spread of every class on 0-255, (C, K), NaN where unseen, and where they come from."""

    id: str
    centers: Tensor
    spreads: Tensor
    sources: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, null for unseen classes."""

        def table(values: Tensor) -> list[list[float | None]]:
            return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]

        tables = {"means": table(self.centers), "stds": table(self.spreads)}
        return {"id": self.id, "sources": self.sources, **tables}


@dataclass(frozen=True)
class EstimatedPriors:
    """The prior, and all that it was made from."""

    prior: FittedPrior
    channels: tuple[str, ...]
    scheme: LabelScheme
    subjects: tuple[SubjectStatistics, ...]
    robust: bool
    percentiles: tuple[float, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of `FittedPrior.to_dict` and the tables of the subjects."""
        return {
            "schema": SCHEMA,
            **self.prior.to_dict(self.channels, self.scheme.class_names),
            "robust": self.robust,
            "percentiles": list(self.percentiles),
            "scheme": self.scheme.to_dict(),
            "subjects": [subject.to_dict() for subject in self.subjects],
        }

    def table(self) -> str:
        """For the console: mean ± spread over subjects of the means and of the standard deviations, by channel, class."""
        names, p = self.scheme.class_names, self.prior
        width = max(len(name) for name in names)
        lines = []
        for c, channel in enumerate(self.channels):
            lines.append(f"{channel}, 0-255, {len(self.subjects)} subjects")
            lines.append(f"  {'class':<{width}}  {'mean':>15}  {'std':>15}  seen in")
            for k, name in enumerate(names):
                mean = f"{p.mean_center[c, k]:6.1f} ± {p.mean_spread[c, k]:6.1f}"
                std = f"{p.std_center[c, k]:6.1f} ± {p.std_spread[c, k]:6.1f}"
                seen = sum(not bool(subject.centers[c, k].isnan()) for subject in self.subjects)
                lines.append(f"  {name:<{width}}  {mean:>15}  {std:>15}  {seen}")
        return "\n".join(lines)


def estimate_priors(o: PriorOptions) -> EstimatedPriors:
    """Measure all subjects, pool them, write the files.

    SourceFaults lists every subject without a partner, on different grids, or with labels that the scheme lacks;
    ValueError for options that do not fit.
    """
    if o.num_workers < 0:
        raise ValueError(f"--num_workers {o.num_workers}: must be at least 0")
    if o.out.suffix != ".json":
        raise ValueError(f"--out {o.out}: must end in .json")
    if not 0 <= o.percentiles[0] < o.percentiles[1] <= 100:
        raise ValueError(f"--percentiles {o.percentiles[0]:g} {o.percentiles[1]:g}: must be low and high, in 0..100")
    cases, channels = find_subjects(o)
    scheme = _scheme(o, cases)
    subjects, faults = [], []
    for found in _measure_all([(case, channels, scheme, o.robust, o.percentiles) for case in cases], o.num_workers):
        if isinstance(found, SubjectStatistics):
            subjects.append(found)
        else:
            faults.append(found)
    if faults:
        raise SourceFaults(faults)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        centers, spreads = torch.stack([s.centers for s in subjects]), torch.stack([s.spreads for s in subjects])
        prior = pool_subjects(centers, spreads, scheme.class_names)
    notes = [str(warning.message) for warning in caught]
    if len(subjects) == 1:
        notes.append("one subject says nothing about how subjects differ: the spreads over subjects are 0")
    notes += _cut_off(prior, channels, scheme, o.percentiles)
    result = EstimatedPriors(prior, channels, scheme, tuple(subjects), o.robust, o.percentiles, tuple(notes))
    write_json(o.out, result.to_dict())
    if o.arrays is not None:
        for name, array in zip(("means", "stds"), prior.to_arrays(), strict=True):
            write_array(o.arrays.with_name(f"{o.arrays.name}_{name}.npy"), array)
    return result


def _cut_off(
    prior: FittedPrior, channels: Sequence[str], scheme: LabelScheme, percentiles: tuple[float, float]
) -> list[str]:
    """A line for each channel of which whole classes lie at the upper limit in all subjects."""
    notes = []
    for channel, centers, stds in zip(channels, prior.mean_center, prior.std_center, strict=True):
        lost = ((centers > SCALE - 0.1) & (stds < 0.2)).nonzero().flatten().tolist()
        if lost and percentiles[1] < 100:
            names = ", ".join(scheme.class_names[k] for k in lost)
            notes.append(
                f"{channel}: above the {percentiles[1]:g} % percentile in all subjects, so of no contrast: {names}; "
                "a higher one, such as --percentiles 0 99.9, keeps them"
            )
    return notes


def write_array(path: Path, array: NDArray) -> None:
    """Write a .npy file atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def find_subjects(o: PriorOptions) -> tuple[list[CaseSource], tuple[str, ...]]:
    """Images and label maps in pairs, and the names of the channels. SourceFaults where files lack a partner."""
    images, labels = _files(o.images, "--images"), _files(o.labels, "--labels")
    suffixes = [re.fullmatch(r".+_(\d{4})", stem(path)) for path in images]
    numbers = sorted({match[1] for match in suffixes if match})
    if not numbers or not all(suffixes):
        channels = o.channel or ("image",)
        _check_channels(channels, 1, o.images)
        if len(images) == len(labels) == 1:  # whatever their names
            return [CaseSource(stem(images[0]), stem(images[0]), (images[0],), labels[0])], channels
        return _faultless(o, channels[0], o.images, o.case_regex), channels
    channels = o.channel or tuple(f"channel_{int(number)}" for number in numbers)
    _check_channels(channels, len(numbers), o.images)
    folder = Path(o.images) if Path(o.images).is_dir() else Path(o.images).parent
    regex = o.case_regex or r"^(.+?)(?:_\d{4})?$"
    by_channel = [
        _faultless(o, name, str(folder / f"*_{number}.nii*"), regex)
        for name, number in zip(channels, numbers, strict=True)
    ]
    cases = []
    for together in zip(*by_channel, strict=True):  # every label map has every channel, so the lists agree
        cases.append(
            CaseSource(together[0].id, together[0].id, tuple(c.images[0] for c in together), together[0].label)
        )
    return cases, channels


def _files(where: str, flag: str) -> list[Path]:
    path = Path(where)
    found = list(path.iterdir()) if path.is_dir() else [Path(name) for name in glob.glob(where, recursive=True)]
    files = sorted(file for file in found if file.name.endswith(SUFFIXES) and not file.name.startswith("."))
    if not files:
        raise ValueError(f"{flag} {where}: no .nii or .nii.gz files")
    return files


def _check_channels(channels: Sequence[str], count: int, where: str) -> None:
    if len(channels) != count:
        raise ValueError(
            f"--channel has {len(channels)} names ({' '.join(channels)}), --images {where} {count} channels"
        )


def _faultless(o: PriorOptions, channel: str, images: str, regex: str | None) -> list[CaseSource]:
    found = find_pairs(images, o.labels, channel, regex, None)
    if found.faults:
        raise SourceFaults(found.faults)
    return found.cases


def _scheme(o: PriorOptions, cases: Sequence[CaseSource]) -> LabelScheme:
    if o.generation_labels is not None:
        if o.scheme != "auto":
            raise ValueError(f"--generation_labels and --scheme {o.scheme} cannot both be given")
        return LabelScheme.from_lists(as_array(o.generation_labels), as_array(o.generation_classes))
    if o.generation_classes is not None:
        raise ValueError("--generation_classes needs --generation_labels, whose order it follows")
    values: set[int] = set()
    if o.scheme in ("auto", "freesurfer", "seeds"):
        for case in tqdm(cases, "read label maps", disable=None, leave=False):
            assert case.label is not None
            values |= set(find_values([torch.from_numpy(_label(case.label)[0])]))
    return read_scheme(o.scheme, values)


def _label(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    volume = read_volume(path)
    label, affine = to_ras(whole_numbers(path, volume.data), volume.affine)
    return np.ascontiguousarray(label), affine


def _measure_all(jobs: list[tuple], workers: int) -> list[SubjectStatistics | str]:
    """In the order of the jobs: statistics, or the fault of a subject."""
    if min(workers, len(jobs)) < 1:
        return [_measure_or_fault(*job) for job in tqdm(jobs, "measure", disable=None, leave=False)]
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_measure_or_fault, *job) for job in jobs]
        try:
            return [future.result() for future in tqdm(futures, "measure", disable=None, leave=False)]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _measure_or_fault(
    case: CaseSource,
    channels: tuple[str, ...],
    scheme: LabelScheme,
    robust: bool,
    percentiles: tuple[float, float],
) -> SubjectStatistics | str:
    try:
        return measure(case, channels, scheme, robust, percentiles)
    except (ValueError, OSError) as error:
        text = str(error)
        return text if any(str(path) in text for path in case.files(channels).values()) else f"{case.id}: {text}"


def measure(
    case: CaseSource,
    channels: tuple[str, ...],
    scheme: LabelScheme,
    robust: bool = True,
    percentiles: tuple[float, float] = (2.0, 98.0),
) -> SubjectStatistics:
    """Statistics of one subject, its files brought to RAS axes.

    ValueError where image and label map are not on one grid, naming shapes or the distance of the affines.
    """
    assert case.label is not None
    label, grid = _label(case.label)
    images = []
    for path in case.images:
        volume = read_volume(path)
        image, affine = to_ras(volume.data, volume.affine)
        if image.shape != label.shape:
            raise ValueError(
                f"{path} and {case.label} differ in shape in RAS axes, {image.shape} and {label.shape}; "
                "resample one to the other's grid"
            )
        distance = float(np.abs(affine - grid).max())
        if distance > AFFINE_TOLERANCE:
            raise ValueError(
                f"{path} and {case.label} differ in their affines by {distance:.4g}; resample one to the other's grid"
            )
        images.append(torch.from_numpy(np.ascontiguousarray(image, np.float32)))
    index = scheme.to_index(torch.from_numpy(label))
    centers, spreads = subject_statistics(torch.stack(images), index, scheme, robust, percentiles)
    sources = {role: {"file": path.name, "sha256": file_sha256(path)} for role, path in case.files(channels).items()}
    return SubjectStatistics(case.id, centers, spreads, sources)

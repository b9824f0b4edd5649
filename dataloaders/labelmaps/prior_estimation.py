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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloaders.io.files import atomic_path, write_json
from dataloaders.io.find import files_in, without_twins
from dataloaders.io.geometry import off_grid, to_ras
from dataloaders.io.nifti import SUFFIXES, file_sha256, read_volume, stem, whole_numbers
from dataloaders.io.progress import tracked
from dataloaders.io.workers import in_order
from dataloaders.labelmaps.lab2im import as_array
from dataloaders.labelmaps.schemes import read_scheme
from dataloaders.prepare.sources import CaseSource, find_pairs
from models.gmm.intensity import FULL_SCALE
from models.gmm.labels import LabelScheme, find_values
from models.gmm.priors import FittedPrior, pool_subjects, subject_statistics

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
    """Folder, file or quoted glob of images (.nii, .nii.gz, .mgz); names ending in _0000, _0001, ... are channels."""
    labels: str
    """Folder, file or quoted glob of their label maps, paired by file name."""
    out: Path
    """File to write; generate.py --priors and train.py --model gmm --gmm.priors read it."""
    channel: tuple[str, ...] = ()
    """Names of the channels, in order, e.g. T1w FLAIR; by default image, or channel_0, channel_1, ..."""
    scheme: str = "auto"
    """What the labels are: auto, seeds, a table by name or file as --label_map of prepare_data.py, or a prepared folder."""
    generation_labels: Path | None = None
    """.npy file of every label that occurs, in SynthSeg's order, instead of --scheme."""
    generation_classes: Path | None = None
    """.npy file: intensity class of each of generation_labels; by default each its own."""
    robust: bool = True
    """Median and 1.4826 x MAD of each class instead of mean and standard deviation."""
    percentiles: tuple[float, float] = (2.0, 98.0)
    """Percentiles of each whole image that become 0 and 255; 0 99.9 where the head is small in the image."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 and 255 in every image, instead of percentiles; for CT, such as -1000 1000."""
    arrays: Path | None = None
    """Also write <arrays>_means.npy and <arrays>_stds.npy, as lab2im and SynthSeg read them (normal priors)."""
    case_regex: str | None = None
    """Regular expression whose first group is the subject within a file's stem, where names do not agree by themselves."""
    num_workers: int = 0
    """Processes; 0 works in this one. Does not change the result."""


@dataclass(frozen=True)
class Scale:
    """What becomes 0 and 255: intensities `window`, or else percentiles of each image."""

    percentiles: tuple[float, float] = (2.0, 98.0)
    window: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, list[float]]:
        """Of the two what counts, for JSON."""
        return {"percentiles": list(self.percentiles)} if self.window is None else {"window": list(self.window)}


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
    scale: Scale
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of `FittedPrior.to_dict` and the tables of the subjects."""
        return {
            "schema": SCHEMA,
            **self.prior.to_dict(self.channels, self.scheme.class_names),
            "robust": self.robust,
            "scale": self.scale.to_dict(),
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
    if o.window is not None and not o.window[0] < o.window[1]:
        raise ValueError(f"--window {o.window[0]:g} {o.window[1]:g}: must be low and high")
    scale = Scale(o.percentiles, o.window)
    cases, channels, skipped = find_subjects(o)
    scheme = _scheme(o, cases)
    jobs = [(case, channels, scheme, o.robust, scale) for case in cases]
    subjects, faults = [], []
    for found in in_order(_measure_or_fault, jobs, o.num_workers, "measure"):
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
    notes = [*skipped, *(str(warning.message) for warning in caught)]
    if len(subjects) == 1:
        notes.append("one subject says nothing about how subjects differ: the spreads over subjects are 0")
    notes += _cut_off(prior, channels, scheme, scale)
    result = EstimatedPriors(prior, channels, scheme, tuple(subjects), o.robust, scale, tuple(notes))
    write_json(o.out, result.to_dict())
    if o.arrays is not None:
        for name, array in zip(("means", "stds"), prior.to_arrays(), strict=True):
            write_array(o.arrays.with_name(f"{o.arrays.name}_{name}.npy"), array)
    return result


def _cut_off(prior: FittedPrior, channels: Sequence[str], scheme: LabelScheme, scale: Scale) -> list[str]:
    """A line for each channel of which whole classes lie at the upper limit in all subjects."""
    notes = []
    if scale.window is None:
        limit = f"the {scale.percentiles[1]:g} % percentile"
        remedy = "a higher one, such as --percentiles 0 99.9, keeps them"
    else:
        limit, remedy = f"--window's {scale.window[1]:g}", "a wider window keeps them"
    for channel, centers, stds in zip(channels, prior.mean_center, prior.std_center, strict=True):
        lost = ((centers > FULL_SCALE - 0.1) & (stds < 0.2)).nonzero().flatten().tolist()
        if lost and (scale.window is not None or scale.percentiles[1] < 100):
            names = ", ".join(scheme.class_names[k] for k in lost)
            notes.append(f"{channel}: above {limit} in all subjects, so of no contrast: {names}; {remedy}")
    return notes


def write_array(path: Path, array: NDArray) -> None:
    """Write a .npy file atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def find_subjects(o: PriorOptions) -> tuple[list[CaseSource], tuple[str, ...], list[str]]:
    """Images and label maps in pairs, the names of the channels, and a line for each file that is left out.

    SourceFaults where files lack a partner, but for those of BIDS data sets, which are left out.
    """
    images, labels = _files(o.images, "--images"), _files(o.labels, "--labels")
    suffixes = [re.fullmatch(r".+_(\d{4})", stem(path)) for path in images]
    numbers = sorted({match[1] for match in suffixes if match})
    if not numbers or not all(suffixes):
        channels = o.channel or ("image",)
        _check_channels(channels, 1, o.images)
        if len(images) == len(labels) == 1:  # whatever their names
            return [CaseSource(stem(images[0]), stem(images[0]), (images[0],), labels[0])], channels, []
        if o.case_regex is None and (found := _bids_pairs(images, labels)) is not None:
            return found[0], channels, found[1]
        return _faultless(o, channels[0], o.images, o.case_regex), channels, []
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
    return cases, channels, []


def _bids_pairs(images: Sequence[Path], labels: Sequence[Path]) -> tuple[list[CaseSource], list[str]] | None:
    """Pairs by make_seeds' rule: ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``.

    Returns the pairs and a line for each file without a partner; None where the label maps have other names.
    SourceFaults for a label map with several images, and where there is no pair.
    """
    maps = [path for path in labels if re.fullmatch(r"sub-[A-Za-z0-9]+_(.+_)?dseg", stem(path))]
    if not maps or not {*labels} - {*maps} <= {*images}:
        return None
    pictures = {stem(path): path for path in images if not re.search(r"_(dseg|mask|probseg)$", stem(path))}
    names = {stem(path).removesuffix("_dseg"): path for path in maps}
    partners: dict[str, list[str]] = {name: [] for name in names}
    skipped = []
    for image, path in pictures.items():
        owner = next((name for name in (image, image.rpartition("_")[0]) if name in names), None)
        if owner is None:
            skipped.append(f"{path}: no label map {image}_dseg or {image.rpartition('_')[0]}_dseg, left out")
        else:
            partners[owner].append(image)
    cases, faults = [], []
    for name, same in partners.items():
        if len(same) > 1:
            faults.append(
                f"{names[name]}: {len(same)} images belong to it, {', '.join(same)}; give --images 'DIR/*_T2w.nii*'"
            )
        elif same:
            cases.append(CaseSource(same[0], same[0].partition("_")[0], (pictures[same[0]],), names[name]))
        else:
            skipped.append(f"{names[name]}: no image for this label map, left out")
    if faults or not cases:
        raise SourceFaults(faults or skipped)
    return cases, skipped


def _files(where: str, flag: str) -> list[Path]:
    path = Path(where)
    found = files_in(path, SUFFIXES) if path.is_dir() else [Path(name) for name in glob.glob(where, recursive=True)]
    if path.is_dir() and not found:  # a BIDS data set
        found = [*path.glob("sub-*/anat/*"), *path.glob("sub-*/ses-*/anat/*")]
    files = sorted(file for file in found if file.name.endswith(SUFFIXES) and not file.name.startswith("."))
    if not files:
        raise ValueError(f"{flag} {where}: no {', '.join(SUFFIXES)} files")
    return without_twins(files)


def _check_channels(channels: Sequence[str], count: int, where: str) -> None:
    if len(channels) != count:
        raise ValueError(
            f"--channel has {len(channels)} names ({' '.join(channels)}), --images {where} {count} channels"
        )


def _faultless(o: PriorOptions, channel: str, images: str, regex: str | None) -> list[CaseSource]:
    found = find_pairs(images, o.labels, channel, regex)
    if found.faults:
        raise SourceFaults(found.faults)
    return found.cases


def _scheme(o: PriorOptions, cases: Sequence[CaseSource]) -> LabelScheme:
    if o.generation_labels is not None:
        if o.scheme != "auto":
            raise ValueError(f"--generation_labels and --scheme {o.scheme} cannot both be given")
        return LabelScheme.from_lists(
            as_array(o.generation_labels, "--generation_labels"), as_array(o.generation_classes, "--generation_classes")
        )
    if o.generation_classes is not None:
        raise ValueError("--generation_classes needs --generation_labels, whose order it follows")
    values: set[int] = set()
    if o.scheme != "feta" and not Path(o.scheme).is_dir() and Path(o.scheme).suffix != ".json":
        for case in tracked(cases, "read label maps"):
            assert case.label is not None
            values |= set(find_values([torch.from_numpy(_label(case.label)[0])]))
    return read_scheme(o.scheme, values)


def _label(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    volume = read_volume(path)
    label, affine = to_ras(whole_numbers(path, volume.data), volume.affine)
    return np.ascontiguousarray(label), affine


def _measure_or_fault(
    case: CaseSource,
    channels: tuple[str, ...],
    scheme: LabelScheme,
    robust: bool,
    scale: Scale,
) -> SubjectStatistics | str:
    try:
        return measure(case, channels, scheme, robust, scale)
    except (ValueError, OSError) as error:
        text = str(error)
        return text if any(str(path) in text for path in case.files(channels).values()) else f"{case.id}: {text}"


def measure(
    case: CaseSource,
    channels: tuple[str, ...],
    scheme: LabelScheme,
    robust: bool = True,
    scale: Scale = Scale(),
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
        if fault := off_grid(image.shape, affine, label.shape, grid, case.label):
            raise ValueError(f"{path}: in RAS axes: {fault}; resample one to the other's grid")
        if volume.missing is not None and (
            missing := int((to_ras(volume.missing, volume.affine)[0] & (label > 0)).sum())
        ):
            raise ValueError(f"{path}: {missing} labelled voxels are NaN or infinite")
        images.append(torch.from_numpy(np.ascontiguousarray(image, np.float32)))
    index = scheme.to_index(torch.from_numpy(label))
    centers, spreads = _statistics(torch.stack(images), index, scheme, robust, scale)
    sources = {role: {"file": path.name, "sha256": file_sha256(path)} for role, path in case.files(channels).items()}
    return SubjectStatistics(case.id, centers, spreads, sources)


def _statistics(image: Tensor, index: Tensor, scheme: LabelScheme, robust: bool, scale: Scale) -> tuple[Tensor, Tensor]:
    """`subject_statistics` in a window or between percentiles."""
    if scale.window is None:
        return subject_statistics(image, index, scheme, robust, scale.percentiles)
    # Two more voxels at the window's ends, of a class of their own, make it the range between percentiles 0 and 100.
    ends = torch.tensor(scale.window).expand(len(image), 2)
    values = torch.cat([image.flatten(1).clamp(*scale.window), ends], 1)
    wider = scheme.add_lesion(name="ends of the window")
    labels = torch.cat([index.flatten().to(wider.index_dtype), torch.full((2,), scheme.num_labels)])
    centers, spreads = subject_statistics(values, labels, wider, robust, (0.0, 100.0))
    return centers[:, :-1], spreads[:, :-1]

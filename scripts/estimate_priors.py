"""Intensity priors from real images: ``python scripts/estimate_priors.py --images DIR --labels DIR --out priors.json``.

As lab2im's `build_intensity_stats`: each image is rescaled to 0-255 between its 2nd and 98th percentile, each class has a
median and 1.4826·MAD in it (or mean and standard deviation), and the prior is their mean and spread over subjects. The
percentiles count all voxels: where a head is small in its image, the upper one lies within the brain and cuts it off, so
that they can be chosen here.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import numpy as np
import torch
from torch import Tensor

from dataloaders.io.console import tracked
from dataloaders.io.file_names import first_group, shows_channels
from dataloaders.io.files import atomic_path, file_sha256, listed, naming, with_path, write_json
from dataloaders.io.find import anatomical, case_names, files_below, find_files, label_pairs, without_twins
from dataloaders.io.geometry import onto_grid
from dataloaders.io.nifti import SUFFIXES, read_ids, read_volume, stem
from dataloaders.io.schema import AtLeast0, LowHigh, Must, check, options_of
from dataloaders.io.workers import in_order
from dataloaders.labelmaps.labels import count_labels
from dataloaders.labelmaps.schemes import scheme_of_options
from dataloaders.prepare.sources import CaseSource, Found, by_id, find_pairs, pair_cases
from engine.command import exit_code
from models.gmm.intensity import FULL_SCALE
from models.gmm.priors import FittedPrior, pool_subjects, subject_statistics
from models.gmm.scheme import LabelScheme

SCHEMA = "medsis-priors/1"
_NO_SCANS = ("_dseg", "_mask", "_probseg")


class SourceFaults(ValueError):  # noqa: N818 (several faults, one error)
    """What is wrong with the subjects, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


Percentiles = Annotated[tuple[float, float], Must("low and high, in 0..100", lambda v: 0 <= v[0] < v[1] <= 100)]


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Priors of a contrast, for the GMM generator, from images of that contrast and their label maps."""

    images: str
    """Folder, file or quoted glob of images (.nii, .nii.gz, .mgz); names ending in _0000, _0001, ... are channels
    where they end alike in all subjects, or a label map has the name without."""
    labels: str
    """Folder, file or quoted glob of their label maps, paired by file name."""
    out: Annotated[Path, Must("a file ending in .json", lambda path: path.suffix == ".json")]
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
    percentiles: Percentiles = (2.0, 98.0)
    """Percentiles of each whole image that become 0 and 255; 0 99.9 where the head is small in the image."""
    window: LowHigh | None = None
    """Intensities that become 0 and 255 in every image, instead of percentiles; for CT, such as -1000 1000."""
    arrays: Path | None = None
    """Also write <arrays>_means.npy and <arrays>_stds.npy, as lab2im and SynthSeg read them (normal priors)."""
    case_regex: str | None = None
    """Regular expression whose first group is the subject within a file's stem, where names do not agree by themselves."""
    num_workers: AtLeast0 = 0
    """Processes; 0 works in this one. Does not change the result."""


@dataclass(frozen=True)
class Subject:
    """One subject: centre and spread of every class on 0-255, (C, K), NaN where unseen, and where they come from."""

    id: str
    centers: Tensor
    spreads: Tensor
    sources: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, null for unseen classes."""

        tables = {"means": self.centers.tolist(), "stds": self.spreads.tolist()}
        plain = {
            name: [[None if np.isnan(value) else value for value in row] for row in table]
            for name, table in tables.items()
        }
        return {"id": self.id, "sources": self.sources, **plain}


@dataclass(frozen=True)
class EstimatedPriors:
    """The prior, and all that it was made from; notes: what to know about it, one line each."""

    prior: FittedPrior
    channels: tuple[str, ...]
    scheme: LabelScheme
    subjects: tuple[Subject, ...]
    notes: tuple[str, ...]

    def to_dict(self, o: PriorOptions) -> dict[str, Any]:
        """Plain values for JSON: those of `FittedPrior.to_dict` and the tables of the subjects."""
        scale = {"percentiles": list(o.percentiles)} if o.window is None else {"window": list(o.window)}
        return {
            "schema": SCHEMA,
            **self.prior.to_dict(self.channels, self.scheme.class_names),
            "robust": o.robust,
            "scale": scale,
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
    check(o)
    cases, channels, skipped = find_subjects(o)
    scheme = _scheme(o, cases)
    found = list(in_order(_measure_or_fault, [(case, channels, scheme, o) for case in cases], o.num_workers, "measure"))
    if faults := [item for item in found if isinstance(item, str)]:
        raise SourceFaults(faults)
    subjects = [item for item in found if isinstance(item, Subject)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        centers, spreads = torch.stack([s.centers for s in subjects]), torch.stack([s.spreads for s in subjects])
        prior = pool_subjects(centers, spreads, scheme.class_names)
    notes = [*skipped, *(str(warning.message) for warning in caught)]
    if len(subjects) == 1:
        notes.append("one subject says nothing about how subjects differ: the spreads over subjects are 0")
    notes += _cut_off(prior, channels, scheme, o)
    result = EstimatedPriors(prior, channels, scheme, tuple(subjects), tuple(notes))
    write_json(o.out, result.to_dict(o))
    if o.arrays is not None:
        for name, array in zip(("means", "stds"), prior.to_arrays(), strict=True):
            with atomic_path(o.arrays.with_name(f"{o.arrays.name}_{name}.npy")) as temporary:
                np.save(temporary, array)
    return result


def _cut_off(prior: FittedPrior, channels: Sequence[str], scheme: LabelScheme, o: PriorOptions) -> list[str]:
    """A line for each channel of which whole classes lie at the upper limit in all subjects."""
    if o.window is not None:
        limit, remedy = f"--window's {o.window[1]:g}", "a wider window keeps them"
    elif o.percentiles[1] < 100:
        limit = f"the {o.percentiles[1]:g} % percentile"
        remedy = "a higher one, such as --percentiles 0 99.9, keeps them"
    else:
        return []
    notes = []
    for channel, centers, stds in zip(channels, prior.mean_center, prior.std_center, strict=True):
        if lost := ((centers > FULL_SCALE - 0.1) & (stds < 0.2)).nonzero().flatten().tolist():
            names = ", ".join(scheme.class_names[k] for k in lost)
            notes.append(f"{channel}: above {limit} in all subjects, so of no contrast: {names}; {remedy}")
    return notes


def find_subjects(o: PriorOptions) -> tuple[list[CaseSource], tuple[str, ...], list[str]]:
    """Images and label maps in pairs, the names of the channels, and a line for each file that is left out.

    SourceFaults where files lack a partner, but for those of BIDS data sets, which are left out.
    """
    images, labels = _files(o.images, "--images"), _files(o.labels, "--labels")
    by_channel = _by_channel(o, images, labels)
    channels = o.channel or tuple(f"channel_{int(number)}" for number in by_channel) or ("image",)
    if len(channels) != (count := len(by_channel) or 1):
        given = " ".join(channels)
        raise ValueError(f"--channel has {len(channels)} names ({given}), --images {o.images} {count} channels")
    if by_channel:
        return _channel_pairs(o, by_channel, labels), channels, []
    if len(images) == len(labels) == 1:  # whatever their names
        return [CaseSource(stem(images[0]), stem(images[0]), (images[0],), {"label": labels[0]})], channels, []
    if o.case_regex is None and (found := _bids_pairs(images, labels)) is not None:
        return found[0], channels, found[1]
    return _faultless(find_pairs(o.images, o.labels, channels[0], o.case_regex)), channels, []


def _by_channel(o: PriorOptions, images: Sequence[Path], labels: Sequence[Path]) -> dict[str, list[Path]]:
    """Images by the number of their channel, in which all names end; {} where it is that of a case, as in amos_0001."""
    names, maps = case_names(images, o.images), case_names(labels, o.labels)
    numbers = [match[1] for path in images if (match := re.fullmatch(r".+_(\d{4})", stem(path)))]
    if o.case_regex is None:
        shown = shows_channels(names, maps)
    else:  # it says which images are of one case
        shown = len({first_group(o.case_regex, name, "--case_regex") for name in names}) < len(names)
    if not shown or len(numbers) < len(images):
        return {}
    own = list(zip(numbers, images, strict=True))
    return {number: [path for n, path in own if n == number] for number in sorted(set(numbers))}


def _channel_pairs(o: PriorOptions, by_channel: dict[str, list[Path]], labels: Sequence[Path]) -> list[CaseSource]:
    """Cases with an image of every channel; SourceFaults where a case lacks one, or a partner."""
    found = Found()
    maps = by_id(labels, o.case_regex, found.faults, o.labels)
    of_channel = {
        number: by_id(paths, o.case_regex or rf"^(.+?)(?:_{number})?$", found.faults, o.images)
        for number, paths in by_channel.items()
    }
    images: dict[str, tuple[Path, ...]] = {}
    for case in sorted({case for files in of_channel.values() for case in files}):
        if missing := [number for number, files in of_channel.items() if case not in files]:
            found.faults.append(f"--images {o.images}: case {case!r} has no channel {', '.join(missing)}")
            maps.pop(case, None)
        else:
            images[case] = tuple(files[case] for files in of_channel.values())
    pair_cases(found, images, maps)
    return _faultless(found)


def _bids_pairs(images: Sequence[Path], labels: Sequence[Path]) -> tuple[list[CaseSource], list[str]] | None:
    """Pairs by make_seeds' rule: ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``.

    Returns the pairs and a line for each file without a partner; None where the label maps have other names.
    SourceFaults for a label map with several images, and where there is no pair.
    """
    maps = [path for path in labels if re.fullmatch(r"sub-[A-Za-z0-9]+_(.+_)?dseg", stem(path))]
    if not maps or not {*labels} - {*maps} <= {*images}:
        return None
    pairs, alone = label_pairs([path for path in images if not stem(path).endswith(_NO_SCANS)], maps)
    owned = {label: [stem(image) for image, own in pairs if own == label] for label in maps}
    faults = [
        f"{label}: {len(same)} images belong to it, {', '.join(same)}; give --images 'DIR/*_T2w.nii*'"
        for label, same in owned.items()
        if len(same) > 1
    ]
    skipped = [f"{line}, left out" for line in alone]
    if faults or not pairs:
        raise SourceFaults(faults or skipped)
    return [CaseSource(stem(i), stem(i).partition("_")[0], (i,), {"label": label}) for i, label in pairs], skipped


def _files(where: str, flag: str) -> list[Path]:
    path = Path(where)
    files = find_files(where)
    if not files and path.is_dir():  # a BIDS data set
        files = anatomical(files_below(path, SUFFIXES), path)
    if not files:
        raise ValueError(f"{flag} {where}: no {', '.join(SUFFIXES)} files")
    return without_twins(files)


def _faultless(found: Found) -> list[CaseSource]:
    if found.faults:
        raise SourceFaults(found.faults)
    return found.cases


def _scheme(o: PriorOptions, cases: Sequence[CaseSource]) -> LabelScheme:
    labels = [case.masks["label"] for case in cases]

    def values() -> set[int]:
        if o.scheme == "feta" or Path(o.scheme).is_dir() or Path(o.scheme).suffix == ".json":
            return set()  # they say it all
        return {value for path in tracked(labels, "read label maps") for value in count_labels(read_ids(path).data)}

    return scheme_of_options(o, values, sources=labels)


def _measure_or_fault(
    case: CaseSource, channels: tuple[str, ...], scheme: LabelScheme, o: PriorOptions
) -> Subject | str:
    try:
        return _measure(case, channels, scheme, o)
    except (ValueError, OSError) as error:
        named = any(str(path) in str(error) for path in case.files(channels).values())
        return str(error) if named else with_path(case.id, error)


def _measure(case: CaseSource, channels: tuple[str, ...], scheme: LabelScheme, o: PriorOptions) -> Subject:
    """Statistics of one subject, its images brought to the axes of its label map.

    ValueError where image and label map are not on one grid, naming shapes or the distance of the affines.
    """
    path = case.masks["label"]
    label = read_ids(path)
    images, grid = [], (label.data.shape, label.affine, path)
    for path in case.images:
        volume = read_volume(path)
        with naming(path):
            image = onto_grid(volume.data, volume.affine, *grid)
        if volume.missing is not None:
            missing = onto_grid(volume.missing, volume.affine, *grid) & (label.data > 0)
            if missing.any():
                raise ValueError(f"{path}: {int(missing.sum())} labelled voxels are NaN or infinite")
        images.append(torch.from_numpy(np.ascontiguousarray(image, np.float32)))
    index = scheme.to_index(torch.from_numpy(np.ascontiguousarray(label.data)))
    tables = subject_statistics(torch.stack(images), index, scheme, o.robust, o.percentiles, o.window)
    sources = {role: {"file": path.name, "sha256": file_sha256(path)} for role, path in case.files(channels).items()}
    return Subject(case.id, *tables, sources)


def main() -> int:
    """Exit codes: 0 fine, 1 faults in the data, 2 bad options."""
    options = options_of(PriorOptions)
    try:
        result = estimate_priors(options)
    except SourceFaults as error:
        for line in listed(error.faults):
            print(f"error: {line}", file=sys.stderr)
        return 1
    for note in result.notes:
        print(f"warning: {note}", file=sys.stderr)
    print(result.table())
    print(f"priors: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

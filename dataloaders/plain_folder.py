"""Plain folders of PNG slices without a manifest: pair by stem, infer the spec, write it down, list every mismatch.

A split may hold label maps alone or images alone, for synthesis and unpaired training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.console import warn_once
from dataloaders.io.file_names import PatientRule, place_of, shows_channels
from dataloaders.io.files import listed
from dataloaders.io.find import find_files
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import FILE_NAME, SPLITS, Case, Manifest, Slice, Split
from dataloaders.io.png import MIN_RANGE, NoGrey, Palettes, read_colours, read_png
from dataloaders.io.schema import NAME
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.prepare.check import split_faults
from dataloaders.prepare.id_check import IdCheck

MAX_LABELS = 512  # more ids than that means intensities were given as labels
_unwritten: dict[Path, Manifest] = {}  # inferred from folders that cannot be written


def load_manifest(dataroot: Path, histograms: bool = True, patient_regex: str | None = None) -> Manifest:
    """The manifest of a prepared folder; a folder of PNG slices gets one inferred and written where that can be done.

    Patients and files in several splits are said. histograms: see `Manifest`. patient_regex: whose slices the files of a
    PNG folder are, see `PatientRule`; without it as the manifest that was inferred says, if there is one.
    Raises ValueError listing all mismatches of such a folder, or naming the folder where it is neither.
    """
    manifest = Manifest.load(dataroot, histograms) if (dataroot / FILE_NAME).is_file() else None
    if manifest is not None and "inferred" in manifest.provenance:
        if not _is_of(Manifest.load(dataroot), dataroot):
            raise ValueError(f"{dataroot}: files changed since {FILE_NAME} was inferred from them; delete it to go on")
        if patient_regex is not None and manifest.provenance.get("patients") != PatientRule(patient_regex).text:
            manifest = None
    elif manifest is not None and patient_regex is not None:
        raise ValueError(
            f"--patient_regex {patient_regex}: {dataroot / FILE_NAME} says who the patients are; the option of "
            "prepare_data.py changes them"
        )
    if manifest is None and is_plain(dataroot):
        manifest = infer_manifest(dataroot, patient_regex)
        try:
            manifest.save(dataroot)
        except OSError as error:
            warn_once(f"{dataroot}: cannot be written ({error.strerror}), so what was inferred stays with the run")
            _unwritten[dataroot.resolve()] = manifest
    if manifest is None:
        raise ValueError(
            f"--dataroot {dataroot}: neither {FILE_NAME} (scripts/prepare_data.py writes it) nor folders "
            "{train,val,test}/images and /labels with PNG slices"
        )
    if found := split_faults(manifest):
        warn_once(f"{dataroot}: {'; '.join(found[:5])}{'; …' if len(found) > 5 else ''}: tests on them tell too much")
    return manifest


def unwritten(dataroot: Path) -> Manifest | None:
    """What `load_manifest` inferred of a folder that it could not write to."""
    return _unwritten.get(dataroot.resolve())


def is_plain(dataroot: Path) -> bool:
    """Whether a folder without manifest is laid out as PNG slices: images, or label maps alone, by split."""
    return any(
        (dataroot / split / "images").is_dir() or any((dataroot / split / "labels").glob("*.png")) for split in SPLITS
    )


@dataclass
class PlainFolder:
    """What one pass over the files below `root` found.

    slices: split, file stem and slice of every file or pair. sizes: (H, W) -> a file. ids: of all label maps. colours: why
    label files are no ids. levels: values that occur in images of so many bits. bits: of each image file. twins: hash of the
    pixels -> a file of each split that has them.
    """

    root: Path

    slices: list[tuple[Split, str, Slice]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sizes: dict[tuple[int, ...], Path] = field(default_factory=dict)
    ids: IdCheck = field(default_factory=IdCheck)
    colours: list[str] = field(default_factory=list)
    levels: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    twins: dict[bytes, dict[Split, str]] = field(default_factory=dict)

    @property
    def image_values(self) -> int:
        """How many values occur in images."""
        return sum(int(levels.sum()) for levels in self.levels.values())

    def highest(self, bits: int) -> int:
        """Highest value in images of so many bits, 0 where there are none."""
        return int(np.flatnonzero(self.levels[bits])[-1]) if bits in self.levels else 0

    def refuse(self) -> None:
        """ValueError that lists the faults, if there are any."""
        if self.faults:
            plural = "s" if len(self.faults) > 1 else ""
            raise ValueError(f"{len(self.faults)} fault{plural} in {self.root}:\n  " + "\n  ".join(listed(self.faults)))

    def add(
        self, split: Split, image_path: Path | None, label_path: Path | None, read: Callable[[Path], NDArray]
    ) -> None:
        """Look at one slice, its label map by `read`."""
        path = image_path or label_path
        assert path is not None
        try:
            image = None if image_path is None else read_png(image_path, image_only=True)
            NAME.of(path.stem, "file name")
            label = None if label_path is None else read(label_path)
        except NoGrey as error:
            (self.faults if str(error).startswith(str(image_path)) else self.colours).append(str(error))
            return
        except ValueError as error:
            self.faults.append(str(error))
            return
        if image is not None and label is not None and image.shape != label.shape:
            self.faults.append(f"{image_path}: image is {image.shape}, its label {label.shape}")
            return
        item = Slice(0, "")
        if label_path is not None and label is not None:
            self.sizes.setdefault(label.shape, path)
            item = replace(item, label=str(label_path.relative_to(self.root)), histogram=self.ids.add(label))
        if image_path is not None and image is not None:
            self.sizes.setdefault(image.shape, path)
            name, bits = str(image_path.relative_to(self.root)), 8 * image.dtype.itemsize
            item = replace(item, images=(name,))
            self.bits[name] = bits
            self.levels.setdefault(bits, np.zeros(2**bits, bool))[image.ravel()] = True
        shown = image if image is not None else label
        if shown is not None and shown.min() < shown.max():
            there = self.twins.setdefault(hashlib.sha256(shown.tobytes()).digest(), {})
            there.setdefault(split, str(path.relative_to(self.root)))
        self.slices.append((split, path.stem, item))


def scan(dataroot: Path, colours: bool = False) -> PlainFolder:
    """Read every file of `{train,val,test}/{images,labels}/X.png`; all faults are collected. What is not read is said.

    colours: label maps are read as colours, r·65536 + g·256 + b.
    """
    found = PlainFolder(dataroot)
    read = read_colours if colours else Palettes().read
    for split in SPLITS:
        for image, label in _pairs(dataroot / split, found.faults):
            found.add(split, image, label, read)
    if len(found.sizes) > 1:
        found.faults.append(
            "slices differ in size: " + ", ".join(f"{s[0]}x{s[1]} ({p})" for s, p in found.sizes.items())
        )
    if not found.slices and not found.faults and not found.colours:
        found.faults.append(f"{dataroot}: no PNG files in {{train,val,test}}/{{images,labels}}")
    _warn_of_twins(found.twins)
    return found


def infer_manifest(dataroot: Path, patient_regex: str | None = None) -> Manifest:
    """Spec and cases of `{train,val,test}/{images,labels}/X.png`, ids and intensities as they are; see `cases_of`.

    A split without images or without labels has those of the other alone; where no split has any, the spec has no channel
    or no label. ValueError lists all mismatches, and says where ids or intensities cannot be taken as they are.
    """
    found = scan(dataroot)
    command = f"python scripts/prepare_data.py --format png --source {dataroot} --out DIR"
    if found.colours:
        found.faults.append(
            f"{len(found.colours)} label maps are no greyscale PNGs of ids, the first: {found.colours[0]}"
        )
    highest = max(found.ids.counts, default=0)
    if fault := found.ids.fault(found.image_values):
        found.faults.append(f"{dataroot}/*/labels: {fault}")
    elif highest >= MAX_LABELS:
        found.faults.append(
            f"label ids reach {highest}: labels must be small class ids 0..N-1, not intensities; {command}"
        )
    elif found.ids.counts and (fault := found.ids.gaps()):
        found.faults.append(f"{fault}; {command} makes them 0..{len(found.ids.counts) - 1}")
    found.faults += _empty(found)
    brightest = found.highest(16)
    if 0 < brightest < MIN_RANGE:
        found.faults.append(
            f"16-bit images whose highest value is {brightest}, of {LEVELS} that would count: training and metrics "
            f"would see next to black images; {command} finds the range (or --window LOW,HIGH gives it)"
        )
    found.refuse()
    size = next(iter(found.sizes))
    ids = range(max(highest, 1) + 1) if found.ids.counts else ()
    spec = DataSpec(
        labels=tuple(Label(i, "background" if i == 0 else f"label_{i}", (i,)) for i in ids),
        channels=(Channel("image"),) if found.bits else (),
        size=(size[0], size[1]),
    )
    windows = {path: Window(0, 255 if bits == 8 else LEVELS) for path, bits in found.bits.items()}
    cases, rule = cases_of(found, windows, patient_regex)
    return Manifest(
        spec, cases, {"inferred": "plain PNG folder; ids as found, intensities as stored", "patients": rule.text}
    )


def cases_of(
    found: PlainFolder, windows: dict[str, Window], patient_regex: str | None
) -> tuple[tuple[Case, ...], PatientRule]:
    """Cases and how patients were found in the file names: by `PatientRule`, as evaluate.py does.

    Files whose names differ in the number after ``_z`` only are slices of one case, any other is a case of its own. A name
    that tells no patient is a patient of its split: most PNG data sets number each split from 0. windows: of each image
    file. ValueError for slices that have one number.
    """
    rule = PatientRule(patient_regex, shows_channels([stem for _, stem, _ in found.slices]))
    widest = max(windows.values(), key=lambda window: window.high, default=None)
    series: dict[tuple[Split, str], dict[int, tuple[str, Slice]]] = {}
    for split, stem, item in found.slices:
        case, number = place_of(stem)
        there = series.setdefault((split, case), {})
        if (number or 0) in there:
            raise ValueError(f"{split}: {stem}.png and {there[number or 0][0]}.png are both slice {number} of {case}")
        there[number or 0] = (stem, replace(item, index=number or 0))
    cases = []
    for (split, case), slices in series.items():
        stem = next(iter(slices.values()))[0]
        patient = rule.patient(stem)
        named = patient_regex is not None or patient != stem or stem.startswith("sub-")
        items = tuple(item for _, item in slices.values())
        own = [windows[path] for item in items for path in item.images]
        window = max(own, key=lambda window: window.high, default=widest)
        # The same file name in two splits is another slice, so the split is part of the id.
        cases.append(
            Case(
                f"{split}_{case}",
                patient if named else f"{split}_{patient}",
                split,
                () if window is None else (window,),
                items,
            )
        )
    return tuple(cases), rule


def _is_of(manifest: Manifest, dataroot: Path) -> bool:
    """Whether the folder's files are those that the manifest was inferred from; ValueError where some cannot be used."""
    found = scan(dataroot)
    found.faults += found.colours
    found.refuse()
    known = [(case.split, item) for case in manifest.cases for item in case.slices]
    return _content((split, item) for split, _, item in found.slices) == _content(known)


def _content(slices: Iterable[tuple[str, Slice]]) -> list[tuple[str, str, tuple[str, ...], dict[int, int]]]:
    """What is in the files, whatever was made of it."""
    found = ((split, item.label, item.images, item.histogram) for split, item in slices)
    return sorted(found, key=lambda entry: entry[:3])


def _empty(found: PlainFolder) -> list[str]:
    """Faults of splits whose label maps are 0 everywhere."""
    faults = []
    for split in SPLITS:
        histograms = [item.histogram for of, _, item in found.slices if of == split and item.label]
        if histograms and all(set(histogram) == {0} for histogram in histograms):
            faults.append(f"{split}/labels: all {len(histograms)} label maps are empty, every pixel is 0")
    return faults


def _warn_of_twins(twins: dict[bytes, dict[Split, str]]) -> None:
    """Say which slices lie in several splits."""
    for split in ("val", "test"):
        same = [files for files in twins.values() if split in files and len(files) > 1]
        if same:
            others = " or ".join(s for s in SPLITS if s != split and any(s in files for files in same))
            pair = " = ".join(path for s, path in same[0].items() if s == split or s in others)
            warn_once(
                f"{len(same)} different slices of {split} are also in {others}, pixel by pixel ({pair}): scores on them "
                "say nothing of new patients"
            )


def _pairs(folder: Path, faults: list[str]) -> list[tuple[Path | None, Path | None]]:
    """Image and label of each slice; all images or all labels where the folder has nothing else."""
    images, labels = ({path.stem: path for path in find_files(folder / kind, ".png")} for kind in ("images", "labels"))
    if not images or not labels:
        return [*((image, None) for image in images.values()), *((None, label) for label in labels.values())]
    faults += [f"{images[stem]}: no label of the same name" for stem in sorted(images.keys() - labels.keys())]
    faults += [f"{labels[stem]}: no image of the same name" for stem in sorted(labels.keys() - images.keys())]
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]

"""Finding the scans of a data set: which files make a case. Looks at names only; the files are read later."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from dataloaders.io.file_names import first_group
from dataloaders.io.find import (
    NO_IMAGES,
    anatomical,
    case_names,
    entities,
    entity_filters,
    files_below,
    find_files,
    passes,
    subject_session,
    suffix,
)
from dataloaders.io.nifti import SUFFIXES, Volume, read_ids, read_volume, stem
from dataloaders.io.schema import NAME
from dataloaders.labelmaps.labels import read_dataset_json
from dataloaders.prepare.options import Half

_OF_SCAN = ("run", "acq", "ce", "rec", "echo", "part", "dir")  # entities that tell scans of one kind and session apart
MASKS = ("label", "lesion", "brain", "body")  # roles of files that are no images
_ENDINGS = {"label": "_dseg", "lesion": "_label-lesion_mask", "brain": "_desc-brain_mask"}
T = TypeVar("T")


@dataclass(frozen=True)
class CaseSource:
    """Files of one case: one image per channel, and those of `MASKS` that exist; none of what is embedded (``mni152``)."""

    id: str
    patient: str
    images: tuple[Path, ...] = ()
    masks: Mapping[str, Path] = field(default_factory=dict)

    def files(self, channels: Sequence[str]) -> dict[str, Path]:
        """Role -> file."""
        return dict(zip(channels, self.images, strict=bool(self.images))) | {**self.masks}


@dataclass
class Found:
    """What a source folder holds: cases, channel names, and lines about what is wrong or worth knowing."""

    cases: list[CaseSource] = field(default_factory=list)
    channels: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    label_names: Mapping[int, str] = field(default_factory=dict)  # of a dataset.json


def by_id(paths: Sequence[Path], regex: str | None, faults: list[str], where: str = "") -> dict[str, Path]:
    """Case id -> file; duplicates and unsafe names become faults. where: the pattern that found them."""
    ids: dict[str, Path] = {}
    for path, name in zip(paths, case_names(paths, where), strict=True):
        try:
            case = NAME.of(first_group(regex, name, "--case_regex"), f"case id of {path}")
        except ValueError as error:
            faults.append(str(error))
            continue
        if case in ids:
            faults.append(f"{path}: the case id {case!r} is already that of {ids[case]}")
        ids[case] = path
    return ids


def _safe_only(cases: dict[str, T], folder: Path, faults: list[str]) -> dict[str, T]:
    """Those whose name can be a case id; the others become faults."""
    kept = {}
    for name, files in cases.items():
        try:
            kept[NAME.of(name, f"{folder}: case id")] = files
        except ValueError as error:
            faults.append(str(error))
    return kept


def pair_cases(found: Found, images: Mapping[str, tuple[Path, ...]] | None, labels: Mapping[str, Path] | None) -> None:
    """Cases of images and their label maps; those of one alone are faults, unless the other is None: not wanted."""
    if images is not None and labels is not None:
        found.faults += [f"{images[i][0]}: no label for case {i!r}" for i in sorted(images.keys() - labels.keys())]
        found.faults += [f"{labels[i]}: no image for case {i!r}" for i in sorted(labels.keys() - images.keys())]
        images = {i: files for i, files in images.items() if i in labels}
        labels = {i: path for i, path in labels.items() if i in images}
    images, labels = images or {}, labels or {}
    names = images.keys() | labels.keys()
    masks = {i: {"label": path} for i, path in labels.items()}
    found.cases += [CaseSource(i, i, images.get(i, ()), masks.get(i, {})) for i in sorted(names)]


def find_pairs(images: str | None, labels: str | None, channel: str, case_regex: str | None) -> Found:
    """Two folders or globs, paired by case id: see `case_names`, or what --case_regex captures of it; or one of them alone.

    Where no names agree but all images end in one suffix and all labels in another (``case01_ct``, ``case01_seg``),
    the suffixes are taken off.
    """
    found = Found(channels=(channel,) if images else ())
    wanted = {flag: where for flag, where in (("images", images), ("labels", labels)) if where}
    paths = {flag: find_files(where, notes=found.notes) for flag, where in wanted.items()}
    if both := sorted(set.intersection(*map(set, paths.values()))) if len(paths) == 2 else []:
        raise ValueError(
            f"--images {images} and --labels {labels} name the same files ({both[0]}, …); give a quoted pattern for each, "
            f"such as '{both[0].parent}/*_ct.nii.gz' and '{both[0].parent}/*_seg.nii.gz'"
        )
    for flag, where in wanted.items():
        hint = f"; with one folder a patient give a pattern, '{where}/*/NAME.nii.gz'" if Path(where).is_dir() else ""
        if not paths[flag]:
            found.faults.append(f"--{flag} {where}: no {', '.join(SUFFIXES)} files{hint}")
    if found.faults:
        return found
    names = [set(case_names(paths[flag], where)) for flag, where in wanted.items()]
    unlike = case_regex is None and len(names) == 2 and not names[0] & names[1]
    if unlike and all(len({name.rpartition("_")[2] for name in own}) == 1 for own in names):
        case_regex = r"^(.+)_[^_]+$"
    ids = {flag: by_id(paths[flag], case_regex, found.faults, where) for flag, where in wanted.items()}
    image_ids, label_ids = ids.get("images", {}), ids.get("labels", {})
    if len(label_ids) > len(image_ids) > 0 and all(any(i.startswith(f"{c}_") for c in image_ids) for i in label_ids):
        found.faults.append(
            f"--labels {labels}: {len(label_ids)} files for {len(image_ids)} images, one mask a class as it seems; one "
            "label map a case is needed (TotalSegmentator writes it with --ml)"
        )
        return found
    pair_cases(found, {i: (path,) for i, path in image_ids.items()} if images else None, label_ids if labels else None)
    if image_ids and label_ids and not found.cases:
        found.faults.append("no case has both; for unpaired training prepare --images and --labels each by itself")
    return found


def find_nnunet(
    source: Path, image_channels: Sequence[int], label_channel: int | None, only: Half | None = None
) -> Found:
    """An nnU-Net raw folder: imagesTr/<case>_<channel:04d>.nii.gz, labelsTr/<case>.nii.gz, dataset.json.

    label_channel: the label map is that channel of imagesTr, as in AutoPET prepared with organ labels as channel 2. only:
    look for one half alone.
    """
    channel_names, label_names = read_dataset_json(source / "dataset.json")
    found = Found()
    folder = source / "imagesTr"
    labels: dict[str, Path] | None = None
    if label_channel is None and only != "images":
        found.label_names = label_names  # they are about these maps, not about a channel with ids of its own
        labels = by_id(find_files(source / "labelsTr", notes=found.notes), None, found.faults)
        if only == "labels":
            pair_cases(found, None, labels)
            return found
    if not folder.is_dir():
        raise ValueError(f"--source {source}: no imagesTr folder; is it an nnU-Net raw data set?")
    by_case: dict[str, dict[int, Path]] = {}
    for path in find_files(folder, notes=found.notes):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match is None:
            found.faults.append(f"{path}: the name does not end in a channel such as _0000")
        else:
            by_case.setdefault(match[1], {})[int(match[2])] = path
    by_case = _safe_only(by_case, folder, found.faults)
    if not by_case:
        found.faults.append(f"{folder}: no files <case>_0000.nii.gz")
        return found
    present = sorted({c for channels in by_case.values() for c in channels} - {label_channel})
    chosen = () if only == "labels" else tuple(image_channels) or tuple(present)
    names = {c: re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") for c, name in channel_names.items()}
    found.channels = tuple(names.get(c) or f"channel_{c}" for c in chosen)
    needed = {*chosen} | ({label_channel} if label_channel is not None and only != "images" else set())
    for case, files in sorted(by_case.items()):
        if missing := sorted(needed - files.keys()):
            found.faults.append(f"{folder}: case {case!r} has no channel {', '.join(f'{c:04d}' for c in missing)}")
            by_case.pop(case)
            (labels or {}).pop(case, None)
    if label_channel in needed:
        labels = {case: files[label_channel] for case, files in by_case.items()}
    pictures = {case: tuple(files[c] for c in chosen) for case, files in by_case.items()}
    pair_cases(found, pictures if chosen else None, labels)
    return found


def find_synthrad(source: Path, image: str, labels: Path | None) -> Found:
    """SynthRAD2023: Task1/{brain,pelvis}/<case>/{mr,ct,mask}.nii.gz; `image` is mr, ct or both.

    labels: folder with <case>.nii.gz or <case>/<anything>.nii.gz.
    """
    wanted = {"mr": ("mr",), "ct": ("ct",), "both": ("mr", "ct")}[image]
    found = Found(channels=tuple(name.upper() for name in wanted))
    root = source / "Task1" if (source / "Task1").is_dir() else source
    cases: dict[Path, dict[str, Path]] = {}
    for path in find_files(root, below=True, notes=found.notes):
        cases.setdefault(path.parent, {})[stem(path)] = path
    cases = {folder: files for folder, files in cases.items() if {"mask", "ct"} & {*files}}
    if not cases:
        raise ValueError(f"--source {source}: no Task1/{{brain,pelvis}}/<case>/{{mr,ct,mask}}.nii.gz")
    for folder, files in sorted(cases.items()):
        if missing := [name for name in (*wanted, "mask") if name not in files]:
            found.faults.append(f"{folder}: no {', '.join(missing)}")
            continue
        for case in _safe_only({folder.name: files}, folder.parent, found.faults):
            masks = {"body": files["mask"]}
            if labels is not None:
                there = [p for s in SUFFIXES if (p := labels / f"{case}{s}").is_file()] or find_files(
                    labels / case, notes=[]
                )
                if len(there) != 1:
                    found.faults.append(f"{labels}: {len(there)} label files for case {case!r}, one is needed")
                    continue
                masks = {"label": there[0], **masks}
            found.cases.append(CaseSource(case, case, tuple(files[n] for n in wanted), masks))
    return found


def find_bids(
    source: Path,
    modalities: Sequence[str],
    brain_masks: Path | None,
    only: Half | None = None,
    exclude: Collection[str] = (),
    wanted: Sequence[str] = (),
) -> Found:
    """BIDS: sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,…}.nii.gz; *_dseg and *_label-lesion_mask beside or in derivatives.

    Every session is a case, every subject a patient. Without `modalities` those that every case has. A subject that
    has masks but no images is noted, not a fault. only: look for one half alone, with ``labels`` all *_dseg. exclude:
    subjects and cases that are not looked at. wanted: ``key=value`` of entities, see `passes`; of several files that
    could be taken one is, see `_choose`.
    """
    found = Found()
    filters = entity_filters(wanted)
    files = _of_subjects(source, find_files(source, below=True, notes=found.notes))
    is_image = {path for path in anatomical(files, source) if suffix(path) not in NO_IMAGES}
    others = [path for path in files if path not in is_image and only != "images"]
    others += _of_subjects(brain_masks, files_below(brain_masks, SUFFIXES)) if brain_masks else []
    pictures, masks = (
        _safe_only(_by_session(paths, exclude, filters), source, faults)
        for paths, faults in (([path for path in files if path in is_image], found.faults), (others, []))
    )
    known = {name for path in (*files, *others) for name in _names_of(path)}
    found.notes += [f"exclude {name}: no such subject or case" for name in exclude if name not in known]
    by_case = {case: {suffix(path) for path in paths} for case, paths in pictures.items()} if only != "labels" else {}
    if only != "labels":
        found.channels = tuple(modalities) or (tuple(sorted(set.intersection(*by_case.values()))) if by_case else ())
        if not found.channels:
            found.faults.append(
                f"{source}: no sub-*/anat/*_<modality>.nii.gz that every subject has; name --modalities"
                + ("" if by_case else ", or prepare *_dseg alone with --only labels")
            )
    endings = {role: end for role, end in _ENDINGS.items() if (only, role) != ("labels", "brain")}
    for case in sorted(masks.keys() | by_case.keys()):
        marked = {role: [p for p in masks.get(case, ()) if stem(p).endswith(end)] for role, end in endings.items()}
        if case not in by_case and only != "labels":
            found.notes += [f"{case}: only a {role} file, no images" for role, paths in marked.items() if paths]
        elif missing := [name for name in found.channels if name not in by_case[case]]:
            found.notes.append(f"{case}: skipped, no {', '.join(missing)}")
        else:
            chosen = _session(case, pictures.get(case, ()), marked, found)
            if only != "labels" or "label" in chosen.masks:
                found.cases.append(chosen)
    return found


def _of_subjects(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Files of subjects, without copies of the source (``sourcedata``)."""
    return [p for p in files if p.name.startswith("sub-") and "sourcedata" not in p.relative_to(folder).parts]


def _names_of(path: Path) -> set[str]:
    """Of a file's case and its subject."""
    case = subject_session(path)
    return {case, case.partition("_")[0]}


def _by_session(paths: Iterable[Path], exclude: Collection[str], filters: Mapping[str, str]) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for path in paths:
        if not _names_of(path) & {*exclude} and passes(path, filters):
            cases.setdefault(subject_session(path), []).append(path)
    return cases


def _session(case: str, pictures: Sequence[Path], marked: Mapping[str, list[Path]], found: Found) -> CaseSource:
    """Of several files of a case those that go together."""
    images: list[Path] = []
    for name in found.channels:  # such that they have a label map of their own
        beside = images or marked["label"] or marked["lesion"]
        images.append(_choose([p for p in pictures if suffix(p) == name], beside, case, found.notes))
    chosen: dict[str, Path] = {}
    for role, paths in marked.items():
        own = [p for p in paths if not images or min(_apart(p, image, both=True) for image in images) == 0]
        if own:
            chosen[role] = _choose(own, images, case, found.notes)
        elif paths:
            found.notes.append(f"{case}: {paths[0].name} is of another scan than {images[0].name}, so not taken")
    return CaseSource(case, case.partition("_")[0], tuple(images), chosen)


def _apart(one: Path, other: Path, both: bool = False) -> int:
    """In how many of the entities that tell scans apart two files differ. both: of those that both have."""
    a, b = entities(one), entities(other)
    return sum(a.get(key) != b.get(key) for key in _OF_SCAN if not both or (key in a and key in b))


def _choose(paths: Sequence[Path], beside: Sequence[Path], case: str, notes: list[str]) -> Path:
    """One of several files of a case, which is noted: what agrees best with files `beside`; not in another space; with the
    fewest entities, so the plain file before ``acq-``, ``ce-`` and ``rec-``; the highest run; the first by name.
    """

    def order(path: Path) -> tuple[int, bool, int, int, str]:
        own = entities(path)
        run = int(own["run"]) if own.get("run", "").isdigit() else 0
        apart = min((_apart(path, other) for other in beside), default=0)
        return apart, own.get("space", "orig") not in ("orig", "T1w"), len(own), -run, path.name

    ranked = sorted(paths, key=order)
    if len(ranked) > 1:
        others = ", ".join(path.name for path in ranked[1:])
        notes.append(f"{case}: {ranked[0].name} is taken, not {others}; --bids_filter chooses")
    return ranked[0]


def find_mni152() -> Found:
    """The ICBM152 2009 T1 template with its tissue maps, embedded in nilearn."""
    return Found(cases=[CaseSource("mni152", "mni152")], channels=("T1w",))


def read_role(role: str, path: Path) -> Volume:
    """The volume of a channel, or of one of `MASKS` in whole numbers; VolumeError where it cannot be used."""
    return (read_ids if role in MASKS else read_volume)(path)


def embedded_volumes(channels: Sequence[str]) -> dict[str, Volume]:
    """The MNI152 template at 1 mm (0..255), with labels 1 CSF, 2 grey, 3 white matter from its tissue maps."""
    from nilearn import datasets  # slow to import, and only this format needs it

    template = datasets.load_mni152_template(resolution=1)
    grey, white = (
        f(resolution=1).get_fdata() for f in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0
    maps = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    label = np.where(brain, maps.argmax(0) + 1, 0).astype(np.int32)
    image = (template.get_fdata() * 255).astype(np.float32)
    affine = np.asarray(template.affine, np.float64)
    return {channels[0]: Volume(image, affine), "label": Volume(label, affine)}

"""Finding the scans of a data set: which files make a case. Looks at names only; the files are read later."""

from __future__ import annotations

import glob as globbing
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataloaders.labels import read_dataset_json
from dataloaders.nifti import SUFFIXES, Volume, stem
from dataloaders.prepare_options import Half
from engine.files import check_name, files_below, files_in, not_read


@dataclass(frozen=True)
class CaseSource:
    """Files of one case: one image per channel; label, lesion, brain and body masks where they exist.

    builtin: name of embedded data instead of files (``mni152``).
    """

    id: str
    patient: str
    images: tuple[Path, ...] = ()
    label: Path | None = None
    lesion: Path | None = None
    brain: Path | None = None
    body: Path | None = None
    builtin: str = ""

    def files(self, channels: Sequence[str]) -> dict[str, Path]:
        """Role -> file."""
        roles = dict(zip(channels, self.images, strict=True)) if self.images else {}
        masks = {"label": self.label, "lesion": self.lesion, "brain": self.brain, "body": self.body}
        return {**roles, **{role: path for role, path in masks.items() if path is not None}}


@dataclass
class Found:
    """What a source folder holds: cases, channel names, and lines about what is wrong or worth knowing."""

    cases: list[CaseSource] = field(default_factory=list)
    channels: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    label_names: Path | None = None  # a dataset.json with label names


def _volumes(where: str | Path) -> list[Path]:
    """NIfTI files of a folder (not below it) or of a glob pattern, sorted."""
    path = Path(where)
    if path.is_dir():
        return files_in(path, SUFFIXES)
    files = (Path(p) for p in globbing.glob(str(where), recursive=True))
    return sorted(p for p in files if p.name.endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file())


def _not_read(*folders: str | Path | None, below: bool = False) -> list[str]:
    """What lies in these folders beside the volumes."""
    there = [Path(folder) for folder in folders if folder is not None and Path(folder).is_dir()]
    return [line for folder in there if (line := not_read(folder, SUFFIXES, below))]


def _safe_id(name: str, path: Path, faults: list[str]) -> str | None:
    """The name if it can be a case id; otherwise a fault that names the file."""
    try:
        return check_name(name, f"case id of {path}")
    except ValueError as error:
        faults.append(str(error))
        return None


def _group(regex: str | None, text: str, flag: str) -> str:
    """First group of `regex` in `text`; the text itself without a regex."""
    if regex is None:
        return text
    match = re.search(regex, text)
    if match is None or not match.groups():
        raise ValueError(f"{flag} {regex!r} finds no group in {text!r}")
    return match.group(1)


def _by_id(paths: Sequence[Path], regex: str | None, faults: list[str]) -> dict[str, Path]:
    """Case id -> file; duplicates and unsafe names become faults."""
    ids: dict[str, Path] = {}
    for path in paths:
        try:
            case = check_name(_group(regex, stem(path), "--case_regex"), f"case id of {path}")
        except ValueError as error:
            faults.append(str(error))
            continue
        if case in ids:
            faults.append(f"{path}: the case id {case!r} is already that of {ids[case]}")
        ids[case] = path
    return ids


def find_pairs(
    images: str | None, labels: str | None, channel: str, case_regex: str | None, patient_regex: str | None
) -> Found:
    """Two folders or globs, paired by case id: the file's stem, or what --case_regex captures; or one of them alone.

    Where no stems agree but all images end in one suffix and all labels in another (``case01_ct``, ``case01_seg``),
    the suffixes are taken off.
    """
    found = Found(channels=(channel,) if images else ())
    image_paths, label_paths = (_volumes(where) if where else [] for where in (images, labels))
    found.notes += _not_read(images, labels)
    if images and not image_paths:
        found.faults.append(f"--images {images}: no .nii or .nii.gz files")
    if labels and not label_paths:
        found.faults.append(f"--labels {labels}: no .nii or .nii.gz files")
    if case_regex is None and images and labels and not {stem(p) for p in image_paths} & {stem(p) for p in label_paths}:
        suffixes = [{stem(p).rpartition("_")[2] for p in paths} for paths in (image_paths, label_paths)]
        if all(len(s) == 1 for s in suffixes):
            case_regex = r"^(.+)_[^_]+$"
    image_ids, label_ids = (_by_id(paths, case_regex, found.faults) for paths in (image_paths, label_paths))
    if images and labels:
        found.faults += [
            f"{image_ids[i]}: no label for case {i!r}" for i in sorted(image_ids.keys() - label_ids.keys())
        ]
        found.faults += [
            f"{label_ids[i]}: no image for case {i!r}" for i in sorted(label_ids.keys() - image_ids.keys())
        ]
        cases = sorted(image_ids.keys() & label_ids.keys())
        if image_ids and label_ids and not cases:
            found.faults.append("no case has both; for unpaired training prepare --images and --labels each by itself")
    else:
        cases = sorted(image_ids.keys() | label_ids.keys())
    for case in cases:
        files = (image_ids[case],) if images else ()
        found.cases.append(CaseSource(case, _group(patient_regex, case, "--patient_regex"), files, label_ids.get(case)))
    return found


def find_nnunet(
    source: Path,
    image_channels: Sequence[int],
    label_channel: int | None,
    patient_regex: str | None,
    only: Half | None = None,
) -> Found:
    """An nnU-Net raw folder: imagesTr/<case>_<channel:04d>.nii.gz, labelsTr/<case>.nii.gz, dataset.json.

    label_channel: the label map is that channel of imagesTr, as in AutoPET prepared with organ labels as channel 2. only:
    look for one half alone.
    """
    facts = source / "dataset.json"
    found = Found(label_names=facts)
    folder = source / "imagesTr"
    if only == "labels" and label_channel is None:
        found.notes += _not_read(source / "labelsTr")
        for case, path in sorted(_by_id(_volumes(source / "labelsTr"), None, found.faults).items()):
            found.cases.append(CaseSource(case, _group(patient_regex, case, "--patient_regex"), (), path))
        return found
    if not folder.is_dir():
        raise ValueError(f"--source {source}: no imagesTr folder; is it an nnU-Net raw data set?")
    found.notes += _not_read(folder, None if label_channel is not None else source / "labelsTr")
    by_case: dict[str, dict[int, Path]] = {}
    for path in _volumes(folder):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match is None:
            found.faults.append(f"{path}: the name does not end in a channel such as _0000")
            continue
        if (case_id := _safe_id(match.group(1), path, found.faults)) is not None:
            by_case.setdefault(case_id, {})[int(match.group(2))] = path
    if not by_case:
        found.faults.append(f"{folder}: no files <case>_0000.nii.gz")
        return found
    present = sorted({c for channels in by_case.values() for c in channels} - {label_channel})
    chosen = () if only == "labels" else tuple(image_channels) or tuple(present)
    names = {c: re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") for c, name in read_dataset_json(facts)[0].items()}
    found.channels = tuple(names.get(c) or f"channel_{c}" for c in chosen)
    apart = label_channel is None and only is None
    labels = _by_id(_volumes(source / "labelsTr"), None, found.faults) if apart else {}
    found.faults += [f"{labels[i]}: no image for case {i!r}" for i in sorted(labels.keys() - by_case.keys())]
    for case, channels in sorted(by_case.items()):
        missing = [c for c in chosen if c not in channels]
        label = channels.get(label_channel) if label_channel is not None else labels.get(case)
        if missing:
            found.faults.append(f"{folder}: case {case!r} has no channel {', '.join(f'{c:04d}' for c in missing)}")
        elif label is None and only != "images":
            found.faults.append(f"{next(iter(channels.values()))}: no label for case {case!r}")
        else:
            patient = _group(patient_regex, case, "--patient_regex")
            found.cases.append(CaseSource(case, patient, tuple(channels[c] for c in chosen), label))
    return found


def find_synthrad(source: Path, image: str, labels: Path | None, patient_regex: str | None) -> Found:
    """SynthRAD2023: Task1/{brain,pelvis}/<case>/{mr,ct,mask}.nii.gz; `image` is mr, ct or both.

    labels: folder with <case>.nii.gz or <case>/<anything>.nii.gz.
    """
    wanted = {"mr": ("mr",), "ct": ("ct",), "both": ("mr", "ct")}[image]
    found = Found(channels=tuple(name.upper() for name in wanted))
    root = source / "Task1" if (source / "Task1").is_dir() else source
    found.notes += _not_read(root, below=True)
    folders = sorted({p.parent for p in root.glob("**/mask.nii*")} | {p.parent for p in root.glob("**/ct.nii*")})
    if not folders:
        raise ValueError(f"--source {source}: no Task1/{{brain,pelvis}}/<case>/{{mr,ct,mask}}.nii.gz")
    for folder in folders:
        files = {stem(p): p for p in _volumes(folder)}
        missing = [name for name in (*wanted, "mask") if name not in files]
        if missing:
            found.faults.append(f"{folder}: no {', '.join(missing)}")
            continue
        case = _safe_id(folder.name, folder, found.faults)
        if case is None:
            continue
        label = None
        if labels is not None:
            candidates = [p for s in SUFFIXES if (p := labels / f"{case}{s}").is_file()] or _volumes(
                labels / case / "*"
            )
            if len(candidates) != 1:
                found.faults.append(f"{labels}: {len(candidates)} label files for case {case!r}, one is needed")
                continue
            label = candidates[0]
        patient = _group(patient_regex, case, "--patient_regex")
        found.cases.append(CaseSource(case, patient, tuple(files[n] for n in wanted), label, body=files["mask"]))
    return found


def _subjects_files(folder: Path) -> list[Path]:
    return [path for path in files_below(folder, SUFFIXES) if path.name.startswith("sub-")]


def find_bids(
    source: Path,
    modalities: Sequence[str],
    brain_masks: Path | None,
    patient_regex: str | None,
    only: Half | None = None,
) -> Found:
    """BIDS: sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,…}.nii.gz; *_dseg and *_label-lesion_mask beside or in derivatives.

    Every session is a case, every subject a patient. Without `modalities` those that every case has. A subject that
    has masks but no images is noted, not a fault. only: look for one half alone, with ``labels`` all *_dseg.
    """
    found = Found()
    files = _subjects_files(source)
    found.notes += _not_read(source, below=True)
    if only == "labels":
        labels, lesions = (_marked(files, ending, found.faults) for ending in ("_dseg", "_label-lesion_mask"))
        for case, path in sorted(labels.items()):
            patient = _group(patient_regex, case.partition("_")[0], "--patient_regex")
            found.cases.append(CaseSource(case, patient, (), path, lesions.get(case)))
        return found
    raw = [p for p in files if "derivatives" not in p.relative_to(source).parts and p.parent.name == "anat"]
    by_case: dict[str, dict[str, Path]] = {}
    for path in raw:
        modality = stem(path).rpartition("_")[2]
        if modality not in ("dseg", "mask"):
            images = by_case.setdefault(_bids_case(path), {})
            if modality in images:
                found.faults.append(f"{path}: case {_bids_case(path)} already has a {modality}: {images[modality]}")
            images[modality] = path
    shared = sorted(set.intersection(*(set(images) for images in by_case.values()))) if by_case else []
    found.channels = tuple(modalities) or tuple(shared)
    if not found.channels:
        found.faults.append(
            f"{source}: no sub-*/anat/*_<modality>.nii.gz that every subject has; name --modalities"
            + ("" if by_case else ", or prepare *_dseg alone with --only labels")
        )
    files = [] if only == "images" else files
    brains = files + (_subjects_files(brain_masks) if brain_masks else [])
    marks = {
        "label": _marked(files, "_dseg", found.faults),
        "lesion": _marked(files, "_label-lesion_mask", found.faults),
        "brain": _marked(brains, "_desc-brain_mask", found.faults),
    }
    for case, images in sorted(by_case.items()):
        missing = [m for m in found.channels if m not in images]
        if missing:
            found.notes.append(f"{case}: skipped, no {', '.join(missing)}")
            continue
        patient = _group(patient_regex, case.partition("_")[0], "--patient_regex")
        label, lesion, brain = (marks[role].get(case) for role in ("label", "lesion", "brain"))
        files_in_order = tuple(images[m] for m in found.channels)
        found.cases.append(CaseSource(case, patient, files_in_order, label, lesion, brain))
    for role, paths in marks.items():
        found.notes += [f"{case}: only a {role} file, no images" for case in sorted(paths.keys() - by_case.keys())]
    return found


def _bids_case(path: Path) -> str:
    entities = dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)
    session = f"_ses-{entities['ses']}" if "ses" in entities else ""
    return check_name(f"sub-{entities['sub']}{session}", "case id")


def _marked(files: Sequence[Path], ending: str, faults: list[str]) -> dict[str, Path]:
    marked: dict[str, Path] = {}
    for path in (p for p in files if stem(p).endswith(ending)):
        case = _bids_case(path)
        if case in marked:
            faults.append(f"{path}: case {case} already has a {ending[1:]} file: {marked[case]}")
        marked[case] = path
    return marked


def find_mni152() -> Found:
    """The ICBM152 2009 T1 template with its tissue maps, embedded in nilearn."""
    return Found(cases=[CaseSource("mni152", "mni152", builtin="mni152")], channels=("T1w",))


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

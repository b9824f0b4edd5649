"""Finding the scans of a data set: which files make a case. Looks at names only; the files are read later."""

from __future__ import annotations

import glob as globbing
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataloaders.io.file_names import case_names
from dataloaders.io.files import check_name, files_below, files_in, not_read
from dataloaders.io.nifti import SUFFIXES, Volume, stem
from dataloaders.labelmaps.labels import read_dataset_json
from dataloaders.prepare.options import Half
from dataloaders.scans import NO_IMAGES

_OF_SCAN = ("run", "acq", "ce", "rec", "echo", "part", "dir")  # entities that tell scans of one kind and session apart


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
    """Volumes of a folder (not below it) or of a glob pattern, sorted."""
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
    if match is None or not match.groups() or match.group(1) is None:
        raise ValueError(f"{flag} {regex!r} finds no group in {text!r}")
    return match.group(1)


def _by_id(paths: Sequence[Path], regex: str | None, faults: list[str], where: str = "") -> dict[str, Path]:
    """Case id -> file; duplicates and unsafe names become faults. where: the pattern that found them."""
    ids: dict[str, Path] = {}
    for path, name in zip(paths, case_names(paths, where), strict=True):
        try:
            case = check_name(_group(regex, name, "--case_regex"), f"case id of {path}")
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
    """Two folders or globs, paired by case id: see `case_names`, or what --case_regex captures of it; or one of them alone.

    Where no names agree but all images end in one suffix and all labels in another (``case01_ct``, ``case01_seg``),
    the suffixes are taken off.
    """
    found = Found(channels=(channel,) if images else ())
    image_paths, label_paths = (_volumes(where) if where else [] for where in (images, labels))
    found.notes += _not_read(images, labels)
    if both := sorted({*image_paths} & {*label_paths}):
        raise ValueError(
            f"--images {images} and --labels {labels} name the same files ({both[0]}, …); give a quoted pattern for each, "
            f"such as '{both[0].parent}/*_ct.nii.gz' and '{both[0].parent}/*_seg.nii.gz'"
        )
    for flag, where, paths in (("images", images, image_paths), ("labels", labels, label_paths)):
        if where and not paths:
            hint = (
                f"; with one folder a patient give a pattern, '{where}/*/NAME.nii.gz'" if Path(where).is_dir() else ""
            )
            found.faults.append(f"--{flag} {where}: no {', '.join(SUFFIXES)} files{hint}")
    names = [case_names(paths, where or "") for paths, where in ((image_paths, images), (label_paths, labels))]
    strange = bool(images and labels) and not {*names[0]} & {*names[1]}
    if case_regex is None and strange and all(len({name.rpartition("_")[2] for name in own}) == 1 for own in names):
        case_regex = r"^(.+)_[^_]+$"
    image_ids, label_ids = (
        _by_id(paths, case_regex, found.faults, where or "")
        for paths, where in ((image_paths, images), (label_paths, labels))
    )
    if len(label_ids) > len(image_ids) > 0 and all(any(i.startswith(f"{c}_") for c in image_ids) for i in label_ids):
        found.faults.append(
            f"--labels {labels}: {len(label_ids)} files for {len(image_ids)} images, one mask a class as it seems; one "
            "label map a case is needed (TotalSegmentator writes it with --ml)"
        )
        return found
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
    """Files of subjects, without copies of the source (``sourcedata``)."""
    files = (path for path in files_below(folder, SUFFIXES) if path.name.startswith("sub-"))
    return [path for path in files if "sourcedata" not in path.relative_to(folder).parts]


def find_bids(
    source: Path,
    modalities: Sequence[str],
    brain_masks: Path | None,
    patient_regex: str | None,
    only: Half | None = None,
    exclude: Collection[str] = (),
    wanted: Sequence[str] = (),
) -> Found:
    """BIDS: sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,…}.nii.gz; *_dseg and *_label-lesion_mask beside or in derivatives.

    Every session is a case, every subject a patient. Without `modalities` those that every case has. A subject that
    has masks but no images is noted, not a fault. only: look for one half alone, with ``labels`` all *_dseg. exclude:
    subjects and cases that are not looked at. wanted: ``key=value`` of entities, see `_passes`; of several files that
    could be taken one is, see `_choose`.
    """
    found = Found()
    found.notes += _not_read(source, below=True)
    filters = _filters(wanted)
    excluded: set[str] = set()

    def grouped(files: Iterable[Path], faults: list[str]) -> dict[str, list[Path]]:
        """Case -> files."""
        cases: dict[str, list[Path]] = {}
        for path in files:
            name = _bids_case(path)
            if names := {name, name.partition("_")[0]} & {*exclude}:
                excluded.update(names)
            elif (case := _safe_id(name, path, faults)) is not None and _passes(path, filters):
                cases.setdefault(case, []).append(path)
        return cases

    files = _subjects_files(source)
    is_image = [_is_bids_image(path, source) for path in files]
    pictures = grouped((path for path, image in zip(files, is_image, strict=True) if image), found.faults)
    others = [path for path, image in zip(files, is_image, strict=True) if not image and only != "images"]
    masks = grouped(others + (_subjects_files(brain_masks) if brain_masks else []), [])
    found.notes += [f"exclude {name}: no such subject or case" for name in exclude if name not in excluded]
    by_case = {case: {_suffix(path) for path in paths} for case, paths in pictures.items()} if only != "labels" else {}
    shared = sorted(set.intersection(*by_case.values())) if by_case else []
    found.channels = () if only == "labels" else tuple(modalities) or tuple(shared)
    if only != "labels" and not found.channels:
        found.faults.append(
            f"{source}: no sub-*/anat/*_<modality>.nii.gz that every subject has; name --modalities"
            + ("" if by_case else ", or prepare *_dseg alone with --only labels")
        )
    endings = {"label": "_dseg", "lesion": "_label-lesion_mask", "brain": "_desc-brain_mask"}
    for case in sorted(masks.keys() | by_case.keys()):
        marked = {role: [p for p in masks.get(case, ()) if stem(p).endswith(end)] for role, end in endings.items()}
        if case not in by_case and only != "labels":
            found.notes += [f"{case}: only a {role} file, no images" for role, paths in marked.items() if paths]
            continue
        if missing := [name for name in found.channels if name not in by_case[case]]:
            found.notes.append(f"{case}: skipped, no {', '.join(missing)}")
            continue
        images: list[Path] = []
        for name in found.channels:  # such that they have a label map of their own
            beside = images or marked.get("label") or marked.get("lesion") or []
            images.append(_choose([p for p in pictures[case] if _suffix(p) == name], beside, case, found.notes))
        chosen = {}
        for role, paths in marked.items():
            own = [p for p in paths if not images or min(_apart(p, image, both=True) for image in images) == 0]
            if own:
                chosen[role] = _choose(own, images, case, found.notes)
            elif paths:
                found.notes.append(f"{case}: {paths[0].name} is of another scan than {images[0].name}, so not taken")
        if only == "labels" and "label" not in chosen:
            continue
        patient = _group(patient_regex, case.partition("_")[0], "--patient_regex")
        brain = chosen.get("brain") if only != "labels" else None
        found.cases.append(CaseSource(case, patient, tuple(images), chosen.get("label"), chosen.get("lesion"), brain))
    return found


def _is_bids_image(path: Path, source: Path) -> bool:
    inner = path.relative_to(source).parts
    return "derivatives" not in inner and path.parent.name == "anat" and _suffix(path) not in NO_IMAGES


def _suffix(path: Path) -> str:
    return stem(path).rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    """``run-2`` and the like of a file's name."""
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)


def _bids_case(path: Path) -> str:
    entities = _entities(path)
    session = f"_ses-{entities['ses']}" if "ses" in entities else ""
    return f"sub-{entities['sub']}{session}"


def _filters(wanted: Sequence[str]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in wanted)
    if bad := [text for text in wanted if not re.fullmatch(r"[A-Za-z]+=[A-Za-z0-9]*", text)]:
        raise ValueError(f"--bids_filter {bad[0]}: must be KEY=VALUE as run=2, or KEY= for files without KEY")
    return pairs


def _passes(path: Path, filters: Mapping[str, str]) -> bool:
    """Whether a file has none of the filtered entities, or the wanted values; ``run=`` is for files without a run."""
    entities = _entities(path)
    return all(entities.get(key, value) == value for key, value in filters.items())


def _apart(one: Path, other: Path, both: bool = False) -> int:
    """In how many of the entities that tell scans apart two files differ. both: of those that both have."""
    a, b = _entities(one), _entities(other)
    return sum(a.get(key) != b.get(key) for key in _OF_SCAN if not both or (key in a and key in b))


def _choose(paths: Sequence[Path], beside: Sequence[Path], case: str, notes: list[str]) -> Path:
    """One of several files of a case, which is noted: what agrees best with files `beside`; not in another space; with the
    fewest entities, so the plain file before ``acq-``, ``ce-`` and ``rec-``; the highest run; the first by name.
    """

    def order(path: Path) -> tuple[int, bool, int, int, str]:
        own = _entities(path)
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

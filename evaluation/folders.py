"""Any two folders of PNG slices or NIfTI volumes, ours or not, as pairs that can be scored."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from pathlib import Path

from dataloaders.io.file_names import PatientRule, label_of, place_of, shows_channels
from dataloaders.io.find import files_in, warn_of_unread
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import FILE_NAME, Case, Geometry, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES
from dataloaders.io.notices import warn_once
from dataloaders.io.png import MIN_RANGE, Palettes, read_png
from dataloaders.io.spec import Axis, Channel, DataSpec
from dataloaders.labelmaps.labels import count_labels
from evaluation.pairs import FOLDERS, ManifestPairs, Pairs
from evaluation.source_ids import SourceIds
from evaluation.volume_pairs import Files, VolumePairs, volume_files

MOST_LISTED = 20


@dataclass(frozen=True)
class Folders:
    """Two folders of equally named images, and what they cannot say themselves.

    labels: folder of label maps of the same names (the channel ending ``_0000`` may be missing). window: physical values of
    the lowest and the highest level; without it PNG levels count as they are, and NIfTI values from the lowest to the
    highest of each real volume. patient_regex: its first group is the patient in a file's name. axis: direction in
    which volumes are sliced. unit: of the intensities. levels: highest that PNG files can hold (`folders_manifest`).
    ValueError for a folder that is not there and for a window or an expression that cannot be used.
    """

    real: Path
    generated: Path
    labels: Path | None = None
    window: tuple[float, float] | None = None
    patient_regex: str | None = None
    axis: Axis = "axial"
    unit: str = "units"
    levels: int | None = None

    def __post_init__(self) -> None:
        PatientRule(self.patient_regex)
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"--window {self.window[0]:g} {self.window[1]:g}: the lower value comes first")
        for flag in ("real", "generated", "labels"):
            if (folder := getattr(self, flag)) is not None:
                files_in(folder, "", f"--{flag}")

    def pairs(self) -> Pairs:
        """NIfTI volumes where the folders hold any, else PNG slices. ValueError lists the files without a partner."""
        folders = {"real": self.real, "generated": self.generated}
        kinds = [
            (bool(volume_files(folder, flag)), bool(files_in(folder, ".png", f"--{flag}")))
            for flag, folder in folders.items()
        ]
        for folder in (*folders.values(), *([self.labels] if self.labels else [])):
            warn_of_unread(folder, SUFFIXES if kinds[0][0] else ".png")
        if any(all(kind) for kind in kinds) or kinds[0] != kinds[1]:
            held = [
                "NIfTI and PNG" if all(kind) else "NIfTI" if kind[0] else "PNG" if kind[1] else "no" for kind in kinds
            ]
            raise ValueError(f"--real {self.real} holds {held[0]} files, --generated {self.generated} {held[1]} files")
        if kinds[0][0]:
            return self._volumes()
        manifest = folders_manifest(
            self.real, self.generated, self.labels, self.window, self.patient_regex, self.unit, self.levels
        )
        return ManifestPairs(self.generated, manifest)

    def _volumes(self) -> VolumePairs:
        real, generated = volume_files(self.real, "real"), volume_files(self.generated, "generated")
        found = volume_files(self.labels, "labels") if self.labels else {}
        labels = {name: path for name in real if (path := label_of(name, found))}
        lacking = [f"{self.labels} has no {name}.nii.gz" for name in real if self.labels and name not in labels]
        refuse_unpaired(_lacking(self.real, self.generated, real.keys(), generated.keys(), ".nii.gz") + lacking)
        rule = PatientRule(self.patient_regex, shows_channels(real, found))
        cases = [
            Files(name, rule.patient(name), path, generated[name], labels.get(name)) for name, path in real.items()
        ]
        pairs = VolumePairs(cases, Window(*self.window) if self.window else None, self.axis, self.unit, rule.text)
        if self.window is None:
            warn_once(
                f"{self.real}: no --window, so PSNR, SSIM and networks use the range of each real volume, and "
                "their values are of no use beside those of other data"
            )
        if self.labels is not None and pairs.ids is not None:
            _warn_of_empty_labels(self.labels, pairs.ids)
        return pairs


def _lacking(real: Path, generated: Path, ours: Set[str], theirs: Set[str], ending: str) -> list[str]:
    return [f"{generated} has no {name}{ending}" for name in sorted(ours - theirs)] + [
        f"{real} has no {name}{ending}" for name in sorted(theirs - ours)
    ]


def refuse_unpaired(faults: list[str]) -> None:
    """ValueError that lists files without a partner, if there are any."""
    if faults:
        more = f"\n  and {len(faults) - MOST_LISTED} more" if len(faults) > MOST_LISTED else ""
        raise ValueError(f"{len(faults)} files without a partner:\n  " + "\n  ".join(faults[:MOST_LISTED]) + more)


def _warn_of_empty_labels(folder: Path, ids: SourceIds) -> None:
    if len(ids.known) == 1:
        warn_once(f"--labels {folder}: all label maps are 0 everywhere, so nothing within labels has a value")


def _levels(folder: Path, real: Iterable[Path], windowed: bool) -> int:
    """What 16-bit files hold at most: 65535, or where all real images stay far below as much as their bits can hold."""
    highest = max(int(read_png(path, image_only=True).max()) for path in real)
    if not 0 < highest < MIN_RANGE:
        return LEVELS
    levels = 2 ** max(8, highest.bit_length()) - 1
    line = f"{folder}: 16-bit images whose highest level is {highest}"
    if windowed:
        warn_once(f"{line}, while --window counts to {LEVELS}; give --levels {levels} if the files have fewer bits")
        return LEVELS
    warn_once(f"{line}: levels count from 0 to {levels}; give --levels for another range")
    return levels


def _results_of(generated: Path, files: dict[str, Path], size: tuple[int, int]) -> Manifest | None:
    """Manifest of the results folder of test.py that the generated images lie in: it knows what of them is padding."""
    folder = generated.resolve().parent
    if not (folder / FILE_NAME).is_file():
        return None
    manifest = Manifest.load(folder, histograms=False)
    known = {(folder / path).resolve() for case in manifest.cases for item in case.slices for path in item.generated}
    return manifest if manifest.spec.size == size and {path.resolve() for path in files.values()} <= known else None


def folders_manifest(
    real: Path,
    generated: Path,
    labels: Path | None,
    window: tuple[float, float] | None,
    patient_regex: str | None,
    unit: str = "units",
    levels: int | None = None,
) -> Manifest:
    """Pair equally named PNG files of two folders (and label maps of a third).

    levels: the highest level that the files can hold; without it 255 for 8-bit images, and for 16-bit images 65535 or, where
    real images and no window show that there are fewer bits, as much as these can hold. window: physical units of level 0
    and of the highest level; without it levels count as they are. patient_regex: see `PatientRule`. Files whose names differ
    in the number after ``_z`` only are the slices of one case, at that index; any other file is a case of its own. Of images
    in a results folder of test.py its manifest says what was scanned, and how large pixels are.
    ValueError lists the files without a partner.
    """
    folders = {"real": real, "generated": generated} | ({"labels": labels} if labels else {})
    files = {role: {p.stem: p for p in files_in(folder, ".png", f"--{role}")} for role, folder in folders.items()}
    if not files["real"]:
        raise ValueError(f"--real {real}: no PNG files")
    rule = PatientRule(patient_regex, shows_channels(files["real"], files.get("labels", {})))
    if labels:  # label maps may have no channel ending
        files["labels"] = {stem: p for stem in files["real"] if (p := label_of(stem, files["labels"]))}
    lacking = [
        f"{labels} has no {stem}.png" for stem in sorted(files["real"].keys() - files.get("labels", files["real"]))
    ]
    refuse_unpaired(_lacking(real, generated, files["real"].keys(), files["generated"].keys(), ".png") + lacking)
    palettes = Palettes()
    ids = SourceIds(i for path in set(files.get("labels", {}).values()) for i in count_labels(palettes.read(path)))
    if labels:
        _warn_of_empty_labels(labels, ids)
    series: dict[str, list[Slice]] = {}
    patients: dict[str, str] = {}
    for stem, path in files["real"].items():
        case, place = place_of(stem)
        patients.setdefault(case, rule.patient(stem))
        label = str(files["labels"][stem].resolve()) if labels else ""
        images = (str(path.resolve()),), (str(files["generated"][stem].resolve()),)
        series.setdefault(case, []).append(Slice(place or 0, label, *images))
    first = read_png(next(iter(files["real"].values())), image_only=True)
    whole = 255 if first.dtype.itemsize == 1 else LEVELS
    if levels is None:
        levels = whole if whole == 255 else _levels(real, files["real"].values(), window is not None)
    elif not 0 < levels <= whole:
        raise ValueError(f"--levels {levels}: the files have {8 * first.dtype.itemsize} bits, so 1 to {whole}")
    limits = Window(*(window or (0.0, float(levels))))
    spec = DataSpec(ids.labels, (Channel("image", unit),), (first.shape[0], first.shape[1]))
    scans: dict[str, Geometry | None] = {}
    if beside := _results_of(generated, files["generated"], spec.size):
        grid = beside.spec
        spec = replace(spec, axis=grid.axis, spacing=grid.spacing, slice_spacing=grid.slice_spacing)
        of_stem = {Path(path).stem: case for case in beside.cases for item in case.slices for path in item.generated}
        scans = {place_of(stem)[0]: of_stem[stem].geometry for stem in files["generated"]}
    cases = [
        Case(case, patients[case], "test", (limits,), tuple(slices), scans.get(case)) for case, slices in series.items()
    ]
    about = {"kind": FOLDERS, "name": generated.name, "patients": rule.text}
    return Manifest(spec, tuple(cases), about if levels == whole else about | {"levels": levels})

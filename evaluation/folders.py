"""Any two folders of PNG slices or NIfTI volumes, ours or not, as pairs that can be scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dataloaders.io.console import warn_once
from dataloaders.io.file_names import PatientRule, label_of, place_of, shows_channels, without_modality
from dataloaders.io.files import listed
from dataloaders.io.find import files_in, warn_of_unread, without_twins
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import FILE_NAME, Case, Geometry, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES, stem
from dataloaders.io.png import MIN_RANGE, Palettes, read_png
from dataloaders.io.spec import Axis, Channel, DataSpec
from dataloaders.labelmaps.labels import count_labels
from evaluation.pairs import FOLDERS, ManifestPairs, Pairs
from evaluation.source_ids import SourceIds
from evaluation.volume_pairs import Files, VolumePairs

KINDS = {"NIfTI": SUFFIXES, "PNG": (".png",)}
ENDINGS = {"NIfTI": ".nii.gz", "PNG": ".png"}


@dataclass(frozen=True)
class Folders:
    """Two folders of equally named images, and what they cannot say themselves.

    labels: folder of label maps of the same names (the channel ending ``_0000`` may be missing). window: physical values of
    the lowest and the highest level; without it PNG levels count as they are, and NIfTI values from the lowest to the
    highest of each real volume. patient_regex: its first group is the patient in a file's name. axis: direction in
    which volumes are sliced. unit: of the intensities. levels: the highest level that
    PNG files can hold; without it 255 for 8-bit images, and for 16-bit images 65535 or, where real images and no window show
    that there are fewer bits, as much as these can hold.
    ValueError for a folder that is not there and for an expression that cannot be used.
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
        for flag in ("real", "generated", "labels"):
            if (folder := getattr(self, flag)) is not None:
                files_in(folder, "", f"--{flag}")

    def pairs(self) -> Pairs:
        """NIfTI volumes where the folders hold any, else PNG slices. ValueError lists the files without a partner."""
        folders = {"real": self.real, "generated": self.generated}
        held = [
            [kind for kind, suffix in KINDS.items() if files_in(folder, suffix, f"--{flag}")]
            for flag, folder in folders.items()
        ]
        kind = held[0][0] if held[0] else "PNG"
        for folder in (*folders.values(), *([self.labels] if self.labels else [])):
            warn_of_unread(folder, KINDS[kind])
        if len(held[0]) > 1 or held[0] != held[1]:
            said = [" and ".join(of_folder) or "no" for of_folder in held]
            raise ValueError(f"--real {self.real} holds {said[0]} files, --generated {self.generated} {said[1]} files")
        files, patients = self._matched(kind)
        if not files:
            raise ValueError(f"--real {self.real}: no PNG files")
        return self._volumes(files, patients) if kind == "NIfTI" else self._slices(files, patients)

    def _matched(self, kind: str) -> tuple[list[Files], str]:
        """Files of one name in all folders, and how their patients were found.

        Label maps may have no channel ending. Where nothing else is equal, names are compared without a modality that all
        of a folder share: ``test.py --labels`` adds its channel's, BIDS ends in ``_T1w`` here and in ``_dseg`` there.
        """
        folders = {"real": self.real, "generated": self.generated} | ({"labels": self.labels} if self.labels else {})
        real, generated, *found = (
            {stem(path): path for path in without_twins(files_in(folder, KINDS[kind], f"--{flag}"))}
            for flag, folder in folders.items()
        )
        maps = found[0] if found else {}
        if not real.keys() & generated.keys() or (maps and not any(label_of(name, maps) for name in real)):
            real, generated, maps = (without_modality(files) for files in (real, generated, maps))
        labels = {name: path for name in real if (path := label_of(name, maps))}
        lacking = [(self.generated, name) for name in sorted(real.keys() - generated.keys())]
        lacking += [(self.real, name) for name in sorted(generated.keys() - real.keys())]
        lacking += [(self.labels, name) for name in sorted(real.keys() - labels.keys())] if self.labels else []
        if lacking:
            lines = [f"{folder} has no {name}{ENDINGS[kind]}" for folder, name in lacking]
            raise ValueError("\n  ".join([f"{len(lines)} files without a partner:", *listed(lines)]))
        rule = PatientRule(self.patient_regex, shows_channels(real, maps))
        files = [Files(name, rule.patient(name), real[name], generated[name], labels.get(name)) for name in real]
        return files, rule.text

    def _volumes(self, files: list[Files], patients: str) -> VolumePairs:
        pairs = VolumePairs(files, Window(*self.window) if self.window else None, self.axis, self.unit, patients)
        if self.window is None:
            warn_once(
                f"{self.real}: no --window, so PSNR, SSIM and networks use the range of each real volume, and "
                "their values are of no use beside those of other data"
            )
        if self.labels is not None and pairs.ids is not None:
            _warn_of_empty_labels(self.labels, pairs.ids)
        return pairs

    def _slices(self, files: list[Files], patients: str) -> ManifestPairs:
        """A manifest of PNG files: those whose names differ in the number after ``_z`` only are the slices of one case.

        Of images in a results folder of test.py its manifest says what was scanned, and how large pixels are.
        """
        palettes = Palettes()
        ids = SourceIds(
            i for path in {one.label for one in files if one.label} for i in count_labels(palettes.read(path))
        )
        if self.labels:
            _warn_of_empty_labels(self.labels, ids)
        series: dict[str, list[Slice]] = {}
        of_case: dict[str, str] = {}
        for one in files:
            case, place = place_of(one.id)
            of_case.setdefault(case, one.patient)
            label = str(one.label.resolve()) if one.label else ""
            item = Slice(place or 0, label, (str(one.real.resolve()),), (str(one.generated.resolve()),))
            series.setdefault(case, []).append(item)
        first = read_png(files[0].real, image_only=True)
        whole = 255 if first.dtype.itemsize == 1 else LEVELS
        levels = self.levels
        if levels is None:
            real = (one.real for one in files)
            levels = whole if whole == 255 else _levels(self.real, real, self.window is not None)
        elif not 0 < levels <= whole:
            raise ValueError(f"--levels {levels}: the files have {8 * first.dtype.itemsize} bits, so 1 to {whole}")
        spec = DataSpec(ids.labels, (Channel("image", self.unit),), (first.shape[0], first.shape[1]))
        scans: dict[str, Geometry | None] = {}
        if beside := _results_of(self.generated, [one.generated for one in files], spec.size):
            grid = beside.spec
            spec = replace(spec, axis=grid.axis, spacing=grid.spacing, slice_spacing=grid.slice_spacing)
            found = {Path(path).stem: case for case in beside.cases for item in case.slices for path in item.generated}
            scans = {place_of(one.id)[0]: found[one.generated.stem].geometry for one in files}
        window = Window(*(self.window or (0.0, float(levels))))
        cases = [
            Case(case, of_case[case], "test", (window,), tuple(slices), scans.get(case))
            for case, slices in series.items()
        ]
        about: dict[str, object] = {"kind": FOLDERS, "name": self.generated.name, "patients": patients}
        about |= {} if levels == whole else {"levels": levels}
        return ManifestPairs(self.generated, Manifest(spec, tuple(cases), about))


def _warn_of_empty_labels(folder: Path, ids: SourceIds) -> None:
    if len(ids.known) == 1:
        warn_once(f"--labels {folder}: all label maps are 0 everywhere, so nothing within labels has a value")


def _levels(folder: Path, real: Iterable[Path], windowed: bool) -> int:
    """What 16-bit files hold at most: 65535, or where all real images stay far below as much as their bits can hold."""
    highest = 0
    for path in real:  # one is enough where all bits are in use
        highest = max(highest, int(read_png(path, image_only=True).max()))
        if highest >= MIN_RANGE:
            return LEVELS
    if highest == 0:
        return LEVELS
    levels = 2 ** max(8, highest.bit_length()) - 1
    line = f"{folder}: 16-bit images whose highest level is {highest}"
    if windowed:
        warn_once(f"{line}, while --window counts to {LEVELS}; give --levels {levels} if the files have fewer bits")
        return LEVELS
    warn_once(f"{line}: levels count from 0 to {levels}; give --levels for another range")
    return levels


def _results_of(generated: Path, files: list[Path], size: tuple[int, int]) -> Manifest | None:
    """Manifest of the results folder of test.py that the generated images lie in: it knows what of them is padding."""
    folder = generated.resolve().parent
    if not (folder / FILE_NAME).is_file():
        return None
    manifest = Manifest.load(folder, histograms=False)
    known = {(folder / path).resolve() for case in manifest.cases for item in case.slices for path in item.generated}
    return manifest if manifest.spec.size == size and {path.resolve() for path in files} <= known else None

"""Any two folders of PNG slices or NIfTI volumes, ours or not, as pairs that can be scored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dataloaders.io.console import warn_once
from dataloaders.io.file_names import PatientRule, label_of, place_of, shows_channels, without_modality
from dataloaders.io.files import listed
from dataloaders.io.find import files_in, warn_of_unread, without_twins
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import FILE_NAME, Case, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES, stem
from dataloaders.io.png import MIN_RANGE, Palettes, read_png
from dataloaders.io.spec import Axis, Channel
from dataloaders.labelmaps.labels import common_labels
from evaluation.pairs import WHOLE, Pairs, PngPairs, region_of
from evaluation.volume_pairs import Files, VolumePairs

KINDS = {"NIfTI": SUFFIXES, "PNG": (".png",)}
ENDINGS = {"NIfTI": ".nii.gz", "PNG": ".png"}


@dataclass(frozen=True)
class Folders:
    """Two folders of equally named images, and what they cannot say themselves.

    labels: folder of label maps of the same names (the channel ending ``_0000`` may be missing); a table beside NIfTI maps
    names what they hold. window: physical values of
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
        if self.levels is not None and not 0 < self.levels <= LEVELS:
            raise ValueError(f"--levels {self.levels}: must be 1 to {LEVELS}")
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
        return self._volumes(files, patients) if kind == "NIfTI" else FolderPairs(self, files, patients)

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
        window = Window(*self.window) if self.window else None
        named = common_labels([one.label for one in files if one.label])
        names = {  # a table may fuse ids under one name; here each keeps its own numbers
            i: label.name if i == 0 or len(label.source) == 1 else f"{label.name}_{i}"
            for label in named
            for i in label.source
        }
        pairs = VolumePairs(files, window, self.axis, self.unit, patients, names)
        if self.window is None:
            warn_once(
                f"{self.real}: no --window, so PSNR, SSIM and networks use the range of each real volume, and "
                "their values are of no use beside those of other data"
            )
        return pairs


class FolderPairs(PngPairs):
    """PNG files: those whose names differ in the number after ``_z`` only are the slices of one case.

    Of images in a results folder of test.py its manifest says what was scanned, and how large pixels are. How many levels
    16-bit files can hold is only known once all real images are read, if nobody said it; so the images of a group are read
    before any of it is scored, and a group that was scored with too few levels (see `outdated`) has to be scored again.
    """

    def __init__(self, folders: Folders, files: Sequence[Files], patients: str) -> None:
        self.folders, self.folder, self.patients = folders, folders.generated, patients
        self.channels, self.names, self.labelled = (Channel("image", folders.unit),), {}, folders.labels is not None
        self.provenance = {"name": self.folder.name, "levels": folders.levels}
        beside = _results_of(self.folder, [one.generated for one in files])
        self.axis, self.mm = (
            (beside.spec.axis, (beside.spec.slice_spacing, *beside.spec.spacing)) if beside else (None, (1, 1, 1))
        )
        self.spacing_known = self.axis is not None or self.mm != (1, 1, 1)
        scans = {
            Path(path).stem: case.geometry
            for case in (beside.cases if beside else ())
            for item in case.slices
            for path in item.generated
        }
        patients_of: dict[str, str] = {}
        series: dict[str, list[Slice]] = {}
        for one in files:
            case, place = place_of(one.id)
            patients_of.setdefault(case, one.patient)
            label = str(one.label.resolve()) if one.label else ""
            item = Slice(place or 0, label, (str(one.real.resolve()),), (str(one.generated.resolve()),))
            series.setdefault(case, []).append(item)
        self.cases = [
            Case(case, patients_of[case], "test", (), tuple(slices), scans.get(Path(slices[-1].generated[0]).stem))
            for case, slices in series.items()
        ]
        self.region = region_of(self.cases, beside.spec) if beside else WHOLE
        known = folders.window or (folders.levels and (0.0, float(folders.levels)))
        self.windows = {"image": list(known) if known else None}
        self._palettes = Palettes()
        self._highest = -1  # level of the real 16-bit images
        self._scored: dict[str, tuple[int | None, float, float]] = {}  # case -> `_range` at that time
        self._held, self._lock = threading.local(), threading.Lock()

    def _opened(self, cases: list[Case]) -> tuple[list[Case], Callable[[Path], NDArray]]:
        """Reads all of their images, to know the range of them all; what was scored is let go slice by slice."""
        pairs = [(Path(item.images[0]), Path(item.generated[0])) for case in cases for item in case.slices]
        stored = {
            path: read_png(path, image_only=True) for path in dict.fromkeys(path for pair in pairs for path in pair)
        }
        real = [stored[path] for path, _ in pairs]
        with self._lock:
            self._highest = max([self._highest, *(int(image.max()) for image in real if image.dtype.itemsize == 2)])
            _, low, high = found = self._range()
            self.windows = {"image": [low, high]}
            self._scored |= dict.fromkeys((case.id for case in cases), found)
        return [replace(case, windows=(Window(low, high),)) for case in cases], stored.pop

    def _range(self) -> tuple[int | None, float, float]:
        """Levels for `as_16_bit` and the window, after what was read so far."""
        whole = LEVELS if self._highest >= 0 else 255
        levels = self.folders.levels or whole
        if levels > whole:
            raise ValueError(f"--levels {levels}: the files have 8 bits, so 1 to {whole}")
        if self._few_bits and self.folders.window is None:
            levels = self._few_bits
        low, high = self.folders.window or (0.0, float(levels))
        return (None if levels == whole else levels), low, high

    @property
    def _few_bits(self) -> int:
        """What the real images' bits can hold where that is far below 65535 and nobody said otherwise; else 0."""
        few = self.folders.levels is None and 0 < self._highest < MIN_RANGE
        return 2 ** max(8, self._highest.bit_length()) - 1 if few else 0

    def _label(self, path: Path) -> NDArray:
        return self._palettes.read(path)

    def _levels(self) -> int | None:
        return self._range()[0]  # where it has changed since the case was opened, the case is outdated

    def outdated(self, cases: Sequence[str]) -> bool:
        """See `Pairs.outdated`."""
        return any(self._scored[case] != self._range() for case in cases)

    def seen(self) -> dict[str, Any]:
        """Highest level, colours of palettes, and how each case was scored."""
        return {"highest": self._highest, "palettes": self._palettes.found, "scored": self._scored}

    def see(self, seen: dict[str, Any]) -> None:
        """NoGrey for other palettes than here."""
        self._highest = max(self._highest, seen["highest"])
        self._scored |= {case: tuple(found) for case, found in seen["scored"].items()}
        self.windows = {"image": [*self._range()[1:]]}
        for i, colour, path in seen["palettes"]:
            self._palettes.add(i, tuple(colour), Path(path))

    def tell(self) -> None:
        """Of 16-bit images with fewer bits."""
        if levels := self._few_bits:
            line = f"{self.folders.real}: 16-bit images whose highest level is {self._highest}"
            given = f"while --window counts to {LEVELS}; give --levels {levels} if the files have fewer bits"
            found = f"levels count from 0 to {levels}; give --levels for another range"
            warn_once(f"{line}, {given}" if self.folders.window else f"{line}: {found}")


def _results_of(generated: Path, files: list[Path]) -> Manifest | None:
    """Manifest of the results folder of test.py that the generated images lie in: it knows what of them is padding."""
    folder = generated.resolve().parent
    if not (folder / FILE_NAME).is_file():
        return None
    manifest = Manifest.load(folder, histograms=False)
    known = {(folder / path).resolve() for case in manifest.cases for item in case.slices for path in item.generated}
    return manifest if {path.resolve() for path in files} <= known else None

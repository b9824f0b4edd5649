"""Any two folders of PNG slices or NIfTI volumes, ours or not, as pairs that can be scored."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

from dataloaders.intensity import LEVELS, Window
from dataloaders.manifest import Case, Manifest, Slice
from dataloaders.png import read_png
from evaluation.pairs import ManifestPairs, Pairs
from evaluation.volume_pairs import Files, VolumePairs, patient_of, volume_files
from spec import Axis, Channel, DataSpec, Label

_CASE = r"^(.+?)(?:_z\d+)?(?:_\d{4})?$"
_Z = r"_z(\d+)(?=(?:_\d{4})?$)"
MOST_LISTED = 20


@dataclass(frozen=True)
class Folders:
    """Two folders of equally named images, and what they cannot say themselves.

    labels: folder of label maps of the same names (the channel ending ``_0000`` may be missing). window: physical values of
    the lowest and the highest level; without it PNG levels count as they are, and NIfTI values from the lowest to the
    highest of each real volume. patient_regex: its first group is the patient in a file's name. axis: direction in
    which volumes are sliced. unit: of the intensities.
    """

    real: Path
    generated: Path
    labels: Path | None = None
    window: tuple[float, float] | None = None
    patient_regex: str | None = None
    axis: Axis = "axial"
    unit: str = "units"

    def pairs(self) -> Pairs:
        """NIfTI volumes where the folders hold any, else PNG slices. ValueError lists the files without a partner."""
        kinds = [(bool(volume_files(folder)), any(folder.glob("*.png"))) for folder in (self.real, self.generated)]
        if any(all(kind) for kind in kinds) or kinds[0] != kinds[1]:
            held = [
                "NIfTI and PNG" if all(kind) else "NIfTI" if kind[0] else "PNG" if kind[1] else "no" for kind in kinds
            ]
            raise ValueError(f"--real {self.real} holds {held[0]} files, --generated {self.generated} {held[1]} files")
        if kinds[0][0]:
            return self._volumes()
        manifest = folders_manifest(self.real, self.generated, self.labels, self.window, self.patient_regex, self.unit)
        return ManifestPairs(self.generated, manifest)

    def _volumes(self) -> VolumePairs:
        real, generated = volume_files(self.real), volume_files(self.generated)
        found = volume_files(self.labels) if self.labels else {}
        labels = {name: path for name in real if (path := label_of(name, found))}
        lacking = [f"{self.labels} has no {name}.nii.gz" for name in real if self.labels and name not in labels]
        refuse_unpaired(_lacking(self.real, self.generated, real.keys(), generated.keys(), ".nii.gz") + lacking)
        cases = [
            Files(name, patient_of(name, self.patient_regex), path, generated[name], labels.get(name))
            for name, path in real.items()
        ]
        return VolumePairs(cases, Window(*self.window) if self.window else None, self.axis, self.unit)


def _lacking(real: Path, generated: Path, ours: Set[str], theirs: Set[str], ending: str) -> list[str]:
    return [f"{generated} has no {name}{ending}" for name in sorted(ours - theirs)] + [
        f"{real} has no {name}{ending}" for name in sorted(theirs - ours)
    ]


def refuse_unpaired(faults: list[str]) -> None:
    """ValueError that lists files without a partner, if there are any."""
    if faults:
        more = f"\n  and {len(faults) - MOST_LISTED} more" if len(faults) > MOST_LISTED else ""
        raise ValueError(f"{len(faults)} files without a partner:\n  " + "\n  ".join(faults[:MOST_LISTED]) + more)


def folders_manifest(
    real: Path,
    generated: Path,
    labels: Path | None,
    window: tuple[float, float] | None,
    patient_regex: str | None,
    unit: str = "units",
) -> Manifest:
    """Pair equally named PNG files of two folders (and label maps of a third).

    window: physical units of level 0 and of the highest level; without it, 8-bit images count 0..255 and 16-bit
    images 0..65535. patient_regex: first group of a file's stem is the patient; default is the stem without the
    ``_z<slice>`` and ``_<channel>`` endings. Only ``_z<slice>`` tells which slices are neighbours. ValueError lists the
    files that lack a partner.
    """
    folders = {"real": real, "generated": generated} | ({"labels": labels} if labels else {})
    files = {role: {p.stem: p for p in sorted(folder.glob("*.png"))} for role, folder in folders.items()}
    if not files["real"]:
        raise ValueError(f"--real {real}: no PNG files")
    if labels:  # label maps have no channel suffix
        files["labels"] = {stem: p for stem in files["real"] if (p := label_of(stem, files["labels"]))}
    lacking = [
        f"{labels} has no {stem}.png" for stem in sorted(files["real"].keys() - files.get("labels", files["real"]))
    ]
    refuse_unpaired(_lacking(real, generated, files["real"].keys(), files["generated"].keys(), ".png") + lacking)
    grouped: dict[str, list[Slice]] = {}
    highest = 1
    for stem, path in files["real"].items():
        match = re.search(patient_regex or _CASE, stem)
        if match is None:
            raise ValueError(f"--patient_regex {patient_regex!r} does not match {stem!r}")
        label = str(files["labels"][stem].resolve()) if labels else ""
        highest = max(highest, int(read_png(label).max())) if label else highest
        images = (str(path.resolve()),), (str(files["generated"][stem].resolve()),)
        grouped.setdefault(match.group(1), []).append(Slice(0, label, *images))
    first = read_png(next(iter(files["real"].values())))
    limits = Window(*(window or (0.0, 255.0 if first.dtype.itemsize == 1 else float(LEVELS))))
    spec = DataSpec(
        tuple(Label(i, "background" if i == 0 else f"label_{i}") for i in range(highest + 1)),
        (Channel("image", unit),),
        (first.shape[0], first.shape[1]),
    )
    cases = [Case(patient, patient, "test", (limits,), _placed(slices)) for patient, slices in grouped.items()]
    return Manifest(spec, tuple(cases), {"kind": "results", "name": generated.name})


def _placed(slices: list[Slice]) -> tuple[Slice, ...]:
    """The slices of a patient with their index along z, which is the number after ``_z`` in the name.

    Names that differ in more than this number (scans, channels) are separate series. They lie behind each other with a
    gap, so that their slices, as those without a number, are nobody's neighbours.
    """
    series: dict[tuple[str, ...], list[tuple[int, Slice]]] = {}
    for item in slices:
        stem = Path(item.images[0]).stem
        match = re.search(_Z, stem)
        rest = (stem[: match.start()], stem[match.end() :]) if match else (stem,)
        series.setdefault(rest, []).append((int(match[1]) if match else 0, item))
    placed: list[Slice] = []
    for members in series.values():
        start = max(item.index for item in placed) + 2 if placed else 0
        placed += [replace(item, index=start + z) for z, item in members]
    return tuple(placed)


def label_of(stem: str, labels: dict[str, Path]) -> Path | None:
    """The label map of an image: of the same name, or of the name without the channel."""
    return labels.get(stem) or labels.get(re.sub(r"_\d{4}$", "", stem))

"""Any two folders of PNG slices, ours or not, as a manifest that can be scored."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dataloaders.intensity import LEVELS, Window
from dataloaders.manifest import Case, Manifest, Slice
from dataloaders.png import read_png
from spec import Channel, DataSpec, Label

_CASE = r"^(.+?)(?:_z\d+)?(?:_\d{4})?$"
_Z = r"_z(\d+)(?=(?:_\d{4})?$)"


def folders_manifest(
    real: Path, generated: Path, labels: Path | None, window: tuple[float, float] | None, patient_regex: str | None
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
        files["labels"] = {stem: p for stem in files["real"] if (p := _label_of(stem, files["labels"]))}
    faults = [
        f"{folders[role]} has no {stem}.png"
        for role in files
        for stem in sorted(files["real"].keys() - files[role].keys())
    ] + [f"{real} has no {stem}.png" for stem in sorted(files["generated"].keys() - files["real"].keys())]
    if faults:
        raise ValueError(f"{len(faults)} files without a partner:\n  " + "\n  ".join(faults[:20]))
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
        (Channel("image", "units"),),
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


def _label_of(stem: str, labels: dict[str, Path]) -> Path | None:
    return labels.get(stem) or labels.get(re.sub(r"_\d{4}$", "", stem))

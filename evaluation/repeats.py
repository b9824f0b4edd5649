"""Second scans of the same heads, laid onto the first ones' grids: what they reach is the floor of every paired metric.

The second scan is laid onto the first one (SimpleITK, rigid then affine: nothing is bent) and goes to its grid in one
interpolation. Scored as if a generator had painted it from the first scan's label map, by the code that scores generators.
"""

from __future__ import annotations

import csv
import glob
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.files import known_sha256, naming
from dataloaders.io.manifest import Case, Manifest, Slice
from dataloaders.io.nifti import Volume, read_volume, write_volume
from dataloaders.io.png import read_slice, write_png
from dataloaders.io.spec import Channel
from dataloaders.prepare.slicing import AIR_HU, body_of, in_units, is_cleaned, mr_window, without_table
from dataloaders.registration import register
from evaluation.floors import REPEATS
from evaluation.volume_pairs import Files


def pairs_of(people: Mapping[str, str], table: Path | None = None) -> list[tuple[str, str]]:
    """(first, second) case of each person with two scans.

    people: case -> person. Without a table the first two cases of a person, by name. table: CSV or TSV with the columns
    `first` and `second`; the second one need not be among the cases. ValueError where there is none, or for a table that
    is none, names a first case that is not there or twice, or one scan as both.
    """
    if table is not None:
        return _read_pairs(table, people)
    cases: dict[str, list[str]] = {}
    for case, person in sorted(people.items()):
        cases.setdefault(person, []).append(case)
    found = [(of[0], of[1]) for of in cases.values() if len(of) > 1]
    if not found:
        raise ValueError(
            f"none of {len(people)} cases is a second scan of a person who has another; name them by --table, a CSV file "
            "with the columns first and second"
        )
    return found


def _read_pairs(table: Path, people: Mapping[str, str]) -> list[tuple[str, str]]:
    with naming(table, "table of second scans"), open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",", restval="")
        if not {"first", "second"} <= {*(reader.fieldnames or ())}:
            raise ValueError(f"has the columns {', '.join(reader.fieldnames or ())}; needed are first and second")
        found = [(row["first"].strip(), row["second"].strip()) for row in reader]
        if unknown := [first for first, _ in found if first not in people]:
            raise ValueError(f"first {unknown[0]!r} is no case; there are {', '.join(sorted(people)[:5])}, …")
        if not found or not all(second for _, second in found):
            raise ValueError("names no second scan" + (f" of {found[-1][0]}" if found else ""))
        if same := [first for first, second in found if first == second]:
            raise ValueError(f"first and second are both {same[0]}")
        if twice := [first for first, count in Counter(first for first, _ in found).items() if count > 1]:
            raise ValueError(f"names {twice[0]} as first more than once; a floor takes one second scan of each")
    return found


def laid_on(first: Volume, second: Volume, shape: Sequence[int], grid: NDArray, fill: float = 0.0) -> NDArray:
    """The second scan of a head on a grid (I, J, K) with its affine (4, 4) in the space of the first one."""
    # mm of the first scan -> mm of the second; its inverse says where the second scan's voxels lie in the first head.
    placed = np.linalg.inv(register(first, second, "affine").affine) @ second.affine
    return geometry.resample(second.data, placed, (shape[0], shape[1], shape[2]), grid, fill=fill)


# -- of a prepared folder -----------------------------------------------------------------------------------------


def write_results(root: Path, scans: Path, pairs: Sequence[tuple[str, str]], out: Path) -> Manifest:
    """A results folder whose generated images are the second scans on the first ones' prepared grids.

    root: a prepared folder. scans: where the files lie that it was prepared from; a second scan that was not prepared is
    named as the first one, with its own case. What prepare_data.py did to the values of a scan is done to the second one
    too: its units, air outside of the body, an MR scan's own window. ValueError for data without a grid, or prepared with
    what sources do not have, and for a scan that is not there.
    """
    data = Manifest.load(root)
    if unlike := _not_redone(data):
        raise ValueError(f"{root} was prepared with {unlike}, which second scans cannot be")
    cases = {case.id: case for case in data.cases}
    if data.spec.axis is None or any(cases[first].geometry is None for first, _ in pairs):
        raise ValueError(f"{root} was made of plain slices, which say nothing of where a second scan would lie")
    written = []
    for first, second in pairs:
        volumes = [_second(cases, first, second, data, i, scans) for i in range(data.spec.num_channels)]
        volumes = _cleaned(volumes, cases[first], data, root)
        written.append(_write_case(cases[first], volumes, data, root, out))
    named = [f"{first} = {second}" for first, second in pairs]
    manifest = Manifest(data.spec, tuple(written), {"kind": "results", "name": REPEATS, "pairs": named})
    manifest.save(out)
    return manifest


def _options(data: Manifest) -> dict[str, Any]:
    """Those that the data were prepared with."""
    return data.provenance.get("options") or {}


def _windows(data: Manifest) -> list[str]:
    """--window of each channel, with what ``auto`` stands for."""
    texts = _options(data).get("window") or ["auto"]
    plain = "wm" if _options(data).get("fill", "none") != "none" else "mr"
    of_channels = texts if len(texts) > 1 else texts * data.spec.num_channels
    auto = ["ct" if channel.unit == "HU" else plain for channel in data.spec.channels]
    return [auto[i] if text == "auto" else text for i, text in enumerate(of_channels)]


def _not_redone(data: Manifest) -> str:
    """What changed the values of the scans that needs more than the second scan itself; '' where nothing did."""
    if _options(data).get("n4"):
        return "--n4"
    if "wm" in _windows(data):
        return "--fill or --window wm"
    masks = any("body" in case.sources for case in data.cases)
    return "masks of the body" if masks and is_cleaned(_clean(data), _is_ct(data)) else ""


def _clean(data: Manifest) -> str:
    return str(_options(data).get("clean", "auto"))


def _is_ct(data: Manifest) -> list[bool]:
    return [channel.unit == "HU" for channel in data.spec.channels]


def _second(cases: Mapping[str, Case], first: str, second: str, data: Manifest, index: int, scans: Path) -> NDArray:
    case, channel = cases[first], data.spec.channels[index]
    assert case.geometry is not None
    one, other = (read_volume(path) for path in scan_files(cases, first, second, channel, scans))
    if channel.unit == "HU":
        other = replace(other, data=in_units(other.data, _options(data).get("hu_offset")))
    return laid_on(one, other, case.geometry.grid_shape, np.array(case.geometry.grid_affine), outside(channel))


def scan_files(cases: Mapping[str, Case], first: str, second: str, channel: Channel, scans: Path) -> tuple[Path, Path]:
    """The files of both scans below `scans`: of a name that several have, the one whose content was prepared.

    A second scan that was not prepared is named as the first one, with its own case. ValueError where a file is not there,
    where a name does not say which one it is, and where both scans are one.
    """
    with naming(f"{first} = {second}"):
        one = _prepared_file(cases[first].sources[channel.name], scans)
        if second in cases:
            other = _prepared_file(cases[second].sources[channel.name], scans)
        else:
            other = _named_file(one.name, first, second, scans)
        if known_sha256(one) == known_sha256(other):
            raise ValueError(f"{one} and {other} are the same scan")
    return one, other


def _prepared_file(source: Mapping[str, str], scans: Path) -> Path:
    found = sorted(scans.rglob(glob.escape(source["file"])))
    for path in found:
        if known_sha256(path) == source["sha256"]:
            return path
    raise ValueError(f"{scans} has no {source['file']}" + (" of the content that was prepared" if found else ""))


def _named_file(name: str, first: str, second: str, scans: Path) -> Path:
    """The only file that is named as `name` with the other case."""
    if name.count(first) != 1:
        raise ValueError(
            f"{second} was not prepared, and {name}, which does not name {first} once, says not what to look for"
        )
    wanted = name.replace(first, second)
    found = sorted(scans.rglob(glob.escape(wanted)))
    if len(found) != 1:
        several = f"{len(found)} files {wanted}: {', '.join(map(str, found[:2]))}"
        raise ValueError(f"{scans} has " + (several if found else f"no {wanted}"))
    return found[0]


def outside(channel: Channel) -> float:
    """The value of air."""
    return AIR_HU if channel.unit == "HU" else 0.0


def _cleaned(volumes: list[NDArray], case: Case, data: Manifest, root: Path) -> list[NDArray]:
    """Second scans with air outside of their body, where the first ones have been given that."""
    if not is_cleaned(_clean(data), _is_ct(data)):
        return volumes
    assert case.geometry is not None
    assert data.spec.axis is not None
    labelled = np.zeros(case.geometry.grid_shape, bool)
    for item in case.slices:
        label = read_slice(root / item.label, data.spec) > 0
        geometry.put_plane(labelled, data.spec.axis, item.index, label, case.geometry.crop)
    body = body_of(volumes, np.array(case.geometry.grid_affine), _is_ct(data), labelled)
    return without_table(volumes, body, _is_ct(data), _clean(data))


def _write_case(case: Case, volumes: Sequence[NDArray], data: Manifest, root: Path, out: Path) -> Case:
    """The files of one case of `write_results`; returns it with its generated images."""
    assert case.geometry is not None
    assert data.spec.axis is not None
    windows = [
        mr_window(volume) if text == "mr" else window
        for volume, text, window in zip(volumes, _windows(data), case.windows, strict=True)
    ]
    items: list[Slice] = []
    for item in case.slices:
        for path in (item.label, *item.images):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, out / path)
        generated = tuple(f"generated/{Path(path).name}" for path in item.images)
        for path, volume, window, channel in zip(generated, volumes, windows, data.spec.channels, strict=True):
            plane = geometry.plane(volume, data.spec.axis, item.index)
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            image = geometry.window_plane(plane, case.geometry.crop, data.spec.size, outside(channel))
            write_png(out / path, window.encode(image))
        items.append(replace(item, generated=generated, filled=()))
    return replace(case, slices=tuple(items))


# -- of a folder of volumes ---------------------------------------------------------------------------------------


def write_volumes(cases: Mapping[str, Files], pairs: Sequence[tuple[str, str]], out: Path) -> None:
    """`out`/<first>.nii.gz: the second scan on the first one's grid, in its own values."""
    for first, second in pairs:
        if second not in cases:
            raise ValueError(f"{first} = {second}: there is no volume {second}")
        one, other = (read_volume(cases[name].real) for name in (first, second))
        write_volume(
            out / f"{first}.nii.gz", laid_on(one, other, one.data.shape, one.affine).astype(np.float32), one.affine
        )

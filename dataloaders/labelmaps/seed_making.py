"""Seeds of all subjects of a BIDS data set; what scripts/make_seeds.py does. Resumable.

A case's record is written after its seeds, and the folder's index last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataloaders.io.files import check_name, read_json, write_json
from dataloaders.io.find import files_in
from dataloaders.io.geometry import off_grid, onto_axes
from dataloaders.io.locks import LOCK, lock_folder
from dataloaders.io.nifti import SUFFIXES, file_sha256, read_volume, stem, whole_numbers, write_volume
from dataloaders.io.progress import Progress, say
from dataloaders.io.workers import as_ready, cores
from dataloaders.labelmaps.seeds import (
    FIT_VOXELS,
    INDEX,
    MAX_SUBCLASSES,
    SeedScheme,
    find_scheme,
    record_file,
    seed_file,
    subcluster,
)


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Split the tissues of a BIDS data set by intensity into seeds for the GMM generator."""

    bids_path: Path
    """BIDS folder: sub-*/[ses-*/]anat/ with images and label maps beside them."""
    out_path: Path
    """Folder to write; the same command goes on with what was interrupted there."""
    max_subclasses: int = 6
    """Split each meta-label into 1, 2, … up to so many sub-clusters (at most 10)."""
    annotation: str = "feta"
    """feta, dhcp, tissue, gm-wm-csf, freesurfer, or a table of meta-labels (.json, .csv, .tsv)."""
    image_suffix: str = "T2w"
    """Ending of the images' names."""
    label_suffix: str = "dseg"
    """Ending of the label maps' names: <image>_dseg, or _dseg in the place of the image's suffix."""
    seed: int = 0
    """Seed of the mixtures."""
    num_workers: int = 0
    """Subjects worked on at the same time; 0 for one per core."""
    overwrite: bool = False
    """Make everything again, also where it was made with other settings."""


@dataclass(frozen=True)
class SeedSource:
    """Image and label map of one case. key as in SeedCase."""

    key: str
    image: Path
    label: Path


@dataclass
class SeedReport:
    """What became of the cases: keys that were made now, keys that were there before, lines about the others."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def find_sources(bids: Path, image_suffix: str, label_suffix: str) -> tuple[list[SeedSource], list[str]]:
    """Images with a label map beside them, and one line for each file without a partner.

    ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``. ValueError where nothing is found.
    """
    if not bids.is_dir():
        raise ValueError(f"--bids_path {bids}: no such folder")
    sources, skipped = [], []
    for folder in sorted([*bids.glob("sub-*/anat"), *bids.glob("sub-*/ses-*/anat")]):
        files: dict[str, Path] = {}
        for path in files_in(folder, SUFFIXES):  # .nii before .nii.gz, and the latter counts
            files[stem(path)] = path
        used = set()
        for name in (name for name in files if name.endswith(f"_{image_suffix}")):
            candidates = (f"{name}_{label_suffix}", f"{name.removesuffix(image_suffix)}{label_suffix}")
            label = next((c for c in candidates if c in files), None)
            if label is None:
                skipped.append(f"{files[name].relative_to(bids)}: no label map {' or '.join(candidates)}")
                continue
            used.add(label)
            sources.append(SeedSource((folder.relative_to(bids) / name).as_posix(), files[name], files[label]))
        for name in (name for name in files if name.endswith(f"_{label_suffix}") and name not in used):
            skipped.append(f"{files[name].relative_to(bids)}: no image *_{image_suffix} for this label map")
    if not sources:
        lines = "".join(f"\n  {line}" for line in skipped)
        raise ValueError(f"--bids_path {bids}: no sub-*/[ses-*/]anat/*_{image_suffix} with a label map{lines}")
    return sources, skipped


def make_seeds(o: SeedOptions) -> SeedReport:
    """Seeds of every subject under o.out_path, in parallel; one record per subject, and the index last.

    A subject that fails becomes a line of the report, the others go on. Raises ValueError for bad options and for a
    folder that holds seeds of other settings (unless o.overwrite).
    """
    scheme = _check(o)
    sources, skipped = find_sources(o.bids_path, o.image_suffix, o.label_suffix)
    settings = {
        "annotation": asdict(scheme),
        "max_subclasses": o.max_subclasses,
        "image_suffix": o.image_suffix,
        "label_suffix": o.label_suffix,
        "seed": o.seed,
        "fit_voxels": FIT_VOXELS,
    }
    settings = json.loads(json.dumps(settings))  # as it would come back from a file
    _check_settings(o, settings)
    o.out_path.mkdir(parents=True, exist_ok=True)
    report = SeedReport(skipped=skipped)
    with lock_folder(o.out_path):
        old = read_json(o.out_path / INDEX)["cases"] if (o.out_path / INDEX).is_file() and not o.overwrite else []
        _write_if_new(o.out_path / INDEX, {"settings": settings, "cases": old})
        for pattern in (".tmp-*", "subclasses_*/**/.tmp-*", "sub-*/**/.tmp-*"):  # left by a killed run
            for path in o.out_path.glob(pattern):
                path.unlink()
        done = {key: (state, line) for key, state, line in _each(o, scheme, settings, sources)}
        for source in sources:  # in the tree's order, whichever worker was first
            state, line = done[source.key]
            getattr(report, state).append(source.key if state != "failed" else line)
        cases = [source.key for source in sources if done[source.key][0] != "failed"]
        _write_if_new(o.out_path / INDEX, {"settings": settings, "cases": cases})
        _write_if_new(o.out_path / "dataset_description.json", _DESCRIPTION)
    return report


_DESCRIPTION = {
    "Name": "Seeds: meta-labels split by intensity",
    "BIDSVersion": "1.9.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "medsis", "Description": "scripts/make_seeds.py"}],
}


def _check(o: SeedOptions) -> SeedScheme:
    if not 1 <= o.max_subclasses <= MAX_SUBCLASSES:
        raise ValueError(f"--max_subclasses {o.max_subclasses}: 1 to {MAX_SUBCLASSES} are allowed")
    if o.num_workers < 0:
        raise ValueError(f"--num_workers {o.num_workers}: 0 (one per core) or more")
    if not 0 <= o.seed < 2**32:
        raise ValueError(f"--seed {o.seed}: 0 to 2**32 - 1 are allowed")
    check_name(o.image_suffix, "--image_suffix")
    check_name(o.label_suffix, "--label_suffix")
    return find_scheme(o.annotation)


def _check_settings(o: SeedOptions, settings: dict[str, Any]) -> None:
    """Refuse to write into the source, into a folder of something else, and to mix settings."""
    out = o.out_path
    if out.resolve() == o.bids_path.resolve():
        raise ValueError(f"--out_path {out} is the source folder; a usual place is {o.bids_path / 'derivatives/seeds'}")
    if not (out / INDEX).is_file():
        if out.is_dir() and any(not path.name.startswith((LOCK, ".tmp-")) for path in out.iterdir()):
            raise ValueError(f"--out_path {out} is not empty and was not written by this command")
        return
    index = read_json(out / INDEX)
    if not isinstance(index, dict) or "cases" not in index or not isinstance(index.get("settings"), dict):
        raise ValueError(f"{out / INDEX} was not written by this command; choose another --out_path")
    old = index["settings"]
    changed = [f"{key}: was {old.get(key)}, now {new}" for key, new in settings.items() if old.get(key) != new]
    if changed and not o.overwrite:
        raise ValueError(
            f"--out_path {out} holds seeds of other settings; --overwrite makes them again:\n  " + "\n  ".join(changed)
        )


def _write_if_new(path: Path, data: dict[str, Any]) -> None:
    if not path.is_file() or read_json(path) != data:
        write_json(path, data)


def _each(
    o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], sources: list[SeedSource]
) -> Iterator[tuple[str, str, str]]:
    """(key, made | kept | failed, line) of every case as it gets ready, with a progress bar and a line per failure."""
    count = min(o.num_workers or cores(), len(sources))
    with Progress("seeds", len(sources), "case") as bar:
        for result in _results(o, scheme, settings, sources, count):
            if result[1] == "failed":
                say(f"failed: {result[2]}")
            bar.update()
            yield result


def _results(
    o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], sources: list[SeedSource], count: int
) -> Iterator[tuple[str, str, str]]:
    if count <= 1:
        for source in sources:
            yield work(o, scheme, settings, source)
        return
    yield from as_ready(work, ((o, scheme, settings, source) for source in sources), count)


def work(o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], source: SeedSource) -> tuple[str, str, str]:
    """One case from files to files: (key, made | kept | failed, line). Its errors do not stop the others."""
    try:
        for part in source.key.split("/"):
            check_name(part, "file or folder name")
        hashes = {"image": file_sha256(source.image), "label": file_sha256(source.label)}
        if not o.overwrite and _is_whole(o.out_path, source.key, hashes, settings):
            return source.key, "kept", ""
        _remove(o.out_path, source.key)
        metas, notes = _write_parts(o, scheme, source)
        sources = {
            "image": source.image.relative_to(o.bids_path).as_posix(),
            "label": source.label.relative_to(o.bids_path).as_posix(),
        }
        record = {"sources": sources, "sha256": hashes, "settings": settings, "notes": notes, "metas": metas}
        write_json(record_file(o.out_path, source.key), record)
    except (ValueError, OSError, MemoryError) as error:
        return source.key, "failed", f"{source.key}: {str(error) or type(error).__name__}"
    return source.key, "made", ""


def _write_parts(o: SeedOptions, scheme: SeedScheme, source: SeedSource) -> tuple[list[dict[str, Any]], list[str]]:
    image, label = read_volume(source.image), read_volume(source.label)
    ids, affine = onto_axes(whole_numbers(source.label, label.data), label.affine, image.data.shape, image.affine)
    if fault := off_grid(ids.shape, affine, image.data.shape, image.affine, "the image"):
        raise ValueError(f"{source.label.name}: {fault}")
    if image.missing is not None and (missing := int((image.missing & (ids > 0)).sum())):
        raise ValueError(f"{source.image.name}: {missing} labelled voxels are NaN or infinite")
    meta_map = scheme.apply(ids, image.data)
    metas, notes = [], []
    for i, (name, _) in enumerate(scheme.metas, 1):
        mask = (meta_map == i).T  # NIfTI stores the first axis fastest; masks are fast the other way round
        splits = []
        for n in range(1, o.max_subclasses + 1):
            part = subcluster(image.data.T, mask, i, n, o.seed)
            path = seed_file(o.out_path, source.key, n, i)
            write_volume(path, part.codes.T, image.affine, codes=image.codes)
            splits.append({"means": part.means, "sizes": part.sizes, "sha256": file_sha256(path)})
            notes += [f"{name} in {n}: {note}" for note in part.notes]
        metas.append({"id": i, "name": name, "voxels": int(mask.sum()), "splits": splits})
    return metas, notes


def _is_whole(folder: Path, key: str, hashes: dict[str, str], settings: dict[str, Any]) -> bool:
    """Whether the record is of these sources and settings, and every file is what the record says."""
    path = record_file(folder, key)
    if not path.is_file():
        return False
    try:
        record = read_json(path)
        if record["sha256"] != hashes or record["settings"] != settings:
            return False
        files = {
            seed_file(folder, key, n, meta["id"]): split["sha256"]
            for meta in record["metas"]
            for n, split in enumerate(meta["splits"], 1)
        }
    except (ValueError, KeyError, TypeError):  # a damaged record is made again, with its files
        return False
    return all(file.is_file() and file_sha256(file) == sha256 for file, sha256 in files.items())


def _remove(folder: Path, key: str) -> None:
    """Take away what an earlier run left of the case; the record last, so that it never goes before its files."""
    for path in folder.glob(f"subclasses_*/{key}_mlabel_*.nii.gz"):
        path.unlink()
    record_file(folder, key).unlink(missing_ok=True)

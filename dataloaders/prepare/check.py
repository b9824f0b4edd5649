"""Checking a prepared folder: every byte once, all faults listed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataloaders.io.console import tracked
from dataloaders.io.manifest import SPLITS, Case, Manifest, Slice
from dataloaders.io.png import read_png
from dataloaders.labelmaps.labels import count_labels


def check_folder(root: Path, workers: int = 0) -> list[str]:
    """All faults of a prepared folder: unreadable or missing files, wrong size, label out of range, constant image,
    histogram mismatch, orphan files, a patient in two splits. ValueError where there is no manifest to check against.
    """
    manifest = Manifest.load(root)
    faults = split_faults(manifest)
    with ThreadPoolExecutor(workers or None) as pool:  # decoding PNG releases the interpreter lock
        jobs = [(root, manifest, case, item) for case in manifest.cases for item in case.slices]
        for found in tracked(pool.map(lambda job: _slice_faults(*job), jobs), "check", len(jobs)):
            faults += found
    slices = [item for case in manifest.cases for item in case.slices]
    listed = {path for item in slices for path in (item.label, *item.images, *item.filled) if path}
    for split in SPLITS:
        for path in sorted((root / split).rglob("*.png")):
            if str(path.relative_to(root)) not in listed:
                faults.append(f"{path}: not in the manifest")
    return faults


def split_faults(manifest: Manifest) -> list[str]:
    """Patients, and image files by their hash, that are in more than one split."""
    if "slices" in str(manifest.provenance.get("split")):
        return []  # one scan cut into blocks on purpose, and said so
    splits: dict[str, set[str]] = {}
    files: dict[str, dict[str, str]] = {}
    for case in manifest.cases:
        splits.setdefault(case.patient, set()).add(case.split)
        for channel in manifest.spec.channels:
            if source := case.sources.get(channel.name):
                files.setdefault(source["sha256"], {}).setdefault(case.split, f"{source['file']} of {case.id}")
    return [
        *(f"patient {p} is in the splits {', '.join(sorted(s))}" for p, s in sorted(splits.items()) if len(s) > 1),
        *(
            f"{' and '.join(there.values())} are the same file in other splits"
            for there in files.values()
            if len(there) > 1
        ),
    ]


def _slice_faults(root: Path, manifest: Manifest, case: Case, item: Slice) -> list[str]:
    faults: list[str] = []
    size = tuple(manifest.spec.size)
    for path in filter(None, (item.label, *item.images, *item.filled)):
        try:
            pixels = read_png(root / path, image_only=path != item.label)
        except ValueError as error:
            faults.append(str(error))
            continue
        if pixels.shape != size:
            faults.append(f"{root / path}: is {pixels.shape}, the manifest says {size}")
        elif path != item.label and pixels.min() == pixels.max():
            faults.append(f"{root / path}: constant image")
        elif path == item.label:
            histogram = count_labels(pixels)
            if max(histogram) >= manifest.spec.num_labels:
                faults.append(f"{root / path}: label {max(histogram)}, allowed are 0..{manifest.spec.num_labels - 1}")
            elif histogram != item.histogram:
                faults.append(f"{root / path}: the pixels do not match the histogram of case {case.id} in the manifest")
    return faults

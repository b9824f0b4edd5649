"""Plain folders of PNG slices without a manifest: pair by stem, infer the spec, write it down, list every mismatch.

A split may hold label maps alone or images alone, for synthesis and unpaired training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dataloaders.intensity import LEVELS, Window
from dataloaders.labels import count_labels
from dataloaders.manifest import FILE_NAME, SPLITS, Case, Manifest, Slice, Split
from dataloaders.png import read_png
from engine.files import check_name
from spec import Channel, DataSpec, Label

MAX_LABELS = 512  # more ids than that means intensities were given as labels


def load_manifest(dataroot: Path, histograms: bool = True) -> Manifest:
    """The manifest of a prepared folder; a folder of PNG slices gets one inferred and written. histograms: see `Manifest`.

    Raises ValueError listing all mismatches of such a folder, or naming the folder where it is neither.
    """
    if (dataroot / FILE_NAME).is_file():
        manifest = Manifest.load(dataroot, histograms)
        if "inferred" in manifest.provenance and infer_manifest(dataroot) != Manifest.load(dataroot):
            raise ValueError(f"{dataroot}: files changed since {FILE_NAME} was inferred from them; delete it to go on")
        return manifest
    if not is_plain(dataroot):
        raise ValueError(
            f"--dataroot {dataroot}: neither {FILE_NAME} (scripts/prepare_data.py writes it) nor folders "
            "{train,val,test}/images and /labels with PNG slices"
        )
    manifest = infer_manifest(dataroot)
    manifest.save(dataroot)
    return manifest


def is_plain(dataroot: Path) -> bool:
    """Whether a folder without manifest is laid out as PNG slices: images, or label maps alone, by split."""
    return any(
        (dataroot / split / "images").is_dir() or any((dataroot / split / "labels").glob("*.png")) for split in SPLITS
    )


def infer_manifest(dataroot: Path) -> Manifest:
    """Spec and cases of `{train,val,test}/{images,labels}/X.png`; every file is its own case and patient.

    A split without images or without labels has those of the other alone; where no split has any, the spec has no channel
    or no label.
    """
    faults: list[str] = []
    cases: list[Case] = []
    sizes: dict[tuple[int, ...], Path] = {}
    labels_seen: set[int] = set()
    for split in SPLITS:
        for image_path, label_path in _pairs(dataroot / split, faults):
            case = _read_case(dataroot, split, image_path, label_path, sizes, labels_seen, faults)
            if case is not None:
                cases.append(case)
    if len(sizes) > 1:
        faults.append("slices differ in size: " + ", ".join(f"{s[0]}x{s[1]} ({p})" for s, p in sizes.items()))
    if not cases and not faults:
        faults.append(f"{dataroot}: no PNG files in {{train,val,test}}/{{images,labels}}")
    highest = max(labels_seen, default=0)
    if highest >= MAX_LABELS:
        faults.append(f"label ids reach {highest}: labels must be small class ids 0..N-1, not intensities")
    if faults:
        raise ValueError(f"{len(faults)} faults in {dataroot}:\n" + "\n".join(f"  {fault}" for fault in faults))
    size = next(iter(sizes))
    ids = range(max(highest, 1) + 1) if labels_seen else ()
    spec = DataSpec(
        labels=tuple(Label(i, "background" if i == 0 else f"label_{i}", (i,)) for i in ids),
        channels=(Channel("image"),) if any(case.windows for case in cases) else (),
        size=(size[0], size[1]),
    )
    widest = max((case.windows for case in cases), key=lambda windows: [window.high for window in windows])
    cases = [case if case.windows else replace(case, windows=widest) for case in cases]  # label maps beside images
    return Manifest(spec, tuple(cases), {"inferred": "plain PNG folder; ids as found, intensities as stored"})


def _pairs(folder: Path, faults: list[str]) -> list[tuple[Path | None, Path | None]]:
    """Image and label of each slice; all images or all labels where the folder has nothing else."""
    images = {path.stem: path for path in sorted((folder / "images").glob("*.png"))}
    labels = {path.stem: path for path in sorted((folder / "labels").glob("*.png"))}
    if not images or not labels:
        return [*((image, None) for image in images.values()), *((None, label) for label in labels.values())]
    faults += [f"{images[stem]}: no label of the same name" for stem in sorted(images.keys() - labels.keys())]
    faults += [f"{labels[stem]}: no image of the same name" for stem in sorted(labels.keys() - images.keys())]
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def _read_case(
    root: Path,
    split: Split,
    image_path: Path | None,
    label_path: Path | None,
    sizes: dict[tuple[int, ...], Path],
    labels_seen: set[int],
    faults: list[str],
) -> Case | None:
    path = image_path or label_path
    assert path is not None
    try:
        image = None if image_path is None else read_png(image_path)
        label = None if label_path is None else read_png(label_path)
        check_name(path.stem, "file name")
    except ValueError as error:
        faults.append(str(error))
        return None
    if image is not None and label is not None and image.shape != label.shape:
        faults.append(f"{image_path}: image is {image.shape}, its label {label.shape}")
        return None
    item, windows = Slice(0, ""), tuple[Window, ...]()
    if label_path is not None and label is not None:
        sizes.setdefault(label.shape, path)
        histogram = count_labels(label)
        labels_seen.update(histogram)
        item = replace(item, label=str(label_path.relative_to(root)), histogram=histogram)
    if image_path is not None and image is not None:
        sizes.setdefault(image.shape, path)
        item = replace(item, images=(str(image_path.relative_to(root)),))
        windows = (Window(0, 255 if image.dtype == np.uint8 else LEVELS),)
    # The same file name in two splits is another slice, so the split is part of the id.
    name = f"{split}_{path.stem}"
    return Case(name, name, split, windows, (item,))

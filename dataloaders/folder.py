"""Plain folders of PNG pairs without a manifest: pair by stem, infer the spec, write it down, list every mismatch."""

from __future__ import annotations

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
    """The manifest of a prepared folder; a folder of PNG pairs gets one inferred and written. histograms: see `Manifest`.

    Raises ValueError listing all mismatches of such a folder, or naming the folder where it is neither.
    """
    if (dataroot / FILE_NAME).is_file():
        manifest = Manifest.load(dataroot, histograms)
        if "inferred" in manifest.provenance and infer_manifest(dataroot) != Manifest.load(dataroot):
            raise ValueError(f"{dataroot}: files changed since {FILE_NAME} was inferred from them; delete it to go on")
        return manifest
    if not any((dataroot / split / "images").is_dir() for split in SPLITS):
        raise ValueError(
            f"--dataroot {dataroot}: neither {FILE_NAME} (scripts/prepare_data.py writes it) nor folders "
            "{train,val,test}/images and /labels"
        )
    manifest = infer_manifest(dataroot)
    manifest.save(dataroot)
    return manifest


def infer_manifest(dataroot: Path) -> Manifest:
    """Spec and cases of `{train,val,test}/{images,labels}/X.png`; every file is its own case and patient."""
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
        faults.append(f"{dataroot}: no PNG pairs in {{train,val,test}}/{{images,labels}}")
    highest = max(labels_seen, default=0)
    if highest >= MAX_LABELS:
        faults.append(f"label ids reach {highest}: labels must be small class ids 0..N-1, not intensities")
    if faults:
        raise ValueError(f"{len(faults)} faults in {dataroot}:\n" + "\n".join(f"  {fault}" for fault in faults))
    size = next(iter(sizes))
    spec = DataSpec(
        labels=tuple(Label(i, "background" if i == 0 else f"label_{i}", (i,)) for i in range(max(highest, 1) + 1)),
        channels=(Channel("image"),),
        size=(size[0], size[1]),
    )
    return Manifest(spec, tuple(cases), {"inferred": "plain PNG folder; ids as found, intensities as stored"})


def _pairs(folder: Path, faults: list[str]) -> list[tuple[Path, Path]]:
    images = {path.stem: path for path in sorted((folder / "images").glob("*.png"))}
    labels = {path.stem: path for path in sorted((folder / "labels").glob("*.png"))}
    faults += [f"{images[stem]}: no label of the same name" for stem in sorted(images.keys() - labels.keys())]
    faults += [f"{labels[stem]}: no image of the same name" for stem in sorted(labels.keys() - images.keys())]
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def _read_case(
    root: Path,
    split: Split,
    image_path: Path,
    label_path: Path,
    sizes: dict[tuple[int, ...], Path],
    labels_seen: set[int],
    faults: list[str],
) -> Case | None:
    try:
        image, label = read_png(image_path), read_png(label_path)
        check_name(image_path.stem, "file name")
    except ValueError as error:
        faults.append(str(error))
        return None
    if image.shape != label.shape:
        faults.append(f"{image_path}: image is {image.shape}, its label {label.shape}")
        return None
    sizes.setdefault(image.shape, image_path)
    histogram = count_labels(label)
    labels_seen.update(histogram)
    item = Slice(
        index=0,
        label=str(label_path.relative_to(root)),
        images=(str(image_path.relative_to(root)),),
        histogram=histogram,
    )
    levels = 255 if image.dtype == np.uint8 else LEVELS
    # The same file name in two splits is another slice, so the split is part of the id.
    name = f"{split}_{image_path.stem}"
    return Case(name, name, split, (Window(0, levels),), (item,))

"""Plain folders of PNG slices that cannot be trained on as they are, made into prepared ones: ids, colours, ranges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dataloaders.io.console import tracked
from dataloaders.io.files import whole_folder
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Manifest, Slice
from dataloaders.io.png import read_colours, read_png, write_png
from dataloaders.io.spec import Channel, DataSpec
from dataloaders.labelmaps.labels import ClassTable, count_labels, found_labels, id_type, read_label_table
from dataloaders.plain_folder import MAX_LABELS, PlainFolder, cases_of, scan
from dataloaders.prepare.inspection import DataFaults
from dataloaders.prepare.options import PrepareOptions, parse_window
from dataloaders.prepare.planning import unlisted_ids


def convert_folder(o: PrepareOptions) -> Manifest | None:
    """Write `{train,val,test}/{images,labels}` of --source as a prepared folder; None after a dry run.

    Label ids become 0..N-1 with the ids in the files as their sources; where label maps are colours, these are
    r·65536 + g·256 + b. Images fill the 16 bits: from 0 (or the lower end of --window) to the highest value that images of
    so many bits can hold. ValueError lists all faults before anything is written.
    """
    assert o.source is not None
    if o.out is not None and o.out.exists() and (not o.out.is_dir() or any(o.out.iterdir())):
        raise ValueError(f"--out {o.out} is a file or not empty; choose another folder")
    found = scan(o.source)
    coded = bool(found.colours)
    if coded:
        found = scan(o.source, colours=True)
    if o.label_map is None and (fault := found.ids.fault(found.image_values)):
        found.faults.append(f"{o.source}/*/labels: {fault}")
    table = _table(o, found, coded)
    window = _window(o, found)
    if found.faults:
        raise DataFaults(found.faults)
    cases, rule = cases_of(found, dict.fromkeys(found.bits, window), o.patient_regex)
    if o.dry_run:
        print(f"{len(found.slices)} slices are fine", flush=True)
        return None
    assert o.out is not None
    done = []
    with whole_folder(o.out) as folder:
        for case in tracked(cases, "convert", len(cases)):
            slices = tuple(_convert(o.source, folder, item, table, window, coded) for item in case.slices)
            done.append(replace(case, slices=slices))
        size = next(iter(found.sizes))
        channels = (Channel(o.channel),) if found.bits else ()
        labels = table.labels if found.ids.counts else ()
        about = {"kind": "data", "split": "the source folder", "patients": rule.text}
        manifest = Manifest(DataSpec(labels, channels, (size[0], size[1])), tuple(done), about)
        manifest.save(folder)
    return manifest


def _table(o: PrepareOptions, found: PlainFolder, coded: bool) -> ClassTable:
    names = {i: f"colour_{i:06x}" for i in found.ids.counts} if coded else {}
    counts = found.ids.counts
    labels = found_labels(counts, names) if o.label_map is None else read_label_table(o.label_map, counts)
    table = ClassTable(labels, o.unknown_labels == "background")
    unlisted, dropped = unlisted_ids(f"--label_map {o.label_map}", table, counts, "pixels", names)
    found.faults += unlisted
    for note in dropped:
        print(note, flush=True)
    if len(labels) < 2 and counts:
        found.faults.append(f"{o.source}: all label maps are empty, every pixel is 0")
    if len(labels) > MAX_LABELS:
        found.faults.append(
            f"{o.source}: {len(labels)} different ids or colours in the label maps; smooth edges or lossy compression make "
            "such; list the true ones by --label_map"
        )
    return table


def _window(o: PrepareOptions, found: PlainFolder) -> Window:
    """Values in the files that become the ends of the range."""
    chosen = parse_window(o.window[0])
    if isinstance(chosen, Window):
        return chosen
    if len(found.levels) > 1:
        found.faults.append(f"{o.source}: both 8-bit and 16-bit images; give --window LOW,HIGH or convert them alike")
    return Window(0, 255 if 8 in found.levels else 2 ** max(8, found.highest(16).bit_length()) - 1)


def _convert(source: Path, out: Path, item: Slice, table: ClassTable, window: Window, coded: bool) -> Slice:
    """Write the files of one slice under their own names; the slice with its new histogram."""
    if item.label:
        stored = read_colours(source / item.label) if coded else read_png(source / item.label)
        ids = table.apply(stored.astype(np.int32))
        write_png(out / item.label, ids.astype(id_type(len(table.labels))))
        item = replace(item, histogram=count_labels(ids))
    for path in item.images:
        write_png(out / path, window.encode(read_png(source / path, image_only=True)))
    return item

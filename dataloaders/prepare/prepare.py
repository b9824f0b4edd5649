"""Volumes to slices: inspect every source, then process the cases in parallel, then write the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dataloaders.io import geometry
from dataloaders.io.file_names import first_group
from dataloaders.io.files import listed, read_json, write_json
from dataloaders.io.locks import LOCK, lock_folder
from dataloaders.io.manifest import FILE_NAME, Case, Manifest, Split, case_from_dict
from dataloaders.io.schema import NAME, check, decode
from dataloaders.io.spec import LESION, Channel, DataSpec, Label
from dataloaders.io.workers import cores, in_order, parse_shard
from dataloaders.labelmaps.labels import LabelTable, found_labels, read_dataset_json, read_label_map, table_rows
from dataloaders.prepare import tissue
from dataloaders.prepare.check import split_faults
from dataloaders.prepare.conversion import convert_folder
from dataloaders.prepare.inspection import DataFaults, Facts, inspect_case
from dataloaders.prepare.notes import CaseNotes, note_lines
from dataloaders.prepare.options import SIZE_STEP, PrepareOptions
from dataloaders.prepare.slicing import Plan, process_case
from dataloaders.prepare.sources import (
    CaseSource,
    Found,
    find_bids,
    find_mni152,
    find_nnunet,
    find_pairs,
    find_synthrad,
)
from dataloaders.prepare.splits import read_split_file, split_patients

RESUME_FOLDER = ".work"
ALONE = {
    "labels": "label maps without images: for test.py and for training with --oasis.unpaired --oasis.images_from DIR",
    "images": "images without label maps: for unpaired training, as its --oasis.images_from",
}
# Ids of TotalSegmentator 2 in a CT without names: of its first version there are none above 104, and no other common set
# of organs or vertebrae has as many.
OWN, OWN_COUNT, OWN_LOW, OWN_HIGH = "totalsegmentator", 20, 105, 117
NOTES = "notes"  # in the resume folder: what was done to each case
INSPECTED = "inspected"  # in the resume folder: what other shards found in their cases


def find(o: PrepareOptions) -> Found:
    """Cases of the source named by the options."""
    if o.format == "pairs":
        images, labels = (
            None if o.half == other else where for other, where in (("labels", o.images), ("images", o.labels))
        )
        return find_pairs(images, labels, o.channel, o.case_regex)
    if o.format == "mni152":
        return find_mni152()
    assert o.source is not None
    if o.format == "nnunet":
        return find_nnunet(o.source, o.image_channels, o.label_channel, o.only)
    if o.format == "synthrad2023":
        folder = Path(o.labels) if o.labels and o.only is None else None
        return find_synthrad(o.source, o.image, folder)
    return find_bids(o.source, o.modalities, o.brain_masks, o.only, o.exclude, o.bids_filter)


def prepare(o: PrepareOptions) -> Manifest | None:
    """Inspect, process, write the manifest; None after a dry run, and for a shard while others are not done.

    Raises DataFaults with all faults of all files before anything is written, and ValueError for bad options.
    """
    check(o)
    if o.format == "png":
        return convert_folder(o)
    found = find(o)
    regex, flag = o.patient_regex, "--patient_regex"
    found.cases = [replace(case, patient=first_group(regex, case.patient, flag)) for case in found.cases]
    for note in listed(found.notes):
        print(note, flush=True)
    if not found.cases and not found.faults:
        found.faults.append(f"{o.source or o.images or o.labels}: no {o.half or 'cases'} found")
    check_channels(found.channels)
    part = parse_shard(o.shard)
    all_facts = _inspect(o, found, part)
    o, sized = _with_size(o, all_facts)
    plan, notes = _plan(o, found, all_facts)
    for note in listed(notes + sized):
        print(note, flush=True)
    if o.dry_run:
        print(f"{len(found.cases)} cases are fine", flush=True)
        return None
    assert o.out is not None
    splits = _splits(o, found.cases)
    identity = _identity(o, found, all_facts, splits, plan.table)
    mine = o.out.is_dir() and any(path.name != RESUME_FOLDER for path in o.out.iterdir())
    done = _claim_out(o.out, identity)
    if done is not None:
        print(f"{o.out}: already prepared with these options", flush=True)
        return done
    ours = {"identity.json", INSPECTED, LOCK}
    fresh = part[1] == 1 and not mine and not any(path.name not in ours for path in (o.out / RESUME_FOLDER).iterdir())
    work = [(c, splits.get(c.patient), f.hashes, plan) for c, f in zip(found.cases, all_facts, strict=True)]
    try:
        in_order(_process_or_resume, work[part[0] :: part[1]], o.workers or cores(), "prepare")
        return _conclude(o, plan, found.cases, identity)
    except ValueError:
        if fresh:  # the remedy will be other options or files, for which nothing here could be used
            shutil.rmtree(o.out)
        raise


def _inspect(o: PrepareOptions, found: Found, part: tuple[int, int]) -> list[Facts]:
    """What is in every case. A shard looks at its own first, then at those that no other has looked at meanwhile."""
    if part[1] == 1 or o.out is None:
        jobs = [(case, found.channels, o) for case in found.cases]
        return in_order(inspect_case, jobs, o.workers or cores(), "inspect")
    own_first = [case for k in range(part[1]) for case in found.cases[(part[0] + k) % part[1] :: part[1]]]
    shared = [(case, found.channels, o) for case in own_first]
    looked = in_order(_inspect_once, shared, o.workers or cores(), "inspect")
    facts = dict(zip([c.id for c in own_first], looked, strict=True))
    return [facts[case.id] for case in found.cases]


def _inspect_once(source: CaseSource, channels: tuple[str, ...], o: PrepareOptions) -> Facts:
    """What this or another shard has found in the case, unless its files have changed since."""
    assert o.out is not None
    kept = o.out / RESUME_FOLDER / INSPECTED / f"{source.id}.json"
    there = [path.stat() for path in source.files(channels).values() if path.is_file()]
    stamp = [_options(o), list(channels), *([stat.st_size, stat.st_mtime_ns] for stat in there)]
    if kept.is_file() and (old := read_json(kept))["stamp"] == stamp:
        return cast(Facts, decode(Facts, old["facts"], str(kept)))
    facts = inspect_case(source, channels, o)
    if not (o.out / FILE_NAME).is_file():  # prepared before: nothing is to be left there
        write_json(kept, {"stamp": stamp, "facts": asdict(facts)})
    return facts


def _conclude(o: PrepareOptions, plan: Plan, cases: list[CaseSource], identity: dict[str, Any]) -> Manifest | None:
    """The manifest, once every case has its record; of several shards the last one writes it."""
    assert o.out is not None
    work = o.out / RESUME_FOLDER
    records = [work / f"{case.id}.json" for case in cases]
    try:
        missing = sum(not record.is_file() for record in records)
        if missing:
            print(f"shard {o.shard} is done; {missing} of {len(cases)} cases are those of other shards", flush=True)
            return None
        try:
            lock = lock_folder(work)
        except ValueError:
            print(f"shard {o.shard} is done; another one is writing the manifest", flush=True)
            return None
        with lock:
            found = [case_from_dict(case) for record in records for case in read_json(record)]
            manifest = _manifest(o, plan, found, identity)
            noted = [work / NOTES / record.name for record in records]
            notes = [decode(CaseNotes, read_json(path), str(path)) for path in noted if path.is_file()]
            for line in note_lines(notes, plan.channels, plan.ct, plan.options) if notes else ():
                print(line, flush=True)
            manifest.save(o.out)
            shutil.rmtree(work)
            for line in split_faults(manifest):
                print(f"warning: {line}", flush=True)
    except OSError:
        if (o.out / FILE_NAME).is_file():  # another shard was a moment faster
            return Manifest.load(o.out)
        raise
    return manifest


def check_channels(channels: tuple[str, ...]) -> None:
    """ValueError for channel names that repeat, are no safe part of a file name, or mean something else."""
    for name in channels:
        NAME.of(name, "channel name")
        if name in ("label", "lesion", "brain", "body"):
            raise ValueError(f"channel name {name!r} is reserved for masks; rename it")
        if channels.count(name) > 1:
            raise ValueError(
                f"channel name {name!r} occurs {channels.count(name)} times in {list(channels)}; rename them"
            )


def _with_size(o: PrepareOptions, all_facts: list[Facts]) -> tuple[PrepareOptions, list[str]]:
    """Where no --size is given: that of the folder which is there already, else the smallest that holds every case."""
    if o.size:
        return o, []
    kept = _options_there(o.out).get("size") if o.out is not None else None
    if kept:
        return replace(o, size=tuple(int(n) for n in kept)), []
    needed = [facts.extent for facts in all_facts if facts.extent is not None] or [(SIZE_STEP, SIZE_STEP)]
    most = [max(of_axis) for of_axis in zip(*needed, strict=True)]
    height, width = (-(-n // SIZE_STEP) * SIZE_STEP for n in most)
    what = "every scan" if o.half == "images" else "what is labelled in every case"
    note = (
        f"slices of {height}×{width} pixels: they hold {what} ({most[0]}×{most[1]}), in steps of "
        f"{SIZE_STEP}; --size chooses others, such as those of the data that a model was trained on"
    )
    return replace(o, size=(height, width)), [note]


def _options_there(out: Path) -> dict[str, Any]:
    """The options that a folder was prepared with, or is being prepared with; none where there is nothing."""
    if (out / FILE_NAME).is_file():
        options = Manifest.load(out).provenance.get("options")
    else:
        marker = out / RESUME_FOLDER / "identity.json"
        options = read_json(marker)["options"] if marker.is_file() else None
    return options if isinstance(options, dict) else {}


def _plan(o: PrepareOptions, found: Found, all_facts: list[Facts]) -> tuple[Plan, list[str]]:
    faults = found.faults + [fault for facts in all_facts for fault in facts.faults]
    notes = [note for facts in all_facts for note in facts.notes] + ([ALONE[o.half]] if o.half else [])
    ct = tuple(any(flags) for flags in zip(*(facts.looks_ct for facts in all_facts if facts.looks_ct), strict=True))
    if o.hu_offset is None:
        faults += [line for facts in all_facts for line, is_ct in zip(facts.no_hu, ct, strict=False) if is_ct and line]
    if not faults:
        faults = _tissue_faults(o, found, all_facts, ct)
    if faults:
        raise DataFaults(faults)
    counts: dict[int, int] = {}
    for facts in all_facts:
        for i, n in facts.label_counts.items():
            counts[i] = counts.get(i, 0) + n
    names, source = _names(o, found, all_facts, counts, any(ct))
    notes += [source] if source else []
    table = _table(o, found, counts, names)
    if o.label_map is None and (
        ignored := sum(counts.get(i, 0) for label in table.labels[:1] for i in label.source if i)
    ):
        notes.append(f"{ignored} voxels of the label 'ignore' count as background")
    unknown = table.unknown(counts)
    if unknown:
        listing = ", ".join(f"{i} ({n} voxels)" for i, n in sorted(unknown.items()))
        if not table.lenient:
            raise DataFaults(
                [f"--label_map {o.label_map} does not list the ids {listing}; --unknown_labels background drops them"]
            )
        notes.append(f"ids dropped to background: {listing}")
    if len(o.window) not in (1, len(found.channels)):
        raise ValueError(f"--window: {len(o.window)} windows for {len(found.channels)} channels ({found.channels})")
    return Plan(o, found.channels, ct, table, o.out or Path(".")), notes


def _tissue_faults(o: PrepareOptions, found: Found, all_facts: list[Facts], ct: tuple[bool, ...]) -> list[str]:
    """Made label maps must not be mixed with given ones, nor made from the wrong kind of image."""
    if o.half == "images":
        return []
    without = [case.id for case, facts in zip(found.cases, all_facts, strict=True) if not facts.label_counts]
    if not without:
        return []
    if len(without) < len(found.cases):
        return [
            f"{len(without)} of {len(found.cases)} cases have no label map ({', '.join(without[:5])}): give all or none"
        ]
    if o.tissue == "hu" and not any(ct):
        return [f"--tissue hu needs a CT channel, the channels are {', '.join(found.channels)}"]
    if o.tissue == "hmrf" and ct[0]:
        return [f"--tissue hmrf needs T1w as the first channel, found CT ({found.channels[0]})"]
    return []


def _names(
    o: PrepareOptions, found: Found, all_facts: list[Facts], counts: dict[int, int], ct: bool
) -> tuple[dict[int, str], str]:
    """Names of label ids where no table is given, and a line that says where they are from."""
    if o.label_map is not None or not counts:
        return {}, ""
    if found.label_names and (names := read_dataset_json(found.label_names)[1]):
        return names, ""
    names = {}
    for facts in all_facts:
        for i, name in facts.names.items():
            if names.setdefault(i, name) != name:
                return {}, (
                    f"warning: id {i} is {names[i]!r} in one label map's header or table and {name!r} in another's, so "
                    "labels have no names; --label_map gives them"
                )
    if names:
        return names, "label names: those beside the label maps or in their headers; --label_map FILE gives others"
    if ct and len(counts) > OWN_COUNT and OWN_LOW <= max(counts) <= OWN_HIGH:
        return dict(table_rows(OWN)), (
            f"label names: {OWN}'s, whose ids these are by their number and range in a CT; --label_map FILE gives others"
        )
    return {}, ""


def _table(o: PrepareOptions, found: Found, counts: dict[int, int], names: dict[int, str]) -> LabelTable:
    if o.half == "images":
        return LabelTable(())
    if any(case.builtin for case in found.cases):
        labels = found_labels(counts, tissue.BRAIN_TISSUE)
    elif not counts:
        made = tissue.BRAIN_TISSUE if o.tissue == "hmrf" else tissue.CT_TISSUE
        labels = found_labels(made, made)
    elif o.label_map is not None:
        labels = read_label_map(o.label_map, counts)
    else:
        labels = found_labels(counts, names)
    extra = ["body_unlabelled"] if o.split_background else []
    masks = o.lesions and any(case.lesion for case in found.cases)
    drawn = any(label.name == LESION for label in labels)  # already a class of the label maps
    extra += [LESION] if (masks or o.fill != "none") and not drawn else []
    labels += tuple(Label(len(labels) + i, name) for i, name in enumerate(extra))
    return LabelTable(labels, o.unknown_labels == "background")


def _splits(o: PrepareOptions, cases: list[CaseSource]) -> dict[str, Split]:
    """Patient -> split; empty when slices are split."""
    if o.by_slices:
        return {}
    patients = [case.patient for case in cases]
    if o.split_file:
        return read_split_file(o.split_file, patients)
    return split_patients(patients, o.split, o.seed, o.val_patients, o.test_patients)


def _identity(
    o: PrepareOptions, found: Found, all_facts: list[Facts], splits: dict[str, Split], table: LabelTable
) -> dict[str, Any]:
    """What the output depends on: options without paths and workers, hashes of all sources, splits and label table."""
    options = _options(o)
    sources = {case.id: facts.hashes for case, facts in zip(found.cases, all_facts, strict=True)}
    digest = hashlib.sha256(json.dumps([options, sources, splits, asdict(table)], sort_keys=True).encode()).hexdigest()
    return {"options": options, "digest": digest}


def _options(o: PrepareOptions) -> dict[str, Any]:
    """Those that the output depends on, as they come back from JSON."""
    options = {key: value for key, value in asdict(o).items() if not isinstance(value, Path)}
    for key in ("images", "labels", "workers", "check", "dry_run", "shard"):
        options.pop(key, None)
    for key in ("hu_offset", "only"):  # folders that were prepared before there were these options are the same without
        if options[key] is None:
            options.pop(key)
    plain: dict[str, Any] = json.loads(json.dumps(options))
    return plain


def _claim_out(out: Path, identity: dict[str, Any]) -> Manifest | None:
    """Make the folder ours: a manifest of the same identity is returned, anything else that is there is refused."""
    if (out / FILE_NAME).is_file():
        manifest = Manifest.load(out)
        if manifest.provenance.get("digest") == identity["digest"]:
            return manifest
        _refuse(out, manifest.provenance.get("options", {}), identity["options"])
    marker = out / RESUME_FOLDER / "identity.json"
    if marker.is_file():
        old = read_json(marker)
        if old["digest"] != identity["digest"]:
            _refuse(out, old["options"], identity["options"])
    elif out.is_dir() and any(path.name != RESUME_FOLDER for path in out.iterdir()):
        raise ValueError(f"--out {out} is not empty and was not written by this command; choose another folder")
    write_json(marker, identity)
    return None


def _refuse(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [f"--{key}: was {old.get(key)}, now {new.get(key)}" for key in new if old.get(key) != new[key]]
    raise ValueError(
        f"--out {out} holds data prepared with other options or sources; choose another folder or delete it:\n  "
        + "\n  ".join(changed or ["the source files, or the names of their labels, are not the same"])
    )


def _process_or_resume(
    source: CaseSource, split: Split | None, hashes: dict[str, str], plan: Plan
) -> list[dict[str, Any]]:
    """The case's record if an interrupted run finished it, else process it and write the record last."""
    record = plan.out / RESUME_FOLDER / f"{source.id}.json"
    if record.is_file():
        return read_json(record)
    try:
        cases, notes = process_case(source, split, hashes, plan)
    except ValueError as error:
        raise DataFaults([f"case {source.id}: {error}"]) from None
    write_json(record.parent / NOTES / record.name, asdict(notes))
    write_json(record, cases)
    return cases


def _manifest(o: PrepareOptions, plan: Plan, cases: list[Case], identity: dict[str, Any]) -> Manifest:
    kept = tuple(sorted((case for case in cases if case.slices), key=lambda case: case.id))
    for case in cases:
        if not case.slices:
            print(f"{case.id}: left out, no slice has {o.min_foreground:g} of its pixels {o.inside}", flush=True)
    if not kept:
        raise ValueError(f"no slice has {o.min_foreground:g} of its pixels {o.inside}; lower --min_foreground")
    place = kept[0].geometry
    assert place is not None
    between, rows, columns = geometry.plane_spacing(np.array(place.grid_affine), o.axis)
    channels = tuple(Channel(n, "HU" if ct else "a.u.") for n, ct in zip(plan.channels, plan.ct, strict=True))
    spec = DataSpec(plan.table.labels, channels, o.slice_size, (rows, columns), between, o.axis)
    split_note = "blocks of slices of the same scan, not patients" if o.by_slices else "patients"
    return Manifest(spec, kept, {"kind": "data", "split": split_note, **identity})

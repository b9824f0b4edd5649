"""Volumes to slices: inspect every source, then process the cases in parallel, then write the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dataloaders.io import geometry
from dataloaders.io.file_names import first_group
from dataloaders.io.files import listed
from dataloaders.io.ledger import SETTINGS, Ledger, differences, plain
from dataloaders.io.locks import lock_folder
from dataloaders.io.manifest import FILE_NAME, Case, Manifest, Split
from dataloaders.io.schema import NAME, check, decode, spelled
from dataloaders.io.spec import Axis, Channel, DataSpec
from dataloaders.io.workers import cores, in_order, parse_shard
from dataloaders.labelmaps.labels import ClassTable, files_with, read_label_table
from dataloaders.prepare.check import split_faults
from dataloaders.prepare.conversion import convert_folder
from dataloaders.prepare.inspection import DataFaults, Facts, inspect_case
from dataloaders.prepare.notes import CaseNotes, note_lines
from dataloaders.prepare.options import SIZE_STEP, PrepareOptions
from dataloaders.prepare.planning import PreparePlan, make_plan
from dataloaders.prepare.slicing import process_case
from dataloaders.prepare.sources import (
    MASKS,
    CaseSource,
    Found,
    find_bids,
    find_mni152,
    find_nnunet,
    find_pairs,
    find_synthrad,
)
from dataloaders.prepare.splits import EmptySplit, read_split_file, refuse_empty, split_as_listed, split_patients

RESUME_FOLDER = ".work"  # below --out until the manifest is written


def _find(o: PrepareOptions) -> Found:
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
    if o.label_map is not None:
        read_label_table(o.label_map)  # a table with faults is told before all scans are read
    if o.split_file is not None:
        read_split_file(o.split_file)
    if o.format == "png":
        return convert_folder(o)
    if o.out is not None and not o.dry_run:
        _refuse_foreign(o.out)
    found = _find(o)
    regex, flag = o.patient_regex, "--patient_regex"
    found.cases = [replace(case, patient=first_group(regex, case.patient, flag)) for case in found.cases]
    for note in listed(found.notes):
        print(note, flush=True)
    if not found.cases and not found.faults:
        found.faults.append(f"{o.source or o.images or o.labels}: no {o.half or 'cases'} found")
    check_channels(found.channels)
    all_facts = _inspect(o, found)
    o, sized = _with_size(o, all_facts)
    plan, notes = make_plan(o, found, all_facts)
    for note in listed(notes + sized):
        print(note, flush=True)
    if o.dry_run:
        print(f"{len(found.cases)} cases are fine", flush=True)
        return None
    assert o.out is not None
    splits = _splits(o, found.cases)
    hashes = {case.id: facts.hashes for case, facts in zip(found.cases, all_facts, strict=True)}
    identity = _identity(o, hashes, splits, plan.table)
    if (done := _prepared_before(o.out, identity)) is not None:
        print(f"{o.out}: already prepared with these options", flush=True)
        return done
    settings = identity["options"] | {"sources": _digest([hashes, splits, plan.table.to_dict()])[:12]}
    ledger = Ledger.claim(o.out / RESUME_FOLDER, settings, records="cases")
    number, parts = parse_shard(o.shard)
    fresh = parts == 1 and not ledger.keys() and all(path.name == RESUME_FOLDER for path in o.out.iterdir())
    jobs = [(case, splits.get(case.patient), hashes[case.id], plan, ledger) for case in found.cases]
    try:
        in_order(_process_once, jobs[number::parts], o.workers or cores(), "prepare")
        return _conclude(o, plan, hashes, ledger, identity)
    except ValueError:
        if fresh:  # the remedy will be other options or files, for which nothing here could be used
            shutil.rmtree(o.out)
        raise


def _inspect(o: PrepareOptions, found: Found) -> list[Facts]:
    """What is in every case. A shard looks at its own first, then at those that no other has looked at meanwhile."""
    number, parts = parse_shard(o.shard)
    own_first = [case for k in range(parts) for case in found.cases[(number + k) % parts :: parts]]
    work = inspect_case if parts == 1 or o.out is None else _inspect_once
    looked = in_order(work, [(case, found.channels, o) for case in own_first], o.workers or cores(), "inspect")
    facts = dict(zip([case.id for case in own_first], looked, strict=True))
    return [facts[case.id] for case in found.cases]


def _inspect_once(source: CaseSource, channels: tuple[str, ...], o: PrepareOptions) -> Facts:
    """What this or another shard has found in the case, unless its files have changed since."""
    assert o.out is not None
    looked = Ledger(o.out / RESUME_FOLDER, settings={}, records=".inspected", renew=True)
    tables = files_with(source.masks["label"]) if "label" in source.masks else []
    there = [path.stat() for path in (*source.files(channels).values(), *tables) if path.is_file()]
    stamp = [_options(o), list(channels), *([stat.st_size, stat.st_mtime_ns] for stat in there)]
    if (old := looked.done(source.id, stamp)) is not None:
        return cast(Facts, decode(Facts, old["facts"], source.id))
    facts = inspect_case(source, channels, o)
    if not (o.out / FILE_NAME).is_file():  # prepared before: nothing is to be left there
        looked.record(source.id, stamp, facts=asdict(facts))
    return facts


def _process_once(
    source: CaseSource, split: Split | None, hashes: dict[str, str], plan: PreparePlan, ledger: Ledger
) -> None:
    """Process the case and write its record last, unless an interrupted run finished it."""
    if ledger.done(source.id, hashes) is not None:
        return
    try:
        cases, notes = process_case(source, split, hashes, plan)
    except EmptySplit:
        raise
    except ValueError as error:
        raise DataFaults([f"case {source.id}: {error}"]) from None
    ledger.record(source.id, hashes, cases=cases, notes=asdict(notes))


def _conclude(
    o: PrepareOptions, plan: PreparePlan, hashes: Mapping[str, dict[str, str]], ledger: Ledger, identity: dict[str, Any]
) -> Manifest | None:
    """The manifest, once every case has its record; of several shards the last one writes it."""
    assert o.out is not None
    records = [record for case in hashes if (record := ledger.done(case, hashes[case])) is not None]
    try:
        if missing := 0 if (o.out / FILE_NAME).is_file() else len(hashes) - len(records):
            print(f"shard {o.shard} is done; {missing} of {len(hashes)} cases are those of other shards", flush=True)
            return None
        try:
            lock = lock_folder(ledger.folder)
        except ValueError:
            print(f"shard {o.shard} is done; another one is writing the manifest", flush=True)
            return None
        with lock:
            cases = decode(list[Case], [case for record in records for case in record["cases"]], "cases")
            manifest = _manifest(o, plan, cases, identity)
            notes = [decode(CaseNotes, record["notes"], "notes") for record in records]
            for line in note_lines(notes, plan.channels, plan.ct, plan.options):
                print(line, flush=True)
            manifest.save(o.out)
            shutil.rmtree(ledger.folder)
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
        if name in MASKS:
            raise ValueError(f"channel name {name!r} is reserved for masks; rename it")
        if channels.count(name) > 1:
            raise ValueError(
                f"channel name {name!r} occurs {channels.count(name)} times in {list(channels)}; rename them"
            )


def _with_size(o: PrepareOptions, all_facts: list[Facts]) -> tuple[PrepareOptions, list[str]]:
    """Where no --size is given, the smallest that holds every case."""
    if o.size:
        return o, []
    needed = [facts.extent for facts in all_facts if facts.extent is not None] or [(SIZE_STEP, SIZE_STEP)]
    most = [max(of_axis) for of_axis in zip(*needed, strict=True)]
    height, width = (-(-n // SIZE_STEP) * SIZE_STEP for n in most)
    what = "every scan" if o.half == "images" else "what is labelled in every case"
    note = (
        f"slices of {height}×{width} pixels: they hold {what} ({most[0]}×{most[1]}), in steps of "
        f"{SIZE_STEP}; --size chooses others, such as those of the data that a model was trained on"
    )
    return replace(o, size=(height, width)), [note]


def _splits(o: PrepareOptions, cases: list[CaseSource]) -> dict[str, Split]:
    """Patient -> split; empty when slices are split."""
    if o.by_slices:
        return {}
    patients = [case.patient for case in cases]
    if o.split_file:
        return split_as_listed(o.split_file, patients)
    splits = split_patients(patients, o.split, o.seed, o.val_patients, o.test_patients)
    if not o.val_patients and not o.test_patients:
        cause = f"{len(splits)} patients are too few; give 0 for a split that you do not need"
        refuse_empty(splits.values(), o.split, cause)
    return splits


def _identity(
    o: PrepareOptions, sources: dict[str, dict[str, str]], splits: dict[str, Split], table: ClassTable
) -> dict[str, Any]:
    """What the output depends on: options without paths and workers, hashes of all sources, splits and label table."""
    options = _options(o)
    return {"options": options, "digest": _digest([options, sources, splits, table.to_dict()])}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _options(o: PrepareOptions) -> dict[str, Any]:
    """Those that the output depends on, as they come back from JSON."""
    options = {key: value for key, value in asdict(o).items() if not isinstance(value, Path)}
    for key in ("images", "labels", "workers", "check", "dry_run", "shard"):
        options.pop(key, None)
    for key in ("hu_offset", "only"):  # folders that were prepared before there were these options are the same without
        if options[key] is None:
            options.pop(key)
    kept: dict[str, Any] = plain(options)
    return kept


def _refuse_foreign(out: Path) -> None:
    """ValueError for an --out that is or holds what is not ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose a folder")
    ours = (out / FILE_NAME).is_file() or (out / RESUME_FOLDER / SETTINGS).is_file()
    if not ours and out.is_dir() and any(path.name != RESUME_FOLDER for path in out.iterdir()):
        raise ValueError(f"--out {out} is not empty and was not written by this command; choose another folder")


def _prepared_before(out: Path, identity: dict[str, Any]) -> Manifest | None:
    """The manifest of the same identity that is there; ValueError for one of another."""
    if (out / FILE_NAME).is_file():
        manifest = Manifest.load(out)
        if manifest.provenance.get("digest") == identity["digest"]:
            return manifest
        changed = differences(manifest.provenance.get("options", {}), identity["options"])
        raise ValueError(
            f"--out {out} holds data prepared with other options or sources; choose another folder or delete it:\n  "
            + "\n  ".join(changed or ["the source files, or the names of their labels, are not the same"])
        )
    return None


def _manifest(o: PrepareOptions, plan: PreparePlan, cases: list[Case], identity: dict[str, Any]) -> Manifest:
    kept = tuple(sorted((case for case in cases if case.slices), key=lambda case: case.id))
    for case in cases:
        if not case.slices:
            print(f"{case.id}: left out, no slice has {o.min_foreground:g} of its pixels {o.inside}", flush=True)
    if not kept:
        raise ValueError(f"no slice has {o.min_foreground:g} of its pixels {o.inside}; lower --min_foreground")
    between, rows, columns = _common_spacing(kept, o.axis)
    channels = tuple(Channel(n, "HU" if ct else "a.u.") for n, ct in zip(plan.channels, plan.ct, strict=True))
    spec = DataSpec(plan.table.labels, channels, o.slice_size, (rows, columns), between, o.axis)
    split_note = "blocks of slices of the same scan, not patients" if o.by_slices else "patients"
    return Manifest(spec, kept, {"kind": "data", "split": split_note, **identity})


def _common_spacing(cases: Sequence[Case], axis: Axis) -> tuple[float, float, float]:
    """mm between slices, rows and columns: of all cases, or the median where they differ, which is told."""
    found = [
        geometry.plane_spacing(np.array(case.geometry.grid_affine), axis) for case in cases if case.geometry is not None
    ]
    if np.allclose(found, found[0], rtol=1e-3):
        return found[0]
    between, rows, columns = np.median(found, axis=0).tolist()
    low, high = (spelled(tuple(end(found, axis=0).tolist())) for end in (np.min, np.max))
    print(
        f"note: voxel sizes of the cases differ, from {low} to {high} mm (between slices, rows, columns); the manifest says "
        f"their median, {spelled((between, rows, columns))}; --spacing makes all equal",
        flush=True,
    )
    return between, rows, columns

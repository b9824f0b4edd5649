"""Between the two passes: what all cases together become, above all their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dataloaders.io.spec import LESION, Label
from dataloaders.labelmaps.labels import (
    ClassTable,
    found_labels,
    named_labels,
    read_label_table,
)
from dataloaders.prepare import tissue
from dataloaders.prepare.inspection import DataFaults, Facts
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.sources import Found

ALONE = {
    "labels": "label maps without images: for test.py and for training with --oasis.unpaired --oasis.images_from DIR",
    "images": "images without label maps: for unpaired training, as its --oasis.images_from",
}
# Ids of TotalSegmentator 2 in a CT without names: of its first version there are none above 104, and no other common set
# of organs or vertebrae has as many.
OWN, OWN_COUNT, OWN_LOW, OWN_HIGH = "totalsegmentator", 20, 105, 117


@dataclass(frozen=True)
class PreparePlan:
    """What all cases together become: all that the second pass needs to know besides its case."""

    options: PrepareOptions
    channels: tuple[str, ...]
    ct: tuple[bool, ...]
    table: ClassTable


def make_plan(o: PrepareOptions, found: Found, all_facts: list[Facts]) -> tuple[PreparePlan, list[str]]:
    """What becomes of every case, and lines worth knowing. DataFaults with all that was found to be wrong."""
    faults = found.faults + [fault for facts in all_facts for fault in facts.faults]
    notes = [note for facts in all_facts for note in facts.notes] + ([ALONE[o.half]] if o.half else [])
    ct = tuple(any(flags) for flags in zip(*(facts.is_ct for facts in all_facts if facts.is_ct), strict=True))
    if o.hu_offset is None:
        faults += [line for facts in all_facts for line, is_ct in zip(facts.no_hu, ct, strict=False) if is_ct and line]
    if not faults:
        faults = _tissue_faults(o, found, all_facts, ct)
    if faults:
        raise DataFaults(faults)
    counts = dict(sum((Counter(facts.label_counts) for facts in all_facts), Counter()))
    labels, source, of = _classes(o, found, all_facts, counts, any(ct))
    notes += [source] if source else []
    table = _table(o, found, labels)
    if o.label_map is None and (
        ignored := sum(counts.get(i, 0) for label in table.labels[:1] for i in label.source if i)
    ):
        notes.append(f"{ignored} voxels of labels named 'ignore' or 'background' count as background")
    unlisted, dropped = unlisted_ids(of, table, counts, "voxels")
    if unlisted:
        raise DataFaults(unlisted)
    notes += dropped
    if len(o.window) not in (1, len(found.channels)):
        raise ValueError(f"--window: {len(o.window)} windows for {len(found.channels)} channels ({found.channels})")
    return PreparePlan(o, found.channels, ct, table), notes


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
    if o.tissue in tissue.BRAIN_METHODS and ct[0]:
        return [f"--tissue {o.tissue} needs T1w as the first channel, found CT ({found.channels[0]})"]
    return []


def _classes(
    o: PrepareOptions, found: Found, all_facts: list[Facts], counts: dict[int, int], ct: bool
) -> tuple[tuple[Label, ...], str, str]:
    """Classes of the ids that were found, a line that says where their names are from, and the table that may lack ids."""
    if o.half == "images":
        return (), "", ""
    if o.format == "mni152":
        return found_labels(counts, tissue.BRAIN_TISSUE), "", ""
    if not counts:
        made = tissue.BRAIN_TISSUE if o.tissue in tissue.BRAIN_METHODS else tissue.CT_TISSUE
        return found_labels(made, made), "", ""
    if o.label_map is not None:
        return read_label_table(o.label_map, counts), "", f"--label_map {o.label_map}"
    if found.label_names:
        return found_labels(counts.keys() & found.label_names.keys(), found.label_names), "", "dataset.json"
    rows: dict[int, Label] = {}
    for facts in all_facts:
        for i, label in ((i, one) for one in facts.labels for i in one.source if i in facts.label_counts):
            if rows.setdefault(i, label).name != label.name:
                return found_labels(counts, {}), (
                    f"warning: id {i} is {rows[i].name!r} in one label map's header or table and {label.name!r} in "
                    "another's, so labels have no names; --label_map gives them"
                ), ""  # fmt: skip
    if rows:
        of = next(facts.named_by for facts in all_facts if facts.named_by)
        note = f"label names: those beside the label maps or in their headers ({of}); --label_map FILE gives others"
        return (
            named_labels((i, rows[i].name, rows[i].color) for i in sorted(rows)),
            note,
            f"beside the label maps: {of}",
        )
    if ct and len(counts) > OWN_COUNT and OWN_LOW <= max(counts) <= OWN_HIGH:
        return read_label_table(OWN, counts), (
            f"label names: {OWN}'s, whose ids these are by their number and range in a CT; --label_map FILE gives others"
        ), ""  # fmt: skip
    return found_labels(counts, {}), "", ""


def _table(o: PrepareOptions, found: Found, labels: tuple[Label, ...]) -> ClassTable:
    if o.half == "images":
        return ClassTable(())
    extra = ["body_unlabelled"] if o.split_background else []
    masks = o.lesions and any("lesion" in case.masks for case in found.cases)
    drawn = any(label.name == LESION for label in labels)  # already a class of the label maps
    extra += [LESION] if (masks or o.fill != "none") and not drawn else []
    labels += tuple(Label(len(labels) + i, name) for i, name in enumerate(extra))
    return ClassTable(labels, o.unknown_labels == "background")


def unlisted_ids(
    of: str, table: ClassTable, counts: Mapping[int, int], what: str, names: Mapping[int, str] = {}
) -> tuple[list[str], list[str]]:
    """Faults and notes of source ids that no class lists. of: the table that should. what: is counted. names: of ids."""
    unknown = table.unknown(dict(counts))
    listing = ", ".join(f"{names.get(i, i)} ({n} {what})" for i, n in sorted(unknown.items())[:20])
    if not unknown or table.lenient:
        return [], [f"ids dropped to background: {listing}"] if unknown else []
    fault = f"{of} does not list {len(unknown)} ids: {listing}; --unknown_labels background drops them"
    return [fault + ("" if of.startswith("--label_map") else ", --label_map FILE names them")], []

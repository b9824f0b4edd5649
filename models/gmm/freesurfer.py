"""Names and sides of FreeSurfer's label ids: aseg, aparc (Desikan), a2009s (Destrieux), wmparc, SynthSeg's training maps.

The table is freesurfer.tsv. Ids and structures are those of FreeSurfer's public colour table (FreeSurferColorLUT). Where the
SynthSeg maps (Billot et al., Med. Image Anal. 2023) use an id for something else, their meaning holds: 136, 137, 163 and
164 are choroid plexus (its outputs count them as 4, 5, 43 and 44), 500 to 530 lie outside the brain. The parcellation's
"corpuscallosum" (1004, 2004) is no cortex, so its name does not say so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

TABLE = Path(__file__).with_suffix(".tsv")
CEREBRUM = {2, 3, 41, 42}  # white matter and cortex, which a segmentation of the whole brain holds


def _read() -> tuple[dict[int, str], set[int], dict[int, int]]:
    """Names, ids that no segmentation of today holds, and partners: the id of the same structure on the other side."""
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = {int(row["index"]): row["name"] for row in rows}
    ids = {name: number for number, name in names.items()}
    swap = {"left": "right", "right": "left"}
    sides = {number: name.partition(" ") for number, name in names.items()}
    partners = {number: ids["".join([swap.get(side, side), *rest])] for number, (side, *rest) in sides.items()}
    return names, {int(row["index"]) for row in rows if row["use"] == "old"}, partners


NAMES, _UNUSED, PARTNERS = _read()  # names: spaces, the side first; partners: the id itself where it has no side


def strangers(values: Iterable[int]) -> tuple[int, ...] | None:
    """Ids that the table lacks, ascending, of maps that are FreeSurfer's by their other ids; None for all other maps.

    Id 1, the cerebral exterior, occurs in no segmentation that FreeSurfer or SynthSeg writes, but in almost every map
    that is numbered 1, 2, 3, ... and means something else. Neither does an old id of the table in more than a fifth.
    With strangers, the map must hold the white matter or the cortex of the cerebrum, and three known ids for each.
    """
    found = set(values) - {0}
    known = found & PARTNERS.keys()
    unknown = sorted(found - known)
    if not known or 1 in found or len(known & _UNUSED) * 5 > len(known):
        return None
    if unknown and (not found & CEREBRUM or len(unknown) * 3 > len(known)):
        return None
    return tuple(unknown)


def recognised(values: Iterable[int]) -> bool:
    """Whether label ids can be taken for FreeSurfer's and all are known; see `strangers`."""
    return strangers(values) == ()


def in_order(values: Iterable[int]) -> tuple[int, ...]:
    """Ids in the order of SynthSeg's lists: those without a side, left, right; each group ascending by its left id.

    Ids that the table lacks are taken to have no side.
    """
    other = {value: PARTNERS.get(value, value) for value in values}  # a left id is always the smaller of its pair
    return tuple(sorted(other, key=lambda i: (0 if other[i] == i else 1 if i < other[i] else 2, min(i, other[i]))))

"""Names and sides of FreeSurfer's label ids, with the extra ids of the SynthSeg training maps.

Ids and structures are those of FreeSurfer's public colour table (FreeSurferColorLUT). Where the SynthSeg maps (Billot et
al., Med. Image Anal. 2023) use an id for something else, their meaning holds: 136, 137, 163 and 164 are choroid plexus,
500 to 530 lie outside the brain.
"""

from __future__ import annotations

from collections.abc import Iterable

# (left id, right id): name without its side
_PAIRS = {
    (1, 40): "cerebral exterior",
    (2, 41): "cerebral white matter",
    (3, 42): "cerebral cortex",
    (4, 43): "lateral ventricle",
    (5, 44): "inferior lateral ventricle",
    (6, 45): "cerebellum exterior",
    (7, 46): "cerebellum white matter",
    (8, 47): "cerebellum cortex",
    (9, 48): "thalamus unused",
    (10, 49): "thalamus",
    (11, 50): "caudate",
    (12, 51): "putamen",
    (13, 52): "pallidum",
    (17, 53): "hippocampus",
    (18, 54): "amygdala",
    (19, 55): "insula",
    (20, 56): "operculum",
    (25, 57): "lesion",
    (26, 58): "accumbens area",
    (27, 59): "substantia nigra",
    (28, 60): "ventral dc",
    (29, 61): "undetermined",
    (30, 62): "vessel",
    (31, 63): "choroid plexus",
    (32, 64): "f3orb",
    (33, 65): "log",
    (34, 66): "aog",
    (35, 67): "mog",
    (36, 68): "pog",
    (37, 69): "stellate",
    (38, 70): "porg",
    (39, 71): "aorg",
    (73, 74): "interior",
    (78, 79): "wm hypointensities",
    (81, 82): "non wm hypointensities",
    (83, 84): "f1",
    (86, 87): "future wmsa",
    (96, 97): "amygdala anterior",
    (136, 163): "choroid plexus of lateral horn",  # SynthSeg: counted as 4 and 43 in its outputs
    (137, 164): "choroid plexus of inferior horn",  # as 5 and 44
}
_NEUTRAL = {
    0: "background",
    14: "3rd ventricle",
    15: "4th ventricle",
    16: "brain stem",
    21: "line 1",
    22: "line 2",
    23: "line 3",
    24: "csf",
    72: "5th ventricle",
    77: "wm hypointensities",
    80: "non wm hypointensities",
    85: "optic chiasm",
    88: "future wmsa",
    98: "dura",
    165: "skull",
    192: "corpus callosum",
    250: "fornix",
    251: "cc posterior",
    252: "cc mid posterior",
    253: "cc central",
    254: "cc mid anterior",
    255: "cc anterior",
    256: "voxel unchanged",
    257: "csf extra cerebral",
    258: "head extra cerebral",
    259: "skull approx",
}
# Desikan-Killiany parcels in the order of their ids, left from 1000, right from 2000
_PARCELS = """unknown bankssts caudalanteriorcingulate caudalmiddlefrontal corpuscallosum cuneus entorhinal fusiform
    inferiorparietal inferiortemporal isthmuscingulate lateraloccipital lateralorbitofrontal lingual medialorbitofrontal
    middletemporal parahippocampal paracentral parsopercularis parsorbitalis parstriangularis pericalcarine postcentral
    posteriorcingulate precentral precuneus rostralanteriorcingulate rostralmiddlefrontal superiorfrontal
    superiorparietal superiortemporal supramarginal frontalpole temporalpole transversetemporal insula""".split()


def _tables() -> tuple[dict[int, str], dict[int, int]]:
    # The parcellation's "corpuscallosum" is no cortex, so its name does not say so.
    parcels = ["corpus callosum" if name == "corpuscallosum" else f"cortex {name}" for name in _PARCELS]
    pairs = _PAIRS | {(1000 + i, 2000 + i): name for i, name in enumerate(parcels)}
    names = _NEUTRAL | {i: f"extra-cerebral {i}" for i in range(500, 531)}
    partners = {i: i for i in names}
    for (left, right), name in pairs.items():
        names |= {left: f"left {name}", right: f"right {name}"}
        partners |= {left: right, right: left}
    return names, partners


NAMES, PARTNERS = _tables()


def name(value: int) -> str | None:
    """Name of a label id, lower case with spaces, the side first ("left cerebral cortex"); None where unknown."""
    return NAMES.get(value)


def partner(value: int) -> int | None:
    """Id of the same structure on the other side, the id itself where it has no side; None where unknown."""
    return PARTNERS.get(value)


def recognised(values: Iterable[int]) -> bool:
    """Whether label ids can be taken for FreeSurfer's: all are known, and 1 is not among them.

    Id 1, the cerebral exterior, occurs in no segmentation that FreeSurfer or SynthSeg writes, but in almost every map
    that is numbered 1, 2, 3, ... and means something else.
    """
    found = set(values)
    return found != {0} and 1 not in found and found <= PARTNERS.keys()


def in_order(values: Iterable[int]) -> tuple[int, ...]:
    """Known ids in the order of SynthSeg's lists: those without a side, left, right; each group ascending by its left id."""
    return tuple(sorted(set(values), key=lambda i: (_group(i), min(i, PARTNERS[i]))))


def _group(value: int) -> int:
    other = PARTNERS[value]  # a left id is always the smaller of its pair
    return 0 if other == value else 1 if value < other else 2

"""Names and sides of FreeSurfer's label ids: aseg, aparc (Desikan), a2009s (Destrieux), wmparc, SynthSeg's training maps.

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
    (5001, 5002): "unsegmented white matter",
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
    99: "lesion",
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
# Destrieux parcels likewise, left from 11100, right from 12100: G gyrus, S sulcus
_DESTRIEUX = """Destrieux_unknown G_and_S_frontomargin G_and_S_occipital_inf G_and_S_paracentral G_and_S_subcentral
    G_and_S_transv_frontopol G_and_S_cingul-Ant G_and_S_cingul-Mid-Ant G_and_S_cingul-Mid-Post G_cingul-Post-dorsal
    G_cingul-Post-ventral G_cuneus G_front_inf-Opercular G_front_inf-Orbital G_front_inf-Triangul G_front_middle
    G_front_sup G_Ins_lg_and_S_cent_ins G_insular_short G_occipital_middle G_occipital_sup G_oc-temp_lat-fusifor
    G_oc-temp_med-Lingual G_oc-temp_med-Parahip G_orbital G_pariet_inf-Angular G_pariet_inf-Supramar G_parietal_sup
    G_postcentral G_precentral G_precuneus G_rectus G_subcallosal G_temp_sup-G_T_transv G_temp_sup-Lateral
    G_temp_sup-Plan_polar G_temp_sup-Plan_tempo G_temporal_inf G_temporal_middle Lat_Fis-ant-Horizont
    Lat_Fis-ant-Vertical Lat_Fis-post Medial_wall Pole_occipital Pole_temporal S_calcarine S_central S_cingul-Marginalis
    S_circular_insula_ant S_circular_insula_inf S_circular_insula_sup S_collat_transv_ant S_collat_transv_post
    S_front_inf S_front_middle S_front_sup S_interm_prim-Jensen S_intrapariet_and_P_trans S_oc_middle_and_Lunatus
    S_oc_sup_and_transversal S_occipital_ant S_oc-temp_lat S_oc-temp_med_and_Lingual S_orbital_lateral
    S_orbital_med-olfact S_orbital-H_Shaped S_parieto_occipital S_pericallosal S_postcentral S_precentral-inf-part
    S_precentral-sup-part S_suborbital S_subparietal S_temporal_inf S_temporal_sup S_temporal_transverse""".split()
CORTEX = (  # parcels; 1004 and 2004 are the corpus callosum
    *(i for i in (*range(1000, 1036), *range(2000, 2036)) if i % 1000 != 4),
    *(*range(11100, 11176), *range(12100, 12176)),
)
WHITE_MATTER = (
    *range(3000, 3036),
    *range(4000, 4036),
    *range(13100, 13176),
    *range(14100, 14176),
    5001,
    5002,
)  # wmparc
CEREBRUM = {2, 3, 41, 42}  # white matter and cortex, which a segmentation of the whole brain holds
# Ids of the colour table that no segmentation of today holds: maps with many of them are numbered by someone else.
_UNUSED = {6, 9, 19, 20, 21, 22, 23, 27, 29, *range(32, 41), 45, 48, 55, 56, 59, 61, *range(64, 72), 73, 74, 83, 84}
_UNUSED |= {86, 87, 88, 96, 97, 98}


def _tables() -> tuple[dict[int, str], dict[int, int]]:
    # The parcellation's "corpuscallosum" is no cortex, so its name does not say so.
    parcels = ["corpus callosum" if name == "corpuscallosum" else f"cortex {name}" for name in _PARCELS]
    pairs = _PAIRS | {(1000 + i, 2000 + i): name for i, name in enumerate(parcels)}
    pairs |= {(11100 + i, 12100 + i): f"cortex {name}" for i, name in enumerate(_DESTRIEUX)}
    pairs |= {(3000 + i, 4000 + i): f"white matter {name}" for i, name in enumerate(_PARCELS)}
    pairs |= {(13100 + i, 14100 + i): f"white matter {name}" for i, name in enumerate(_DESTRIEUX)}
    names = _NEUTRAL | {i: f"extra-cerebral {i}" for i in range(500, 531)}
    partners = {i: i for i in names}
    for (left, right), name in pairs.items():
        names |= {left: f"left {name}", right: f"right {name}"}
        partners |= {left: right, right: left}
    return names, partners


NAMES, PARTNERS = _tables()


def name(value: int) -> str | None:
    """Name of a label id, with spaces, the side first ("left cerebral cortex"); None where unknown."""
    return NAMES.get(value)


def partner(value: int) -> int | None:
    """Id of the same structure on the other side, the id itself where it has no side; None where unknown."""
    return PARTNERS.get(value)


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
    return tuple(sorted(set(values), key=lambda i: (_group(i), min(i, PARTNERS.get(i, i)))))


def _group(value: int) -> int:
    other = PARTNERS.get(value, value)  # a left id is always the smaller of its pair
    return 0 if other == value else 1 if value < other else 2

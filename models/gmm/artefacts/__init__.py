"""Artefacts of fetal brain MRI, simulated on an image in [0, 1]: blurred cortex, structured noise, motion, boundaries.

After the generator of fetalsyngen (Zalevskyi et al., 2024-25), from its published ranges. Each artefact is a frozen
dataclass that holds the random decisions of one sample. `sample` draws it; calling it on (image, masks) is a pure function:
the same object and input give the same output, bit for bit, and the global random state is neither read nor changed.
Images in [0, 1] stay non-negative; noise may take them above 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from dataloaders.io.schema import decode
from models.gmm.artefacts.blur_cortex import BlurCortex
from models.gmm.artefacts.boundaries import SimulatedBoundaries
from models.gmm.artefacts.fields import Artefact
from models.gmm.artefacts.motion import SimulatedMotion
from models.gmm.artefacts.structured_noise import StructuredNoise

# In the order in which they are applied.
ARTEFACTS: dict[str, type[Artefact]] = {
    "blur_cortex": BlurCortex,
    "structured_noise": StructuredNoise,
    "motion": SimulatedMotion,
    "boundaries": SimulatedBoundaries,
}


def artefact_to_dict(artefact: Artefact) -> dict[str, Any]:
    """The artefact's name in `ARTEFACTS` and its fields: all of it plain JSON."""
    name = next(name for name, kind in ARTEFACTS.items() if type(artefact) is kind)
    return {"name": name, **dataclasses.asdict(artefact)}


def artefact_from_dict(record: Mapping[str, Any]) -> Artefact:
    """The artefact of a record that `artefact_to_dict` wrote, before or after JSON. ValueError where it does not fit."""
    kind = ARTEFACTS.get(record.get("name", ""))
    if kind is None:
        raise ValueError(f"artefact {record.get('name')!r} is unknown; known are {', '.join(ARTEFACTS)}")
    # frontal: of files that were written before 0.3, where it is never true
    own = {key: value for key, value in record.items() if key not in ("name", "frontal")}
    return cast(Artefact, decode(kind, own, f"artefact {record['name']!r}"))

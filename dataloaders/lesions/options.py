"""Options of scripts/add_lesions.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataloaders.lesions.placing import Variation


@dataclass(frozen=True, kw_only=True)
class AddLesionsOptions:
    """Put MS lesions into a scan. Beyond the lesions' zone the files come back bit for bit."""

    name: str
    """Run that paints: of --model lesion, or for comparison gmm, oasis or spade trained with a class named lesion."""
    input: tuple[Path, ...]
    """The scan to put lesions into, skull-stripped: one NIfTI file per channel of the run, in its order (T1w FLAIR)."""
    output: Path
    """Folder to write: each input file under its name, the new mask, provenance.json."""
    mask: Path | None = None
    """Lesions as a mask: on the input's grid, or with --from_patient on the patient's."""
    from_patient: Path | None = None
    """Folder of a patient (*_T1w, *_FLAIR and a lesion mask) whose lesions, with their intensities, are carried over."""
    own_lesions: Path | None = None
    """Mask of lesions that the input has already; they are filled first."""

    tissue: Path | None = None
    """Tissue of the input on its grid (1 CSF, 2 grey, 3 white matter); by default made from its T1w scan."""
    brain_mask: Path | None = None
    """Brain of the input, for a T1w scan with skull."""
    patient_tissue: Path | None = None
    """Tissue of the patient, likewise."""
    patient_brain_mask: Path | None = None
    """Brain of the patient, likewise."""
    registration: Literal["auto", "none", "affine", "deformable"] = "auto"
    """Patient to input: auto is deformable, and none where both already lie in one space."""

    load: str = ""
    """Volume of the new lesions, e.g. 5ml; by default that of the lesions that are there."""
    vary: bool = False
    """Change the lesions by usual amounts: scale 0.8 to 1.2, mirror half of them, elastic 1 mm, shift 4 mm."""
    scale: tuple[float, float] | None = None
    """Size of each lesion, drawn between two factors."""
    mirror: float | None = None
    """Probability that a lesion changes sides."""
    elastic: float | None = None
    """Standard deviation of a lesion's smooth deformation in mm."""
    shift: float | None = None
    """Standard deviation of a lesion's displacement along each axis in mm."""
    seed: int = 0
    """Seed of all of that, of filling and of the method's noise."""

    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    ckpt_iter: str = "best"
    """Weights to use: best, latest, or a number of images seen."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    overwrite: bool = False
    """Replace what is in --output."""
    dry_run: bool = False
    """Only place the lesions and say what would be written."""

    def variation(self) -> Variation:
        """How lesions are changed; ValueError for values out of range."""
        usual = Variation(scale=(0.8, 1.2), mirror=0.5, elastic=1.0, shift=4.0) if self.vary else Variation()
        return Variation(
            load_ml=parse_load(self.load) if self.load else None,
            scale=usual.scale if self.scale is None else self.scale,
            mirror=usual.mirror if self.mirror is None else self.mirror,
            elastic=usual.elastic if self.elastic is None else self.elastic,
            shift=usual.shift if self.shift is None else self.shift,
            seed=self.seed,
        )


def parse_load(text: str) -> float:
    """``5ml``, ``5 ml`` or ``5`` -> 5.0; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ml)?", text.strip())
    if match is None:
        raise ValueError(f"--load {text}: must be a volume such as 5ml")
    return float(match[1])


def check_options(o: AddLesionsOptions) -> None:
    """Raise ValueError for options that do not go together."""
    if o.mask is None and o.from_patient is None:
        raise ValueError("give --mask FILE or --from_patient DIR: where the lesions come from")
    if o.from_patient is None:
        for flag in ("patient_tissue", "patient_brain_mask"):
            if getattr(o, flag) is not None:
                raise ValueError(f"--{flag} {getattr(o, flag)}: only with --from_patient")
    if o.seed < 0:
        raise ValueError(f"--seed {o.seed}: must be at least 0")
    o.variation()
    stems = [path.name for path in o.input]
    twice = sorted({name for name in stems if stems.count(name) > 1})
    if twice:
        raise ValueError(f"--input: two files are named {twice[0]}, and outputs have the names of inputs")
    for path in o.input:
        if path.resolve().parent == o.output.resolve():
            raise ValueError(f"--output {o.output}: is the folder of the input {path.name}, which would be replaced")

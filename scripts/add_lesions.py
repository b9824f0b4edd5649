"""Put MS lesions into a scan: ``scripts/add_lesions.py --name RUN --input T1 FLAIR --from_patient DIR --output DIR``."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.io.files import write_json
from dataloaders.io.geometry import resample, to_ras
from dataloaders.io.nifti import stem
from dataloaders.io.schema import AtLeast0, GpuIds, Iteration, Must, Share, check
from dataloaders.io.spec import LESION
from dataloaders.lesions.adding import Painting, add_lesions, back_to_file, mask_to_file
from dataloaders.lesions.placing import Placed, Variation, allowed_zone, place
from dataloaders.lesions.scans import Head, Stored, find_patient, load_head, read_channels, read_like, read_mask
from dataloaders.registration import BrainScan, register, same_space
from engine import device
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.trained import TrainedRun
from models.base import Method
from models.lesion.method import LesionUnet

PROVENANCE = "provenance.json"
LEVEL_SIGMA = 1.2  # voxels; brightness changes slowly within a lesion, its grain is the network's to paint
MASK_NAME = "lesion_mask.nii.gz"
Profile = tuple[Sequence[float], float, float]  # brightness by depth, spread between lesions, spread within


Factors = Annotated[
    tuple[float, float], Must("two factors in (0, 10], the lower one first", lambda v: 0 < v[0] <= v[1] <= 10)
]
Load = Annotated[str, Must("a volume above 0 such as 5ml", lambda text: not text or (millilitres(text) or 0) > 0)]
Millimetres = Annotated[float, Must("in [0, 50] mm", lambda mm: 0 <= mm <= 50)]


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

    load: Load = ""
    """Volume of the new lesions, e.g. 5ml; by default that of the lesions that are there."""
    vary: bool = False
    """Change the lesions by usual amounts: scale 0.8 to 1.2, mirror half of them, elastic 1 mm, shift 4 mm."""
    scale: Factors | None = None
    """Size of each lesion, drawn between two factors."""
    mirror: Share | None = None
    """Probability that a lesion changes sides."""
    elastic: Millimetres | None = None
    """Standard deviation of a lesion's smooth deformation in mm."""
    shift: Millimetres | None = None
    """Standard deviation of a lesion's displacement along each axis in mm."""
    seed: AtLeast0 = 0
    """Seed of all of that, of filling and of the method's noise."""

    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    ckpt_iter: Iteration = "best"
    """Weights to use: best, latest, or a number of images seen."""
    gpu_ids: GpuIds = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    overwrite: bool = False
    """Replace what is in --output."""
    dry_run: bool = False
    """Only place the lesions and say what would be written."""

    def variation(self) -> Variation:
        """How lesions are changed."""
        usual = Variation(scale=(0.8, 1.2), mirror=0.5, elastic=1.0, shift=4.0) if self.vary else Variation()
        return Variation(
            load_ml=millilitres(self.load),
            scale=usual.scale if self.scale is None else self.scale,
            mirror=usual.mirror if self.mirror is None else self.mirror,
            elastic=usual.elastic if self.elastic is None else self.elastic,
            shift=usual.shift if self.shift is None else self.shift,
            seed=self.seed,
        )

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        if self.mask is None and self.from_patient is None:
            raise ValueError("give --mask FILE or --from_patient DIR: where the lesions come from")
        if self.from_patient is None:
            for flag in ("patient_tissue", "patient_brain_mask"):
                if getattr(self, flag) is not None:
                    raise ValueError(f"--{flag} {getattr(self, flag)}: only with --from_patient")
        stems = [path.name for path in self.input]
        twice = sorted({name for name in stems if stems.count(name) > 1})
        if twice:
            raise ValueError(f"--input: two files are named {twice[0]}, and outputs have the names of inputs")
        for path in self.input:
            if path.resolve().parent == self.output.resolve():
                raise ValueError(
                    f"--output {self.output}: is the folder of the input {path.name}, which would be replaced"
                )


def millilitres(text: str) -> float | None:
    """``5ml``, ``5 ml`` or ``5`` -> 5.0; None for anything else."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ml)?", text.strip())
    return None if match is None else float(match[1])


def painter(o: AddLesionsOptions) -> tuple[Method, Painting]:
    """The method of the run with its weights, and how it paints. ValueError for runs that cannot paint lesions."""
    run = TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter)
    workflow = workflow_of(run.config)
    if all(label.name != LESION for label in run.spec.labels):
        raise ValueError(f"--name {o.name}: the run was trained without a class named {LESION!r}")
    if neighbours := getattr(workflow, "neighbours", 0):
        raise ValueError(f"--name {o.name}: 2.5-D runs (neighbours {neighbours}) cannot paint lesions")
    method, _ = run.method(o.gpu_ids)
    if not isinstance(method, LesionUnet):
        return method, Painting(any_size=run.config.method.fitted)
    method.composite = False  # blended in three dimensions, in the scan's own units
    u = run.config.lesion
    return method, Painting(u.everywhere, True, u.dims == 3, u.levels == "bands", u.reach, u.feather)


@dataclass(frozen=True)
class Carried:
    """Lesions on the host's grid: mask, intensities in the host's model range, and how they came there."""

    mask: NDArray[np.bool_]
    level: NDArray[np.float32]
    how: dict[str, Any]


def add_to_scan(o: AddLesionsOptions, method: Method, how: Painting, profile: Profile | None) -> str:
    """The whole command; returns the line to print. ValueError and VolumeError for input that cannot be used.

    profile: brightness of lesions whose mask comes without a scan; None takes a fifth above white matter.
    """
    channels = [channel.name for channel in method.spec.channels]
    refuse_existing(o)
    scans = read_channels(o.input, channels, "--input")
    own = None if o.own_lesions is None else read_mask(o.own_lesions, scans[0])
    mask = None if o.mask is None or o.from_patient is not None else read_mask(o.mask, scans[0])
    spacing = (*method.spec.spacing[::-1], method.spec.slice_spacing) if method.spec.axis == "axial" else ()
    if mask is not None and not mask.any():
        return _finish(o, scans, None, [scan.raw for scan in scans], np.zeros(mask.shape, np.uint8), None, {})
    host = load_head(scans, channels, own, o.tissue, o.brain_mask, spacing)
    carried = _from_mask(host, mask, scans[0], profile, o.seed) if mask is not None else _from_patient(o, host, how)
    placed = _place(o, host, carried)
    if o.dry_run:
        return f"{_volume(host, placed)} in {len(placed.lesions)} lesions would be added{placed.shortfall()}"
    target = device.select_device(o.gpu_ids)
    after = add_lesions(method, how, host, placed, o.seed, target)
    raws = [back_to_file(*parts) for parts in zip(scans, [host] * len(scans), host.images, after, strict=True)]
    return _finish(o, scans, host, raws, mask_to_file(scans[0], host, placed.mask), placed, carried.how)


def refuse_existing(o: AddLesionsOptions) -> None:
    """ValueError where the folder to write holds something already."""
    if o.output.exists() and not o.overwrite and any(o.output.iterdir()):
        raise ValueError(f"--output {o.output}: is not empty; choose another folder or give --overwrite")


def _place(o: AddLesionsOptions, host: Head, carried: Carried) -> Placed:
    zone = allowed_zone(host.tissue, host.brain, host.spacing)
    zone |= host.lesion  # its own lesions are filled with white matter first
    variation: Variation = o.variation()
    return place(carried.mask, carried.level, zone, host.brain, host.spacing, variation)


# -- where lesions come from --------------------------------------------------------------------------------------


def _from_mask(host: Head, mask: NDArray[np.bool_], scan: Stored, profile: Profile | None, seed: int) -> Carried:
    """A mask on the host's grid, given the brightness that lesions had in training."""
    on_grid = _to_head(mask, scan, host)
    if not (on_grid & host.brain).any():
        raise ValueError("--mask: no lesion lies inside the brain; is the mask in the space of --input?")
    level = profile_level(on_grid, profile, seed)
    return Carried(on_grid, level, {"levels": "brightness of the training lesions by depth"})


def profile_level(mask: NDArray[np.bool_], profile: Profile | None, seed: int) -> NDArray[np.float32]:
    """Intensities in the model's range for a mask without a scan: mean by depth, an offset for each lesion, smooth grain."""
    mean, between, within = profile or ((-0.2 + 0.16,), 0.0, 0.0)
    depth = np.ceil(ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1, 1:-1]).astype(int)
    rng = np.random.default_rng((seed, 2))
    labelled, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))
    offsets = np.concatenate([[0.0], np.clip(rng.normal(0, 1, count), -2, 2) * between])
    grain = ndimage.gaussian_filter(rng.standard_normal(mask.shape), LEVEL_SIGMA)
    level = np.asarray(mean)[np.clip(depth - 1, 0, len(mean) - 1)] + offsets[labelled] + within * grain / grain.std()
    return level.astype(np.float32)


def _to_head(mask: NDArray[np.bool_], scan: Stored, host: Head) -> NDArray[np.bool_]:
    data, affine = to_ras(mask.astype(np.float32), scan.affine)
    return resample(data, affine, host.ids.shape, host.grid) > 0.5


def _from_patient(o: AddLesionsOptions, host: Head, how: Painting) -> Carried:
    """A patient's lesions carried onto the host's grid, with the patient's intensities in units of its white matter."""
    assert o.from_patient is not None
    paths, mask_path = find_patient(o.from_patient, host.channels, o.mask)
    scans = read_channels(paths, host.channels, "--from_patient")
    mask = read_like(mask_path, scans[0]) > 0
    if not mask.any():
        raise ValueError(f"{mask_path}: the patient's lesion mask is empty")
    files = (o.patient_tissue, o.patient_brain_mask)
    patient = load_head(scans, host.channels, mask, *files, flag="--patient_tissue")
    anatomy = host.channels.index("T1w") if "T1w" in host.channels else 0
    fixed = BrainScan(np.where(host.brain, host.images[anatomy], 0), host.grid)
    moving = BrainScan(np.where(patient.brain, patient.images[anatomy], 0), patient.grid)
    way = o.registration
    if way == "auto":
        way = "none" if same_space(fixed, moving) else "deformable"
    transform = register(fixed, moving, way)
    on_grid = transform.carry(patient.lesion.astype(np.float32), patient.grid) > 0.5
    level = _host_level(patient.level, patient, host, how)
    level = transform.carry(level + 1, patient.grid) - 1  # 0 is what lies outside a carried scan
    facts: dict[str, Any] = {"registration": way, "patient_files": [path.name for path in (*paths, mask_path)]}
    voxel = float(np.prod(host.spacing)) / 1000
    facts["carried_ml"] = round(int(on_grid.sum()) * voxel, 4)
    return Carried(on_grid, level.astype(np.float32), {**facts, "affine": transform.affine.round(6).tolist()})


def _host_level(level: NDArray[np.float32], patient: Head, host: Head, how: Painting) -> NDArray[np.float32]:
    """The patient's intensities as they would be in the host: the same share of white matter, or for bands the same
    number of standard deviations above grey matter.
    """
    if not how.bands:
        return level
    (mean, deviation), (own_mean, own_deviation) = patient.grey, host.grey
    return own_mean + (level - mean) / deviation * own_deviation


# -- writing ------------------------------------------------------------------------------------------------------


def _volume(host: Head, placed: Placed) -> str:
    return f"{int(placed.mask.sum()) * float(np.prod(host.spacing)) / 1000:.3g} ml"


def _finish(
    o: AddLesionsOptions,
    scans: Sequence[Stored],
    host: Head | None,
    raws: Sequence[NDArray],
    mask: NDArray[np.uint8],
    placed: Placed | None,
    how: dict[str, Any],
) -> str:
    """Write all files, provenance last; returns what to tell the user."""
    if o.dry_run:
        return "the mask is empty: the scan would come back as it is"
    for scan, raw in zip(scans, raws, strict=True):
        scan.write(o.output / scan.name, raw)
    Stored(o.output / MASK_NAME, mask, scans[0].affine).write(o.output / MASK_NAME, mask)
    voxel = abs(float(np.linalg.det(scans[0].affine[:3, :3]))) / 1000
    provenance: dict[str, Any] = {
        "run": o.name,
        "checkpoint": o.ckpt_iter,
        "inputs": {
            scan.name: {"sha256": _sha256(scan.raw), "changed_voxels": int((raw != scan.raw).sum())}
            for scan, raw in zip(scans, raws, strict=True)
        },
        "mask": None if o.mask is None else o.mask.name,
        "own_lesions": None if o.own_lesions is None else o.own_lesions.name,
        "options": {key: getattr(o, key) for key in ("load", "vary", "scale", "mirror", "elastic", "shift", "seed")},
        "lesion_ml": round(int(mask.sum()) * voxel, 4),
        **how,
        **({} if placed is None else placed.report()),
    }
    if host is not None:
        windows = {name: window.high for name, window in zip(host.channels, host.windows, strict=True)}
        provenance["intensity_at_2.5_times_white_matter"] = windows
    write_json(o.output / PROVENANCE, provenance)
    if placed is None:
        return f"the lesion mask is empty: the scan is returned as it is; {o.output}"
    return (
        f"{o.output}: {provenance['lesion_ml']:.3g} ml in {len(placed.lesions)} lesions added"
        + placed.shortfall()
        + f"; {', '.join(stem(scan.path) for scan in scans)}"
    )


def _sha256(raw: NDArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or scans that cannot be used."""
    o = tyro.cli(AddLesionsOptions, description=AddLesionsOptions.__doc__)
    check(o)
    method, how = painter(o)
    profile = method.level_profile if isinstance(method, LesionUnet) else None
    print(add_to_scan(o, method, how, None if profile is None else (profile.mean, profile.between, profile.within)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

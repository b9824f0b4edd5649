"""MS lesions into a scan, as files: what scripts/add_lesions.py does, and what the page that paints calls."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dataloaders.io.files import write_json
from dataloaders.io.geometry import resample, to_ras, voxel_volume
from dataloaders.io.nifti import Volume, stem, write_volume
from dataloaders.io.schema import AtLeast0, GpuIds, Iteration, Must, Share
from dataloaders.io.spec import LESION, DataSpec
from dataloaders.lesions.adding import Painting, add_lesions, back_to_file, mask_to_file
from dataloaders.lesions.filling import FULL
from dataloaders.lesions.placing import Placed, Variation, place
from dataloaders.lesions.scans import Head, find_patient, load_head, read_channels, read_like, read_mask
from dataloaders.registration import register, same_space
from engine.methods.base import workflow_of
from engine.trained import TrainedRun
from models.base import Method
from models.lesion.conditions import DEPTHS, WHITE, profile_of
from models.lesion.method import LesionUnet

PROVENANCE = "provenance.json"
CHANGES = ("scale", "mirror", "elastic", "shift")  # of lesions, as options and in `Variation`
OFFSET_CELL = 12  # voxels; lesions nearer to each other than that may be equally bright
LEVEL_SIGMA = 1.2  # voxels; brightness changes slowly within a lesion, its grain is the network's to paint
MASK_NAME = "lesion_mask.nii.gz"
PLAIN = profile_of([WHITE + 0.16] * DEPTHS, 0.0, 0.0)  # a fifth above white matter

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
        given = {name: value for name in CHANGES if (value := getattr(self, name)) is not None}
        return replace(usual, load_ml=millilitres(self.load), seed=self.seed, **given)

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


@dataclass(frozen=True)
class LesionRun:
    """A trained run that paints lesions, and how. profile: see `profile_of`, for masks without a scan."""

    run: TrainedRun
    method: Method
    how: Painting
    device: torch.device
    profile: Tensor

    @classmethod
    def of(cls, run: TrainedRun, gpu_ids: str) -> LesionRun:
        """The run with its weights. ValueError for runs that cannot paint lesions."""
        name, workflow = run.folder.name, workflow_of(run.config)
        if all(label.name != LESION for label in run.spec.labels):
            raise ValueError(f"--name {name}: the run was trained without a class named {LESION!r}")
        if neighbours := getattr(workflow, "neighbours", 0):
            raise ValueError(
                f"--name {name}: 2.5-D runs (neighbours {neighbours}) cannot paint lesions; "
                f"train one with --{run.config.model}.neighbours 0"
            )
        method, target = run.method(gpu_ids)
        if not isinstance(method, LesionUnet):
            return cls(run, method, Painting(any_size=run.config.method.fitted), target, PLAIN)
        method.composite = False  # blended in three dimensions, in the scan's own units
        u = run.config.lesion
        how = Painting(u.everywhere, True, u.dims == 3, u.levels == "bands", u.reach, u.feather)
        return cls(run, method, how, target, method.profile)


class Host:
    """The scan that lesions go into: its files as they are, and its brain, found when it is first asked for.

    own: (I, J, K) lesions that it has already, on the files' grid. ValueError for files that do not fit the run's `spec`.
    """

    def __init__(self, o: AddLesionsOptions, spec: DataSpec) -> None:
        self.channels = [channel.name for channel in spec.channels]
        self.scans = read_channels(o.input, self.channels, "--input")
        self.own = None if o.own_lesions is None else read_mask(o.own_lesions, self.scans[0])
        self._spacing = (*spec.spacing[::-1], spec.slice_spacing) if spec.axis == "axial" else ()
        self._files = o.tissue, o.brain_mask

    @functools.cached_property
    def head(self) -> Head:
        """On the grid that the run works on. ValueError where tissue can neither be read nor made."""
        return load_head(self.scans, self.channels, self.own, *self._files, self._spacing)


@dataclass(frozen=True)
class Added:
    """Raw values of every file with the lesions, and the new mask (I, J, K) on their grid. placed: None for no lesion."""

    raws: list[NDArray]
    mask: NDArray[np.uint8]
    placed: Placed | None = None


def add_to_scan(o: AddLesionsOptions, run: LesionRun) -> str:
    """The whole command; returns the line to print. ValueError and VolumeError for input that cannot be used."""
    if o.output.exists() and not o.overwrite and any(o.output.iterdir()):
        raise ValueError(f"--output {o.output}: is not empty; choose another folder or give --overwrite")
    host = Host(o, run.method.spec)
    mask = None if o.mask is None or o.from_patient is not None else read_mask(o.mask, host.scans[0])
    lesions = lesions_in(o, host, run, mask)
    if not o.dry_run:
        return write_added(o, host, paint_in(o, host, run, lesions))
    if lesions is None:
        return "the mask is empty: the scan would come back as it is"
    ml = int(lesions.mask.sum()) * float(np.prod(host.head.spacing)) / 1000
    return f"{ml:.3g} ml in {len(lesions.lesions)} lesions would be added{lesions.shortfall()}"


def lesions_in(o: AddLesionsOptions, host: Host, run: LesionRun, mask: NDArray[np.bool_] | None) -> Placed | None:
    """Where lesions go: those of a mask on the files' grid, for None of --from_patient.

    None for an empty mask. ValueError where no lesion fits.
    """
    if mask is not None and not mask.any():
        return None
    head = host.head
    if mask is None:
        on_grid, level, facts = _from_patient(o, head, run.how)
    else:
        data, affine = to_ras(mask.astype(np.float32), host.scans[0].affine)
        on_grid = resample(data, affine, head.ids.shape, head.grid) > 0.5
        if not (on_grid & head.brain).any():
            raise ValueError("--mask: no lesion lies inside the brain; is the mask in the space of --input?")
        level = profile_level(on_grid, run.profile, o.seed)
        facts = {"levels": "brightness of the training lesions by depth"}
    return replace(place(on_grid, level, head.room, head.brain, head.spacing, o.variation()), facts=facts)


def paint_in(o: AddLesionsOptions, host: Host, run: LesionRun, placed: Placed | None) -> Added:
    """The files with what `lesions_in` found; as they are without lesions."""
    first = host.scans[0]
    if placed is None:
        return Added([scan.raw for scan in host.scans], np.zeros(first.raw.shape, np.uint8))
    head = host.head
    after = add_lesions(run.method, run.how, head, placed, o.seed, run.device)
    raws = [back_to_file(scan, head, *images) for scan, *images in zip(host.scans, head.images, after, strict=True)]
    return Added(raws, mask_to_file(first, head, placed.mask), placed)


# -- where lesions come from --------------------------------------------------------------------------------------


def profile_level(mask: NDArray[np.bool_], profile: Tensor, seed: int) -> NDArray[np.float32]:
    """Intensities in the model's range for a mask without a scan: mean by depth, an offset for each lesion, smooth grain.

    Draws belong to places, so that a lesion stays as it is when another one comes.
    """
    grain, cells = _draws(mask.shape, seed)
    mean, (between, *_), (within, *_) = profile.tolist()
    level = mean[0] + within * grain
    parts, _ = ndimage.label(mask, FULL)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        inside = parts[box] == number
        depth = ndimage.distance_transform_cdt(np.pad(inside, 1), "chessboard")[1:-1, 1:-1, 1:-1][inside]
        cell = tuple((s.start + s.stop) // 2 // OFFSET_CELL for s in box)
        level[box][inside] += np.asarray(mean)[np.minimum(depth, DEPTHS) - 1] - mean[0] + between * cells[cell]
    return level.astype(np.float32)


@functools.lru_cache(maxsize=1)
def _draws(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray]:
    """Smooth grain of unit deviation (I, J, K), and a draw within two deviations for each cell of the volume."""
    rng = np.random.default_rng((seed, 2))
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), LEVEL_SIGMA)
    cells = rng.standard_normal([n // OFFSET_CELL + 1 for n in shape])
    return grain / grain.std(), np.clip(cells, -2, 2)


def _from_patient(
    o: AddLesionsOptions, host: Head, how: Painting
) -> tuple[NDArray[np.bool_], NDArray[np.float32], dict[str, Any]]:
    """A patient's lesions carried onto the host's grid: mask, intensities in the host's model range, and how they came.

    Intensities are the same share of white matter, or for bands as many standard deviations above grey matter.
    """
    assert o.from_patient is not None
    paths, mask_path = find_patient(o.from_patient, host.channels, o.mask)
    scans = read_channels(paths, host.channels, "--from_patient")
    mask = read_like(mask_path, scans[0]) > 0
    if not mask.any():
        raise ValueError(f"{mask_path}: the patient's lesion mask is empty")
    files = (o.patient_tissue, o.patient_brain_mask)
    patient = load_head(scans, host.channels, mask, *files, flag="--patient_tissue")
    anatomy = host.channels.index("T1w") if "T1w" in host.channels else 0
    fixed = Volume(np.where(host.brain, host.images[anatomy], 0), host.grid)
    moving = Volume(np.where(patient.brain, patient.images[anatomy], 0), patient.grid)
    way = o.registration
    if way == "auto":
        way = "none" if same_space(fixed, moving) else "deformable"
    transform = register(fixed, moving, way)
    on_grid = transform.carry(patient.lesion.astype(np.float32), patient.grid) > 0.5
    level = patient.level
    if how.bands:
        (mean, deviation), (own_mean, own_deviation) = patient.grey, host.grey
        level = own_mean + (level - mean) / deviation * own_deviation
    level = transform.carry(level + 1, patient.grid) - 1  # 0 is what lies outside a carried scan
    facts = {
        "registration": way,
        "patient_files": [path.name for path in (*paths, mask_path)],
        "carried_ml": round(int(on_grid.sum()) * float(np.prod(host.spacing)) / 1000, 4),
        "affine": transform.affine.round(6).tolist(),
    }
    return on_grid, level.astype(np.float32), facts


# -- writing ------------------------------------------------------------------------------------------------------


def write_added(o: AddLesionsOptions, host: Host, added: Added) -> str:
    """Write all files, provenance last; returns what to tell the user."""
    scans, first, placed = host.scans, host.scans[0], added.placed
    for scan, raw in zip(scans, added.raws, strict=True):
        scan.write(o.output / scan.name, raw)
    write_volume(o.output / MASK_NAME, added.mask, first.affine)
    voxel = voxel_volume(first.affine) / 1000
    provenance: dict[str, Any] = {
        "run": o.name,
        "checkpoint": o.ckpt_iter,
        "inputs": {
            scan.name: {
                "sha256": hashlib.sha256(scan.raw.tobytes()).hexdigest(),
                "changed_voxels": int((raw != scan.raw).sum()),
            }
            for scan, raw in zip(scans, added.raws, strict=True)
        },
        "mask": None if o.mask is None else o.mask.name,
        "own_lesions": None if o.own_lesions is None else o.own_lesions.name,
        "options": {key: getattr(o, key) for key in ("load", "vary", *CHANGES, "seed")},
        "lesion_ml": round(int(added.mask.sum()) * voxel, 4),
        **({} if placed is None else placed.report()),
    }
    if placed is not None:
        windows = {name: window.high for name, window in zip(host.channels, host.head.windows, strict=True)}
        provenance["intensity_at_2.5_times_white_matter"] = windows
    write_json(o.output / PROVENANCE, provenance)
    if placed is None:
        return f"the lesion mask is empty: the scan is returned as it is; {o.output}"
    return (
        f"{o.output}: {provenance['lesion_ml']:.3g} ml in {len(placed.lesions)} lesions added"
        + placed.shortfall()
        + f"; {', '.join(stem(scan.path) for scan in scans)}"
    )

"""Where deep structures lie in MNI152 space, as a table of Gaussians, from label maps with FreeSurfer's ids.

python benchmarks/tissue_places.py data/labelmaps/synthseg --out dataloaders/prepare/structures.toml

Each map is painted as T1w with typical intensities and laid onto the template as `--tissue atlas` lays scans (affine,
then SyN); a Gaussian mixture is fitted to the places that a structure takes in all maps, both halves of the brain folded
onto one, and a logistic function of its log density to the share of maps that have the structure there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.special import expit
from sklearn.mixture import GaussianMixture

from dataloaders.io.files import write_text
from dataloaders.io.geometry import regrid, resample
from dataloaders.io.nifti import Volume, read_volume
from dataloaders.prepare.atlas import CSF, GREY, GRID_MM, WHITE, template
from dataloaders.registration import Transform, register
from engine.command import exit_code

STRUCTURES = {  # name: FreeSurfer's ids, tissue, number of Gaussians
    "thalamus": ((10, 49), GREY, 3),
    "caudate": ((11, 50), GREY, 4),
    "putamen": ((12, 51), GREY, 3),
    "pallidum": ((13, 52), GREY, 2),
    "accumbens": ((26, 58), GREY, 1),
    "ventral DC": ((28, 60), WHITE, 3),
    "cerebellar white matter": ((7, 46), WHITE, 4),
    "brain stem": ((16,), WHITE, 4),
    "lateral ventricle": ((4, 43), CSF, 4),
}
# Typical T1w intensities of whole classes of ids; of the table's structures, relative to white matter.
PAINT = {(2, 41): 160, (3, 42, 17, 18, 53, 54, 26, 58): 96, (8, 47): 88, (4, 5, 14, 15, 43, 44, 24): 44}
PAINT |= {
    (7, 46): 136,
    (16,): 130,
    (10, 49): 130,
    (11, 50): 97,
    (12, 51): 124,
    (13, 52): 152,
    (28, 60): 143,
    (30, 62): 87,
}
POINTS, SEED = 6000, 0
HEADER = """# Places of deep structures in MNI152 space: dataloaders/prepare/atlas.py says what the numbers mean.
# Fitted to {count} label maps of SynthSeg (Billot et al., Med. Image Anal. 2023, Apache-2.0) by benchmarks/tissue_places.py.
# Rows: weight, mean x, y, z (mm), covariance xx, yy, zz, xy, xz, yz (mm²). tissue: 1 CSF, 2 grey, 3 white matter.
"""


@dataclass(frozen=True)
class PlacesOptions:
    """Table of places from label maps."""

    maps: Annotated[Path, tyro.conf.Positional]
    """Folder of label maps (*.nii.gz)."""
    out: Path = Path("dataloaders/prepare/structures.toml")
    """Table to write."""


def on_template(path: Path) -> dict[str, NDArray[np.bool_]]:
    """The structures of a label map on the template's grid."""
    volume = read_volume(path)
    labels = np.rint(volume.data).astype(np.int32)
    painted = np.zeros(labels.shape, np.float32)
    for ids, value in PAINT.items():
        painted[np.isin(labels, ids)] = value
    shape, affine = regrid(painted.shape, volume.affine, (GRID_MM,) * 3)
    image, own = template()
    found = register(Volume(image, own), Volume(resample(painted, volume.affine, shape, affine), affine))
    here = Transform(found.affine, image.shape, own, found.mapping)
    return {name: here.carry(np.isin(labels, ids), volume.affine) > 0.5 for name, (ids, _, _) in STRUCTURES.items()}


def fitted(share: NDArray[np.float64], affine: NDArray, count: int) -> str:
    """Rows of the table for one structure, from the share of maps (I, J, K) that have it in a voxel."""
    points = np.indices(share.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    folded = ((share + share[::-1]) / 2).ravel()  # the template's grid is symmetric about x = 0
    right = points[:, 0] >= 0
    rng = np.random.default_rng(SEED)
    weight = np.where(right & (folded > 0.02), folded, 0)
    drawn = rng.choice(len(weight), POINTS, p=weight / weight.sum())
    sample = points[drawn] + rng.uniform(-GRID_MM / 2, GRID_MM / 2, (POINTS, 3))
    model = GaussianMixture(count, random_state=SEED, n_init=2, reg_covar=0.5).fit(sample)
    around = ndimage.binary_dilation(folded.reshape(share.shape) > 0.02, iterations=4).ravel() & right
    density, wanted = model.score_samples(points[around]), folded[around]

    def miss(v: NDArray) -> float:
        return float(((expit(v[0] * (density - v[1])) - wanted) ** 2).mean())

    level = float(np.median(density[wanted > 0.3]))
    tries = [optimize.minimize(miss, [s, level - 1], method="Nelder-Mead") for s in (0.5, 1.0, 2.0)]
    steepness, level = min(tries, key=lambda found: found.fun).x
    rows = []
    for w, m, c in zip(model.weights_, model.means_, model.covariances_, strict=True):
        numbers = [w, *m, c[0, 0], c[1, 1], c[2, 2], c[0, 1], c[0, 2], c[1, 2]]
        rows.append(f"    [{', '.join(f'{number:.3g}' for number in numbers)}],")
    return f"steepness = {steepness:.3f}\nlevel = {level:.3f}\ngaussians = [\n" + "\n".join(rows) + "\n]\n"


def run() -> int:
    """Register, count, fit, write."""
    o = tyro.cli(PlacesOptions)
    paths = sorted(o.maps.glob("*.nii.gz"))
    if not paths:
        raise ValueError(f"{o.maps}: no label maps (*.nii.gz)")
    counts = {name: np.zeros(template()[0].shape) for name in STRUCTURES}
    for path in paths:
        for name, mask in on_template(path).items():
            counts[name] += mask / len(paths)
        print(path.name, flush=True)
    affine = template()[1]
    text = HEADER.format(count=len(paths))
    for name, (_, tissue, count) in STRUCTURES.items():
        text += f'\n[[structure]]\nname = "{name}"\ntissue = {tissue}\n{fitted(counts[name], affine, count)}'
    write_text(o.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))

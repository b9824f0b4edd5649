"""Options of scripts/generate.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dataloaders.io.workers import parse_shard
from models.gmm.options import GmmConfig, check_gmm, synthseg_preset


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Synthetic images from label maps. The same command again goes on where it stopped."""

    labels: Path
    """Label maps: a folder (searched with its subfolders), one file (.nii, .nii.gz, .mgz), or a .txt list of files."""
    out: Path
    """Folder to write."""
    n: int = 100
    """Number of samples in all shards; raise it later to make more of the same."""
    seed: int = 0
    """Seed: sample k of a seed is always the same."""
    size: tuple[int, ...] = ()
    """Random crop to this many voxels, one number or one per axis; the same as --output_shape."""
    slices: Literal["none", "axial", "coronal", "sagittal"] = "none"
    """Write PNG slices and a manifest, as test.py does, instead of NIfTI volumes."""
    channels: int = 1
    """Images per sample: contrasts of one anatomy."""
    shard: str = "0/1"
    """Make only samples k with k % n == i of shard i/n, i from 0 to n-1; shards may run at the same time."""
    num_workers: int = 0
    """Processes, one sample each at a time; 0 works in this one. Does not change the images."""

    scheme: str = "auto"
    """What the labels are: auto, seeds, a table by name or file as --label_map of prepare_data.py, or a prepared folder."""
    seeds: Path | None = None
    """Folder of scripts/make_seeds.py: split the tissues by intensity, anew for each sample; maps without are left out."""
    subclasses: tuple[int, int] | None = None
    """With --seeds: least and most clusters of each tissue, drawn for each sample; by default 1 and what there is."""
    lesions: Path | None = None
    """Folder or file of lesion masks (0 and 1), one more label in the maps of the same name or subject."""
    subjects_prob: tuple[str, ...] = ()
    """How often each label map is drawn: a number for each in the order of their paths, or a .npy or .txt file of them."""
    generation_labels: Path | None = None
    """.npy file of every label that occurs, in SynthSeg's order: without side, left, right."""
    generation_classes: Path | None = None
    """.npy file: intensity class of each of generation_labels; by default each its own."""
    output_labels: Path | None = None
    """.npy file: value of each of generation_labels in the label maps that are written; 0 drops it."""
    neutral_labels: int | None = None
    """How many of generation_labels have no side; by default found in FreeSurfer's table."""
    prior_means_file: Path | None = None
    """.npy file of priors of the class means, (2, K) or (2R, K); see --prior_distributions."""
    prior_stds_file: Path | None = None
    """.npy file of priors of the class standard deviations."""
    save_params: Literal["json", "safetensors"] = "json"
    """Format of each sample's parameters, which make the image again."""
    overwrite: bool = False
    """Replace samples in the folder that were made with other settings or of other maps."""
    gmm: GmmConfig = field(default_factory=synthseg_preset)

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard; ValueError for another form."""
        return parse_shard(self.shard)

    @property
    def numbers(self) -> range:
        """Samples of this shard."""
        start, step = self.part
        return range(start, self.n, step)


def map_weights(given: tuple[str, ...], count: int) -> tuple[float, ...]:
    """Numbers of --subjects_prob, () for none; ValueError where they do not fit so many label maps."""
    if not given:
        return ()
    text = f"--subjects_prob {' '.join(given)}"
    try:
        if len(given) == 1 and given[0].endswith(".npy"):
            numbers = np.load(given[0], allow_pickle=False).astype(float).ravel()
        elif len(given) == 1 and given[0].endswith(".txt"):
            numbers = np.loadtxt(given[0], ndmin=1).ravel()
        else:
            numbers = np.array([float(item) for item in given])
    except (ValueError, OSError) as error:
        raise ValueError(f"{text}: must be numbers, or a .npy or .txt file of them ({error})") from None
    if len(numbers) != count or not np.isfinite(numbers).all() or (numbers < 0).any() or numbers.sum() <= 0:
        raise ValueError(
            f"{text}: {len(numbers)} values for {count} label maps; one for each, 0 or more, not all 0, is allowed"
        )
    return tuple(numbers.tolist())


def check_options(o: GenerateOptions) -> None:
    """Raise ValueError naming the flag, the value and what is allowed."""
    for name, low in {"n": 1, "channels": 1, "num_workers": 0, "seed": 0}.items():
        if getattr(o, name) < low:
            raise ValueError(f"--{name} {getattr(o, name)}: must be at least {low}")
    if o.part[1] > o.n:
        raise ValueError(f"--shard {o.shard}: there are only --n {o.n} samples")
    if o.subclasses is not None and o.seeds is None:
        raise ValueError(f"--subclasses {o.subclasses[0]} {o.subclasses[1]} needs --seeds")
    if o.seeds is not None and o.lesions is not None:
        raise ValueError("--seeds and --lesions cannot both be given")
    if o.seeds is not None and o.gmm.priors != "random":
        raise ValueError(
            f"--priors {o.gmm.priors} and --seeds cannot both be given: "
            "priors are of the labels, intensities are of the seeds' clusters"
        )
    if o.size and o.gmm.output_shape:
        raise ValueError("--size and --output_shape are the same; give one of them")
    if any(size < 1 for size in o.size) or len(o.size) > 3:
        raise ValueError(f"--size {' '.join(map(str, o.size))}: must be up to three numbers above 0")
    check_gmm(o.gmm)
    if o.gmm.priors == "fit":
        raise ValueError(
            "--preset fitted has no training images to fit priors from here; "
            "give --priors FILE of scripts/estimate_priors.py, or --priors random"
        )
    if o.gmm.priors != "random" and (o.prior_means_file or o.prior_stds_file):
        raise ValueError("--priors FILE and --prior_means_file or --prior_stds_file cannot both be given")
    if o.labels.is_dir() and o.out.resolve().is_relative_to(o.labels.resolve()):
        raise ValueError(f"--out {o.out} lies in --labels {o.labels}, where its maps would count as input next time")

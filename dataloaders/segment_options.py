"""Options of scripts/segment.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

NO_FOLDERS = (".mgz", ".mgh", ".txt", ".csv")  # what SynthSeg would take as files, and no folder is called


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Segment scans with a trained network. The same command again goes on where it stopped."""

    input: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--i",))]
    """Scans: files (.nii, .nii.gz, .mgz), a folder, a BIDS folder, or a .txt list."""
    output: Annotated[Path, tyro.conf.arg(aliases=("--o",))]
    """Folder to write; for one scan also the name of a .nii.gz file."""
    checkpoint: Path = Path("checkpoints/segmenter")
    """Run folder of train.py --model segmenter, or one of its weight files."""
    ckpt_iter: str = "best"
    """Weights of a run folder: best, latest, or a number of images seen."""
    suffix: tuple[str, ...] = ()
    """BIDS: only images whose names end so, such as T1w; by default all of anat/."""
    posteriors: Annotated[Path | None, tyro.conf.arg(aliases=("--post",))] = None
    """Folder, or for one scan a .nii.gz file, for the probabilities of all classes along a fourth axis."""
    vol: Path | None = None
    """CSV file of volumes in mm³, one row for each scan."""
    resample: Path | None = None
    """Folder, or for one scan a .nii.gz file, for the image as the network sees it: on its grid, in [0, 1]."""
    qc: Path | None = None
    """CSV file with the mean probability of each class where it was found, and what is implausible, scan by scan."""
    pictures: bool = True
    """Write a picture of each segmentation (--no-qc does the same as --no-pictures)."""
    ct: bool = False
    """The scan is CT: clip it to 0 to 80 HU, as SynthSeg does."""
    crop: tuple[int, ...] = ()
    """Only look at a box of so many voxels of the network's grid, one number or three, in the scan's centre."""
    device: str = "auto"
    """auto for GPU 0 where there is one, cpu, or a GPU number."""
    cpu: bool = False
    """The same as --device cpu."""
    threads: int = 0
    """Threads of the CPU; 0 for as many as there are cores."""
    overlap: float | None = None
    """Overlap of neighbouring windows as a share of the window; by default that of the training."""
    shard: str = "0/1"
    """Only every n-th scan, from the i-th on, of shard i/n; shards may run at the same time."""
    overwrite: bool = False
    """Segment again what was segmented with other weights or of another scan."""

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard; ValueError for another form."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(f"--shard {self.shard}: must be i/n with i from 0 to n-1, such as 0/4")
        return int(match[1]), int(match[2])

    @property
    def gpu_ids(self) -> str:
        """The device in the words of train.py; ValueError for others."""
        if self.cpu or self.device == "cpu":
            return "-1"
        name = self.device.removeprefix("cuda:").removeprefix("cuda") or "0"
        if name != "auto" and not name.isdigit():
            raise ValueError(f"--device {self.device}: must be auto, cpu, or a GPU number")
        return name


def check_options(o: SegmentOptions) -> None:
    """Raise ValueError naming the flag, the value and what is allowed."""
    if not o.input:
        raise ValueError("--input: name at least one scan or folder")
    if o.threads < 0:
        raise ValueError(f"--threads {o.threads}: must be at least 0")
    if o.overlap is not None and not 0 <= o.overlap < 1:
        raise ValueError(f"--overlap {o.overlap}: must be in [0, 1)")
    if o.ckpt_iter not in ("best", "latest") and not o.ckpt_iter.isdigit():
        raise ValueError(f"--ckpt_iter {o.ckpt_iter}: must be best, latest or a number of images seen")
    for flag, path in {"--output": o.output, "--posteriors": o.posteriors, "--resample": o.resample}.items():
        if path is not None and path.suffix in NO_FOLDERS:
            raise ValueError(f"{flag} {path}: name a folder, or for one scan a file ending in .nii.gz")
    for flag, path in {"--vol": o.vol, "--qc": o.qc}.items():
        if path is not None and path.suffix != ".csv":
            raise ValueError(f"{flag} {path}: must end in .csv")
    if len(o.crop) not in (0, 1, 3) or any(n < 1 for n in o.crop):
        raise ValueError(f"--crop {' '.join(map(str, o.crop))}: must be one or three numbers of voxels, at least 1")
    assert o.part
    assert o.gpu_ids

"""Options of scripts/prepare_data.py, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

from dataloaders.io.file_names import check_regex
from dataloaders.io.intensity import Window
from dataloaders.io.schema import AtLeast0, Must, Shard, Share, Spacing
from dataloaders.io.spec import Axis
from dataloaders.prepare.splits import FRACTIONS

SIZE_STEP = 32  # the networks halve a slice up to five times
Format = Literal["pairs", "nnunet", "synthrad2023", "bids", "mni152", "png"]
Half = Literal["images", "labels"]
# What makes no sense where the other half is missing.
NEEDS_IMAGES = (
    "channel",
    "hu_offset",
    "image_channels",
    "modalities",
    "brain_masks",
    "fill",
    "n4",
    "tissue",
    "window",
    "clean",
    "split_background",
)
NEEDS_LABELS = ("brain_masks", "label_channel", "fill", "tissue", "split_background", "label_map", "unknown_labels")
# Options that some formats alone read; png reads no others than these and PNG_READS.
READ_WITH: dict[str, tuple[Format, ...]] = {
    "source": ("nnunet", "synthrad2023", "bids", "png"),
    "images": ("pairs",),
    "labels": ("pairs", "synthrad2023"),
    "channel": ("pairs", "png"),
    "case_regex": ("pairs",),
    "image_channels": ("nnunet",),
    "label_channel": ("nnunet",),
    "image": ("synthrad2023",),
    **dict.fromkeys(("modalities", "brain_masks", "bids_filter", "exclude", "lesions"), ("bids",)),
}
PNG_READS = ("format", "out", "check", "dry_run", "label_map", "unknown_labels", "window", "patient_regex", "workers")


def _are_sizes(sizes: tuple[int, ...]) -> bool:
    return len(sizes) <= 2 and all(size > 0 and size % SIZE_STEP == 0 for size in sizes)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Turn 3-D scans and label maps into the slices that train.py and test.py read."""

    format: Format | None = None
    """Layout of the source data."""
    source: Path | None = None
    """Folder of the source data (nnunet, synthrad2023, bids; png: {train,val,test}/{images,labels}/X.png)."""
    out: Path | None = None
    """Folder to write; resumes what was interrupted there."""
    check: tuple[Path, ...] | None = None
    """Only check folders that were prepared before, without a name that of --out: every byte, faults listed, exit code 1
    if there are any."""
    dry_run: bool = False
    """Only inspect the sources."""

    images: str | None = None
    """pairs: folder or quoted glob of images; without --labels (and --tissue) images alone."""
    labels: str | None = None
    """pairs: folder or quoted glob of label maps, without --images label maps alone; synthrad2023: folder by case."""
    only: Half | None = None
    """Prepare one half and open nothing of the other: labels for test.py and unpaired training, images for its look."""
    channel: str = "image"
    """pairs, png: name of the image channel, e.g. CT or T1w; CT selects the CT window."""
    case_regex: str | None = None
    """pairs: regular expression whose first group is the case id within a file's stem."""
    patient_regex: str | None = None
    """Regular expression whose first group is the patient within a case id (repeat scans of one patient)."""
    image_channels: tuple[int, ...] = ()
    """nnunet: channels to use as images; all by default."""
    label_channel: int | None = None
    """nnunet: channel of imagesTr that holds the label map (AutoPET with organ labels: 2)."""
    image: Literal["mr", "ct", "both"] = "mr"
    """synthrad2023: which scans become the image channels."""
    modalities: tuple[str, ...] = ()
    """bids: modalities in channel order; those that every subject has by default."""
    brain_masks: Path | None = None
    """bids: folder with *_desc-brain_mask.nii.gz, for tissue classification of whole heads."""
    bids_filter: tuple[str, ...] = ()
    """bids: of several files of a kind those with KEY=VALUE, as run=2 or acq=mprage; KEY= for those without KEY."""
    exclude: tuple[str, ...] = ()
    """bids: subjects (sub-01) and cases (sub-01_ses-2) to leave out before anything is looked at."""
    lesions: bool = True
    """bids: a *_label-lesion_mask becomes one more class."""
    fill: Literal["none", "lesion", "salem2019"] = "none"
    """Add copies without lesions, for --model lesion: lesions filled in 3-D, or everything bright as published."""
    n4: bool = False
    """Correct the bias field of every channel (N4) inside the labelled voxels; for MR that was not corrected before."""
    tissue: Literal["none", "atlas", "hmrf", "hu"] = "none"
    """Make label maps: atlas = CSF/GM/WM from the first channel (T1w), with deep grey matter; hmrf = the same by intensity
    alone; hu = gas, fat, soft tissue, bone from CT."""

    axis: Axis = "axial"
    """Slicing direction."""
    size: Annotated[tuple[int, ...], Must(f"one or two multiples of {SIZE_STEP}", _are_sizes)] = ()
    """Slice size in pixels, one number or height and width, multiples of 32, to which slices are padded or cropped; by
    default the smallest that holds the labels of every case (the whole plane where label maps are still to be made)."""
    spacing: Spacing = ()
    """Resample to this voxel size in mm: one number, or three for right-left, front-back, head-foot."""
    window: tuple[str, ...] = ("auto",)
    """Window per channel (or one for all): ct, mr, wm (0 to 2.5 times white matter), auto (wm with --fill), or LOW,HIGH.
    png: values in the files, by default from 0 to the highest that so many bits can hold."""
    hu_offset: float | None = None
    """Added to CTs in which nothing lies below -500, so that their values are HU: -1024 where 1024 was added; 0 takes them
    as they are. Such a CT is refused by default."""
    clean: Literal["auto", "body", "none"] = "auto"
    """Remove what is not body (table, tubes), keeping lungs and gas; auto does so for CT."""
    split_background: bool = False
    """Split label 0 into background (air) and body_unlabelled."""
    label_map: Path | None = None
    """Table of source ids and names (BIDS' dseg.tsv, .csv, .json; colour tables of FreeSurfer, ITK-SNAP, 3D Slicer), or its
    name: freesurfer, totalsegmentator, …; by default the one beside the label maps."""
    unknown_labels: Literal["refuse", "background"] = "refuse"
    """What to do with ids that the table does not list."""
    min_foreground: Share = 0.01
    """Keep slices of which at least this fraction of pixels is labelled, or of images alone in the body."""
    affine: Literal["refuse", "warn"] = "refuse"
    """What to do when a label map has the image's shape and axes but lies elsewhere; warn: the image's place counts."""

    split: Annotated[
        tuple[float, float, float],
        Must("three fractions, not negative, not all 0", lambda v: min(v) >= 0 and sum(v) > 0),
    ] = FRACTIONS
    """Fractions of patients for training, validation and test."""
    split_by: Literal["patient", "slices"] | None = None
    """patient, or slices: held-out blocks of slices within each case, for a single patient (default of mni152)."""
    guard: AtLeast0 = 3
    """With --split_by slices: drop this many slices around held-out blocks."""
    val_patients: tuple[str, ...] = ()
    """Patients to validate on, instead of fractions."""
    test_patients: tuple[str, ...] = ()
    """Patients to test on, instead of fractions."""
    split_file: Path | None = None
    """JSON file {"train": [...], "val": [...], "test": [...]} of patients, instead of fractions."""
    seed: AtLeast0 = 42
    """Seed of the split."""
    workers: AtLeast0 = 0
    """Processes; 0 for one per core. Does not change the result."""
    shard: Shard = "0/1"
    """Do the cases of part i of n, i from 0 to n-1, as for a Slurm array; the last part to end writes the manifest."""

    @property
    def checked(self) -> tuple[Path, ...]:
        """Folders that --check is about; ValueError where it has none."""
        if not (folders := self.check or ((self.out,) if self.out is not None else ())):
            raise ValueError("--check: name a folder that was prepared before, or give --out with it")
        return folders

    @property
    def half(self) -> Half | None:
        """What alone is prepared; None for images with label maps."""
        if self.format == "pairs" and self.only is None:
            if self.images is None:
                return "labels"
            return "images" if self.labels is None and self.tissue == "none" else None
        return self.only

    @property
    def inside(self) -> str:
        """What pixels are that make a slice worth keeping."""
        return "in the body" if self.half == "images" else "labelled"

    @property
    def slice_size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.size[0], self.size[-1])

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """`spacing` along the three axes of a RAS grid; empty where nothing is resampled."""
        return self.spacing * 3 if len(self.spacing) == 1 else self.spacing

    @property
    def by_slices(self) -> bool:
        """Whether blocks of slices are split rather than patients."""
        return (self.split_by or ("slices" if self.format == "mni152" else "patient")) == "slices"

    def check_together(self) -> None:
        """ValueError for options that do not go together, and for names that stand for nothing."""
        if self.format is None or (self.out is None and not self.dry_run):
            raise ValueError("give --format and --out (or --check DIR to check a prepared folder)")
        self._check_read()
        if self.format == "pairs" and (self.images if self.half == "images" else self.labels or self.images) is None:
            needed = "--images" if self.half == "images" else "--images and --labels, or one of them"
            raise ValueError(f"--format pairs needs {needed}")
        self._check_half()
        if self.format in ("nnunet", "synthrad2023", "bids", "png"):
            if self.source is None:
                raise ValueError(f"--format {self.format} needs --source")
            if not self.source.is_dir():
                raise ValueError(f"--source {self.source}: no such folder")
        check_regex(self.case_regex, "--case_regex", "case")
        check_regex(self.patient_regex, "--patient_regex", "patient")
        for text in self.window:
            parse_window(text)

    def _check_read(self) -> None:
        """ValueError for options that the format does not read."""
        assert self.format is not None
        for option in fields(self):
            formats: tuple[str, ...] = READ_WITH.get(option.name, get_args(Format))
            if option.name not in (*READ_WITH, *PNG_READS):
                formats = tuple(name for name in formats if name != "png")
            if self.format not in formats and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"--{option.name}: not read with --format {self.format}, only with {', '.join(formats)}"
                )

    def _check_half(self) -> None:
        """ValueError where one half alone is to be prepared, by options that need the other."""
        whole = self.format in ("mni152", "png")
        if self.only is not None and (whole or (self.only, self.format) == ("labels", "synthrad2023")):
            other = "" if whole else "; --format pairs --labels DIR reads a folder of label maps"
            raise ValueError(f"--only {self.only}: not with --format {self.format}{other}")
        if self.half is None:
            return
        plain = PrepareOptions()
        idle = NEEDS_IMAGES if self.half == "labels" else NEEDS_LABELS
        given = [f"--{name}" for name in idle if getattr(self, name) != getattr(plain, name)]
        given += ["--window wm"] if self.half == "images" and "wm" in self.window else []
        if given:
            needed, there = ("images", "label maps") if self.half == "labels" else ("label maps", "images")
            raise ValueError(f"{', '.join(given)}: needs {needed}, but {there} alone are to be prepared; leave it out")


def parse_window(text: str) -> Window | str:
    """`ct`, `mr`, `wm` and `auto` as they are; `LOW,HIGH` as a Window."""
    if text in ("ct", "mr", "wm", "auto"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
        return Window(low, high)
    except ValueError:
        raise ValueError(f"--window {text}: must be ct, mr, wm, auto or LOW,HIGH with LOW < HIGH") from None

"""Tissues split by intensity, for the GMM generator: ``python scripts/make_seeds.py --bids_path DIR --out_path DIR``.

Resumable: a case's record is written after its seeds, and the folder's index last.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.console import say, tracked
from dataloaders.io.files import file_sha256, read_json, write_json
from dataloaders.io.find import files_in, label_map_of
from dataloaders.io.geometry import off_grid, onto_axes
from dataloaders.io.ledger import Ledger, WorkReport
from dataloaders.io.nifti import SUFFIXES, read_volume, stem, whole_numbers, write_volume
from dataloaders.io.schema import NAME, AtLeast0, Must, Name, check, options_of
from dataloaders.io.workers import as_ready, cores
from dataloaders.labelmaps.generated_files import describe_bids
from dataloaders.labelmaps.seeds import (
    FIT_VOXELS,
    INDEX,
    MAX_SUBCLASSES,
    SeedScheme,
    find_scheme,
    seed_file,
    subcluster,
)
from engine.command import exit_code

Subclasses = Annotated[int, Must(f"1 to {MAX_SUBCLASSES}", lambda count: 1 <= count <= MAX_SUBCLASSES)]


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Split the tissues of a BIDS data set by intensity into seeds for the GMM generator."""

    bids_path: Path
    """BIDS folder: sub-*/[ses-*/]anat/ with images and label maps beside them."""
    out_path: Path
    """Folder to write; the same command goes on with what was interrupted there."""
    max_subclasses: Subclasses = 6
    """Split each meta-label into 1, 2, … up to so many sub-clusters (at most 10)."""
    annotation: str = "feta"
    """feta, dhcp, tissue, gm-wm-csf, freesurfer, or a table of meta-labels (.json, .csv, .tsv)."""
    image_suffix: Name = "T2w"
    """Ending of the images' names."""
    label_suffix: Name = "dseg"
    """Ending of the label maps' names: <image>_dseg, or _dseg in the place of the image's suffix."""
    seed: Annotated[int, Must("0 to 2**32 - 1", lambda seed: 0 <= seed < 2**32)] = 0
    """Seed of the mixtures."""
    num_workers: AtLeast0 = 0
    """Subjects worked on at the same time; 0 for one per core."""
    overwrite: bool = False
    """Make everything again, also where it was made with other settings."""

    def check_together(self) -> None:
        """ValueError where the output would mix with the source."""
        if self.out_path.resolve() == self.bids_path.resolve():
            usual = self.bids_path / "derivatives/seeds"
            raise ValueError(f"--out_path {self.out_path} is the source folder; a usual place is {usual}")


@dataclass(frozen=True)
class SeedSource:
    """Image and label map of one case. key as in SeedCase."""

    key: str
    image: Path
    label: Path


@dataclass
class SeedReport(WorkReport):
    """Also a line for each file without a partner."""

    skipped: list[str] = field(default_factory=list)


def find_sources(bids: Path, image_suffix: str, label_suffix: str) -> tuple[list[SeedSource], list[str]]:
    """Images with a label map beside them, and one line for each file without a partner.

    ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``. ValueError where nothing is found.
    """
    if not bids.is_dir():
        raise ValueError(f"--bids_path {bids}: no such folder")
    sources, skipped = [], []
    for folder in sorted([*bids.glob("sub-*/anat"), *bids.glob("sub-*/ses-*/anat")]):
        files: dict[str, Path] = {}
        for path in files_in(folder, SUFFIXES):  # .nii before .nii.gz, and the latter counts
            files[stem(path)] = path
        used = set()
        for name in (name for name in files if name.endswith(f"_{image_suffix}")):
            label = label_map_of(name, files, label_suffix)
            if label is None:
                expected = f"{name}_{label_suffix} or {name.removesuffix(image_suffix)}{label_suffix}"
                skipped.append(f"{files[name].relative_to(bids)}: no label map {expected}")
                continue
            used.add(label)
            sources.append(SeedSource((folder.relative_to(bids) / name).as_posix(), files[name], files[label]))
        for name in (name for name in files if name.endswith(f"_{label_suffix}") and name not in used):
            skipped.append(f"{files[name].relative_to(bids)}: no image *_{image_suffix} for this label map")
    if not sources:
        lines = "".join(f"\n  {line}" for line in skipped)
        raise ValueError(f"--bids_path {bids}: no sub-*/[ses-*/]anat/*_{image_suffix} with a label map{lines}")
    return sources, skipped


@dataclass(frozen=True)
class SeedLedger(Ledger):
    """Records beside the folders of the seeds, with the SHA-256 of the sources and of every file."""

    records: str = ""
    ending: str = "_seeds.json"
    sources: str = "sha256"

    def intact(self, key: str, record: dict[str, Any]) -> bool:
        """Whether every file is what the record says."""
        try:
            files = {
                seed_file(self.folder, key, n, meta["id"]): split["sha256"]
                for meta in record["metas"]
                for n, split in enumerate(meta["splits"], 1)
            }
        except (KeyError, TypeError):  # a damaged record is made again, with its files
            return False
        return all(file.is_file() and file_sha256(file) == sha256 for file, sha256 in files.items())

    def forget(self, key: str) -> None:
        """Also seeds of a run that was killed before it wrote the record."""
        self.path(key).unlink(missing_ok=True)
        for path in self.folder.glob(f"subclasses_*/{key}_mlabel_*.nii.gz"):
            path.unlink()


def make_seeds(o: SeedOptions) -> SeedReport:
    """Seeds of every subject under o.out_path, in parallel; one record per subject, and the index last.

    A subject that fails becomes a line of the report, the others go on. Raises ValueError for bad options and for a
    folder that holds seeds of other settings (unless o.overwrite).
    """
    check(o)
    scheme = find_scheme(o.annotation)
    sources, skipped = find_sources(o.bids_path, o.image_suffix, o.label_suffix)
    settings = {
        "annotation": asdict(scheme),
        "max_subclasses": o.max_subclasses,
        "image_suffix": o.image_suffix,
        "label_suffix": o.label_suffix,
        "seed": o.seed,
        "fit_voxels": FIT_VOXELS,
    }
    report = SeedReport(skipped=skipped)
    with SeedLedger.claim(
        o.out_path,
        settings,
        file=INDEX,
        about={"cases": []},
        flag="--out_path",
        overwrite=o.overwrite,
        renew=True,
        alone=True,
    ) as ledger:
        if o.overwrite:
            _write_index(ledger, [])
        count = min(o.num_workers or cores(), len(sources))
        jobs = ((source,) for source in sources)
        common = (o, scheme, replace(ledger, lock=None))
        done = as_ready(work, jobs, count if count > 1 else 0, arguments=common)
        failed = set()
        for key, made, fault in tracked(done, "seeds", len(sources)):
            report.made, report.kept = report.made + made, report.kept + (not made and not fault)
            if fault:
                failed.add(key)
                report.faults.append(f"{key}: {fault}")
                say(f"failed: {report.faults[-1]}")
        _write_index(ledger, [source.key for source in sources if source.key not in failed])
        describe_bids(o.out_path, "Seeds: meta-labels split by intensity", ("subclasses_*/", "sub-*/", INDEX))
    return report


def _write_index(ledger: SeedLedger, cases: list[str]) -> None:
    path, index = ledger.folder / INDEX, {"settings": ledger.settings, "cases": cases}
    if not path.is_file() or read_json(path) != index:
        write_json(path, index)


def work(o: SeedOptions, scheme: SeedScheme, ledger: SeedLedger, source: SeedSource) -> tuple[str, bool, str]:
    """One case from files to files: its key, whether it was made now, why it could not be. The others go on."""
    key = source.key
    try:
        for part in key.split("/"):
            NAME.of(part, "file or folder name")
        hashes = {"image": file_sha256(source.image), "label": file_sha256(source.label)}
        record = None if o.overwrite else ledger.done(key, hashes)
        if record is not None and ledger.intact(key, record):
            return key, False, ""
        ledger.forget(key)
        metas, notes = write_parts(o, scheme, source)
        files = {kind: getattr(source, kind).relative_to(o.bids_path).as_posix() for kind in hashes}
        ledger.record(key, hashes, sources=files, notes=notes, metas=metas)
    except (ValueError, OSError, MemoryError) as error:
        return key, False, str(error) or type(error).__name__
    return key, True, ""


def write_parts(o: SeedOptions, scheme: SeedScheme, source: SeedSource) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the seeds of one case: every meta-label in 1, 2, … clusters. Returns what the record says of them, and notes."""
    image, label = read_volume(source.image), read_volume(source.label)
    ids, affine = onto_axes(whole_numbers(source.label, label.data), label.affine, image.affine)
    if fault := off_grid(ids.shape, affine, image.data.shape, image.affine, "the image"):
        raise ValueError(f"{source.label.name}: {fault}")
    if image.missing is not None and (missing := int((image.missing & (ids > 0)).sum())):
        raise ValueError(f"{source.image.name}: {missing} labelled voxels are NaN or infinite")
    meta_map = scheme.apply(ids, image.data)
    metas, notes = [], []
    for i, (name, _) in enumerate(scheme.metas, 1):
        mask = (meta_map == i).T  # NIfTI stores the first axis fastest; masks are fast the other way round
        splits = []
        for n in range(1, o.max_subclasses + 1):
            part = subcluster(image.data.T, mask, i, n, o.seed)
            path = seed_file(o.out_path, source.key, n, i)
            write_volume(path, part.codes.T, image.affine, codes=image.codes)
            splits.append({"means": part.means, "sizes": part.sizes, "sha256": file_sha256(path)})
            notes += [f"{name} in {n}: {note}" for note in part.notes]
        metas.append({"id": i, "name": name, "voxels": int(mask.sum()), "splits": splits})
    return metas, notes


def main() -> int:
    """Exit codes: 0 fine, 1 some subjects failed, 2 bad options."""
    options = options_of(SeedOptions)
    report = make_seeds(options)
    for line in report.skipped:
        print(f"skipped: {line}")
    counts = f"{report.made} made, {report.kept} kept, {len(report.skipped)} skipped, {len(report.faults)} failed"
    print(f"{options.out_path}: {counts}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

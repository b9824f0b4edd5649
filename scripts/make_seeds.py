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

from dataloaders.io.bids import describe_bids
from dataloaders.io.console import say, tracked
from dataloaders.io.files import file_sha256, naming, write_json
from dataloaders.io.find import files_in, label_pairs
from dataloaders.io.geometry import onto_grid
from dataloaders.io.ledger import Ledger, WorkReport
from dataloaders.io.nifti import SUFFIXES, read_ids, read_volume, stem, write_volume
from dataloaders.io.schema import NAME, AtLeast0, Must, Name, check, options_of
from dataloaders.io.workers import cores, shared
from dataloaders.labelmaps.seeds import (
    FIT_VOXELS,
    INDEX,
    MAX_SUBCLASSES,
    SeedCase,
    SeedScheme,
    find_scheme,
    subcluster,
)
from dataloaders.prepare.sources import CaseSource
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


@dataclass
class SeedReport(WorkReport):
    """Also a line for each file without a partner."""

    skipped: list[str] = field(default_factory=list)


def find_sources(bids: Path, image_suffix: str, label_suffix: str) -> tuple[list[CaseSource], list[str]]:
    """Images with a label map beside them, named by their place in the tree, and one line for each file without a partner.

    ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``. ValueError where nothing is found.
    """
    if not bids.is_dir():
        raise ValueError(f"--bids_path {bids}: no such folder")
    sources, skipped = [], []
    for folder in sorted([*bids.glob("sub-*/anat"), *bids.glob("sub-*/ses-*/anat")]):
        files = {stem(path): path for path in files_in(folder, SUFFIXES)}  # .nii before .nii.gz, and the latter counts
        images, maps = ([files[n] for n in files if n.endswith(f"_{end}")] for end in (image_suffix, label_suffix))
        pairs, alone = label_pairs(images, maps, label_suffix)
        keys = [(folder.relative_to(bids) / stem(image)).as_posix() for image, _ in pairs]
        sources += [
            CaseSource(key, key, (image,), {"label": label}) for key, (image, label) in zip(keys, pairs, strict=True)
        ]
        skipped += alone
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
                SeedCase(self.folder, key).file(n, meta["id"]): split["sha256"]
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
        done = shared(work, jobs, count if count > 1 else 0, arguments=common)
        failed = set()
        for key, made, fault in tracked(done, "seeds", len(sources)):
            report.made, report.kept = report.made + made, report.kept + (not made and not fault)
            if fault:
                failed.add(key)
                report.faults.append(f"{key}: {fault}")
                say(f"failed: {report.faults[-1]}")
        _write_index(ledger, [source.id for source in sources if source.id not in failed])
        describe_bids(o.out_path, "Seeds: meta-labels split by intensity", ("subclasses_*/", "sub-*/", INDEX))
    return report


def _write_index(ledger: SeedLedger, cases: list[str]) -> None:
    write_json(ledger.folder / INDEX, {"settings": ledger.settings, "cases": cases})


def work(o: SeedOptions, scheme: SeedScheme, ledger: SeedLedger, source: CaseSource) -> tuple[str, bool, str]:
    """One case from files to files: its key, whether it was made now, why it could not be. The others go on."""
    key, files = source.id, source.files(("image",))
    try:
        for part in key.split("/"):
            NAME.of(part, "file or folder name")
        hashes = {role: file_sha256(path) for role, path in files.items()}
        record = None if o.overwrite else ledger.done(key, hashes)
        if record is not None and ledger.intact(key, record):
            return key, False, ""
        ledger.forget(key)
        metas, notes = write_parts(o, scheme, SeedCase(o.out_path, key), **files)
        places = {role: path.relative_to(o.bids_path).as_posix() for role, path in files.items()}
        ledger.record(key, hashes, sources=places, notes=notes, metas=metas)
    except (ValueError, OSError, MemoryError) as error:
        return key, False, str(error) or type(error).__name__
    return key, True, ""


def write_parts(
    o: SeedOptions, scheme: SeedScheme, case: SeedCase, image: Path, label: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the seeds of one case: every meta-label in 1, 2, … clusters. Returns what the record says of them, and notes."""
    scan, label_map = read_volume(image), read_ids(label)
    with naming(label):
        ids = onto_grid(label_map.data, label_map.affine, scan.data.shape, scan.affine, "the image")
    if scan.missing is not None and (missing := int((scan.missing & (ids > 0)).sum())):
        raise ValueError(f"{image.name}: {missing} labelled voxels are NaN or infinite")
    meta_map = scheme.apply(ids, scan.data)
    metas, notes = [], []
    for i, (name, _) in enumerate(scheme.metas, 1):
        mask = (meta_map == i).T  # NIfTI stores the first axis fastest; masks are fast the other way round
        splits = []
        for n in range(1, o.max_subclasses + 1):
            part = subcluster(scan.data.T, mask, i, n, o.seed)
            path = case.file(n, i)
            write_volume(path, part.codes.T, scan.affine, codes=scan.codes)
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

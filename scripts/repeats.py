"""Lay second scans of the same heads onto the first ones: what they reach is the floor of every paired metric.

python scripts/repeats.py --dataroot data --scans bids [--table second_scans.csv]     # then test.py uses data/repeats
python scripts/repeats.py --real DIR --out DIR [--patient_regex '(sub-\\d+)']          # for evaluate.py --repeats DIR
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.files import whole_folder
from dataloaders.io.manifest import Manifest
from dataloaders.io.schema import options_of
from engine.command import exit_code
from evaluation.floors import REPEATS
from evaluation.folders import Folders
from evaluation.repeats import pairs_of, write_results, write_volumes
from evaluation.volume_pairs import VolumePairs


@dataclass(frozen=True, kw_only=True)
class RepeatsOptions:
    """Second scans of the same heads on the first ones' grids, from a prepared folder or a folder of NIfTI volumes.

    Without --table: the first two cases of each person, as BIDS' sessions are.
    """

    dataroot: Path | None = None
    """Prepared folder; together with --scans."""
    scans: Path | None = None
    """Folder of the scans that it was prepared from, also of those in --table that were not."""
    real: Path | None = None
    """Folder of real NIfTI volumes."""
    patient_regex: str | None = None
    """Regular expression whose first group is the patient within a file name, for --real."""
    table: Path | None = None
    """CSV or TSV file with the columns first and second: cases that are two scans of one head."""
    out: Path | None = None
    """Folder to write; default: DATAROOT/repeats."""


def repeats(o: RepeatsOptions) -> tuple[list[tuple[str, str]], Path]:
    """Write the folder; returns (first, second) cases and where. ValueError for options that do not go together."""
    out = o.out or (o.dataroot / REPEATS if o.dataroot is not None else None)
    prepared = o.dataroot is not None and o.scans is not None
    if out is None or prepared == (o.real is not None) or (prepared and o.patient_regex is not None):
        raise ValueError("give --dataroot DIR and --scans DIR, or --real DIR and --out DIR")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out}: there are files already; choose another folder, or remove it")
    with whole_folder(out) as staging:
        if o.real is not None:
            return _of_volumes(o.real, o, staging), out
        assert o.dataroot is not None
        assert o.scans is not None
        pairs = pairs_of({case.id: case.patient for case in Manifest.load(o.dataroot).cases}, o.table)
        write_results(o.dataroot, o.scans, pairs, staging)
    return pairs, out


def _of_volumes(real: Path, o: RepeatsOptions, out: Path) -> list[tuple[str, str]]:
    volumes = Folders(real, real, patient_regex=o.patient_regex, window=(0, 1)).pairs()
    if not isinstance(volumes, VolumePairs):
        raise ValueError(f"--real {real}: PNG slices do not say where a second scan would lie; NIfTI volumes do")
    cases = {files.id: files for files in volumes.cases}
    pairs = pairs_of({name: files.patient for name, files in cases.items()}, o.table)
    write_volumes(cases, pairs, out)
    return pairs


def run() -> int:
    """The command."""
    pairs, out = repeats(options_of(RepeatsOptions, description=__doc__))
    print(f"{out}: " + ", ".join(f"{first} = {second}" for first, second in pairs))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))

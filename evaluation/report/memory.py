"""What scripts/privacy.py found of each method's weights, where its record lies beside the run or the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.files import naming, read_csv, read_json
from dataloaders.io.pictures import webp
from dataloaders.io.schema import decode
from evaluation import privacy
from evaluation.compare import Entrant
from evaluation.records import Memory, MemoryRow
from evaluation.report.kit import Cell, Table, color_of

NOT_TESTED = "not tested (scripts/privacy.py)"


@dataclass(frozen=True)
class Remembered:
    """Of one method. record: of privacy.json, None where there is none of these weights.

    ratios: kind of distance -> nearest training over nearest held-out scan of each slice of a held-out person.
    pairs: closest.png as WebP, None where it is not there.
    """

    method: int
    name: str
    record: Memory | None
    ratios: dict[str, NDArray[np.float64]]
    pairs: bytes | None

    @property
    def color(self) -> str:
        """The method's."""
        return color_of(self.method)

    @property
    def short(self) -> str:
        """The verdict up to its first colon."""
        said = self.record["verdict"].partition(":")[0].lower() if self.record else NOT_TESTED
        return f"{self.name}: {said}"

    def ratio(self, kind: str) -> MemoryRow | None:
        """The record's row of the nearest scans by this kind of distance, for label maps of people not trained on."""
        rows = self.record["measures"] if self.record else []
        return next((row for row in rows if row["measure"] == privacy.ratio_name(kind, "held-out")), None)

    @property
    def table(self) -> Table | None:
        """All numbers of the record."""
        if self.record is None:
            return None
        lines = map(privacy.cells, self.record["measures"])
        return Table(privacy.HEAD, [[measure, *map(Cell, rest)] for measure, *rest in lines], kind="numbers")


def remembered(entrants: Sequence[Entrant], runs: Path) -> list[Remembered]:
    """One for each method; empty where none was tested. runs: folder of run folders."""
    found = [_of(i, entrant, runs) for i, entrant in enumerate(entrants)]
    return found if any(one.record for one in found) else []


def _of(i: int, entrant: Entrant, runs: Path) -> Remembered:
    sha256 = entrant.part("made_from").get("weights_sha256")
    for folder in (entrant.folder, entrant.folder.parent, runs / str(entrant.provenance.get("name"))):
        path = folder / privacy.FOLDER / privacy.FILE
        if path.is_file():
            with naming(path, "damaged"):
                record = decode(Memory, read_json(path), privacy.FILE)
            if sha256 and record["weights_sha256"] == sha256:
                return Remembered(i, entrant.name, record, _ratios(path.with_name("nearest.csv")), _pairs(path.parent))
    return Remembered(i, entrant.name, None, {}, None)


def _ratios(path: Path) -> dict[str, NDArray[np.float64]]:
    """Of the slices with label maps of people who were not trained on."""
    rows = [row for row in read_csv(path) if row.get("training") == "False"]
    with naming(path, "damaged"):
        kinds = privacy.KINDS if rows else ()
        return {kind: np.array([float(row.get(f"{kind}_ratio") or "nan") for row in rows]) for kind in kinds}


def _pairs(folder: Path) -> bytes | None:
    path = folder / "closest.png"
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return webp(np.asarray(image.convert("RGB")), exact=False)

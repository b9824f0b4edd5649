"""Several results folders side by side: load, refuse what is not comparable, decide who is better on what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.manifest import FILE_NAME, Case, Manifest, Slice
from engine.files import read_json
from evaluation.results import SCHEMA, evaluate_results
from spec import DataSpec

SCHEMA_COMPARE = "medsis-compare/1"


@dataclass(frozen=True)
class Entrant:
    """One method's results: display name, folder, manifest and metrics."""

    name: str
    folder: Path
    manifest: Manifest
    metrics: dict[str, Any]

    @property
    def spec(self) -> DataSpec:
        return self.manifest.spec

    def slices(self) -> list[tuple[Case, Slice]]:
        """(case, slice) in manifest order."""
        return [(case, item) for case in self.manifest.cases for item in case.slices]


def find_results(path: Path) -> Path:
    """`path` itself if it is a results folder, else its newest subfolder that is one."""
    if (path / FILE_NAME).is_file():
        return path
    inside = [p.parent for p in path.glob(f"*/{FILE_NAME}")] if path.is_dir() else []
    if not inside:
        raise ValueError(f"{path}: no results here; test.py writes results/<name>/<which>/{FILE_NAME}")
    return max(inside, key=lambda p: (p / FILE_NAME).stat().st_mtime)


def load_entrants(paths: list[Path], weights: Path | None = None) -> list[Entrant]:
    """Results folders in the given order; metrics are computed where they are missing. ValueError unless comparable."""
    entrants: list[Entrant] = []
    for path in paths:
        folder = find_results(path)
        manifest = Manifest.load(folder)
        file = folder / "metrics.json"
        metrics = read_json(file) if file.is_file() else evaluate_results(folder, "auto", weights, progress=True)
        if metrics.get("schema") != SCHEMA:
            raise ValueError(f"{file}: schema {metrics.get('schema')!r}, this version reads {SCHEMA!r}")
        name = str(manifest.provenance.get("name") or folder.name)
        if name in (entrant.name for entrant in entrants):
            name = f"{name} ({folder.name})"
        entrants.append(Entrant(name, folder, manifest, metrics))
    for other in entrants[1:]:
        _refuse_different(entrants[0], other)
    return entrants


def _refuse_different(a: Entrant, b: Entrant) -> None:
    """Numbers are comparable only on the same slices with the same labels and channels."""
    if [c.name for c in a.spec.channels] != [c.name for c in b.spec.channels]:
        raise ValueError(f"{a.folder} and {b.folder} have different channels")
    keys_a, keys_b = ({(case.id, item.index): item.histogram for case, item in entrant.slices()} for entrant in (a, b))
    for one, other, where in ((keys_a, keys_b, b), (keys_b, keys_a, a)):
        missing = sorted(one.keys() - other.keys())
        if missing:
            listed = ", ".join(f"{case} z{index}" for case, index in missing[:5])
            raise ValueError(f"{where.folder} lacks {len(missing)} slices that the other has ({listed}, …)")
    changed = [key for key in keys_a if keys_a[key] != keys_b[key]]
    if changed:
        raise ValueError(f"{a.folder} and {b.folder}: {len(changed)} slices have other label maps, e.g. {changed[0]}")


def metric_rows(entrants: list[Entrant]) -> list[dict[str, Any]]:
    """One row per metric: its entry for each method, and the index of the best value (None for ties and gaps)."""
    keys = list(dict.fromkeys(key for entrant in entrants for key in entrant.metrics["metrics"]))
    rows = []
    for key in keys:
        entries = [entrant.metrics["metrics"].get(key) for entrant in entrants]
        known = [(e["value"], i) for i, e in enumerate(entries) if e is not None and e["value"] is not None]
        present = next(e for e in entries if e is not None)
        best = None
        if len(known) > 1:
            ordered = sorted(known, reverse=present["better"] == "higher")
            best = ordered[0][1] if ordered[0][0] != ordered[1][0] else None
        rows.append(
            {"key": key, "entries": entries, "best": best, "better": present["better"], "unit": present["unit"]}
        )
    return rows


def separated(row: dict[str, Any]) -> bool:
    """Whether the best method's interval is apart from all others'."""
    if row["best"] is None or any(e is None or not e.get("ci95") for e in row["entries"]):
        return False
    best = row["entries"][row["best"]]["ci95"]
    others = [e["ci95"] for i, e in enumerate(row["entries"]) if i != row["best"]]
    return all(best[1] < ci[0] or ci[1] < best[0] for ci in others)


NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mae_body": "MAE, body",
    "rmse_body": "RMSE, body",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "label_mean_error": "label mean error",
    "label_std_error": "label s.d. error",
    "wasserstein": "Wasserstein by label",
    "fid": "FID",
    "lpips_alex_v0.1": "LPIPS (AlexNet v0.1)",
}


def metric_name(key: str) -> str:
    """Name for people of a metric key such as ``mae_body/CT``."""
    name, _, channel = key.partition("/")
    if key == "wasserstein":
        return "Wasserstein by label (all channels)"
    return NAMES.get(name, name) + (f" ({channel})" if channel else "")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def verdict(entrants: list[Entrant], rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on who is better on what, and on how much that means."""
    n = entrants[0].metrics["n"]
    split = str(entrants[0].manifest.provenance.get("split") or "given")
    sentences = [f"{_count(n['slices'], f'{split} slice')} of {_count(n['patients'], 'patient')}."]
    for i, entrant in enumerate(entrants):
        won = [metric_name(row["key"]) for row in rows if row["best"] == i]
        if won:
            sentences.append(f"{entrant.name} is best on {', '.join(won)}.")
    if n["patients"] < 5:
        sentences.append(
            f"With {_count(n['patients'], 'patient')} no interval over patients can be given: "
            "the numbers describe these slices and prove nothing about other patients."
        )
    else:
        clear = [metric_name(row["key"]) for row in rows if separated(row)]
        sentences.append(
            f"The 95 % intervals are apart for {', '.join(clear)}."
            if clear
            else "No metric has 95 % intervals that are apart: the differences may be chance."
        )
    return sentences


def limits(entrants: list[Entrant], rows: list[dict[str, Any]]) -> list[str]:
    """What the report does not show, from n, the kind of split and the missing metrics."""
    n = entrants[0].metrics["n"]
    lines = []
    data = entrants[0].manifest.provenance.get("data_provenance") or {}
    if "slices" in str(data.get("split", "")):
        lines.append(
            "Training and test slices come from the same scan (held-out blocks with guard slices between). "
            "That tests interpolation within one anatomy, not generalisation to new patients."
        )
    if n["patients"] < 5:
        lines.append(f"{_count(n['patients'], 'patient')}: too few for intervals or for any claim about a population.")
    missing = sorted(
        {row["key"].split("/")[0] for row in rows if any(e and e["value"] is None for e in row["entries"])}
    )
    if missing:
        lines.append(f"Not computed here: {', '.join(missing)} (reasons in the table).")
    lines.append(
        "Pixelwise metrics (MAE, RMSE, PSNR, SSIM) ask for the one real image; several images may fit a label map. "
        "They say nothing about whether the images are useful to train a segmenter."
    )
    if n["slices"] < 2048:
        lines.append("Distribution metrics on so few slices are dominated by sample size.")
    return lines


def to_json(entrants: list[Entrant], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """compare.json: methods, numbers, verdict."""
    return {
        "schema": SCHEMA_COMPARE,
        "methods": [
            {"name": e.name, "provenance": _public(e.manifest.provenance), "n": e.metrics["n"]} for e in entrants
        ],
        "metrics": {
            row["key"]: {
                "better": row["better"],
                "unit": row["unit"],
                "best": None if row["best"] is None else entrants[row["best"]].name,
                "values": {e.name: entry for e, entry in zip(entrants, row["entries"], strict=True)},
            }
            for row in rows
        },
        "verdict": verdict(entrants, rows),
        "limits": limits(entrants, rows),
    }


def _public(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "made_from"}

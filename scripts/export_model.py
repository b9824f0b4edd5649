"""A trained run to give away: ``python scripts/export_model.py --name exp --out released --license CC-BY-4.0``.

Weights without anybody's paths, and a model card that says what they are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import config as options
from config import Config, RunOptions
from dataloaders.io.files import file_sha256, markdown_table, read_json, write_text
from dataloaders.io.locks import lock_place
from dataloaders.io.runlog import JSONL, read_log
from dataloaders.io.schema import NAME, check, options_of
from dataloaders.io.spec import DataSpec
from engine.checkpoint import Weights, save_weights, weights_path
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.trained import TrainedRun, origin_line
from evaluation.privacy import FILE, FOLDER, as_lines
from evaluation.report.kit import render

CARD = "README.md"
SHA256 = "SHA-256 of the file"  # of its table


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Write the weights of a run and a model card to a folder that test.py reads as a run."""

    out: Path
    """Folder of released models; this one goes to <out>/<as_name>."""
    as_name: str = ""
    """Name of the released model; that of the run unless given."""
    license: str = "not stated"
    """Licence of the weights, which follows from that of the data."""
    data: str = "not stated"
    """What the model was trained on, in a sentence: source, number of patients, who may use it."""
    contact: str = "not stated"
    """Whom to ask."""
    overwrite: bool = False
    """Replace an earlier export."""


def export(o: ExportOptions) -> Path:
    """Write `<out>/<name>/weights-best.safetensors` and a model card beside it; returns the folder.

    The file holds tensors, options and facts of the data, and nothing that could be executed. ValueError where the run
    or the weights are missing, or the folder holds something else.
    """
    check(o)
    run = TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter)
    trained = shareable(run.config, NAME.of(o.as_name or o.name, "--as_name"))
    folder = o.out / trained.name
    if folder.is_dir() and any(folder.iterdir()) and not (o.overwrite and _is_export(folder)):
        raise ValueError(f"{folder} is not empty; choose another --out or --as_name, or --overwrite an earlier export")
    released = replace(run.weights, config=options.to_dict(trained))
    path = weights_path(folder, "best")
    with lock_place(folder):
        save_weights(path, released)
        write_text(folder / CARD, model_card(o, run, released, trained, path))
    return folder


def _is_export(folder: Path) -> bool:
    """Whether an export wrote the folder; others have a README.md too, and runs weights of that name."""
    card = folder / CARD
    ours = card.is_file() and SHA256 in card.read_text(encoding="utf-8", errors="replace")
    return ours and weights_path(folder, "best").is_file()


def shareable(config: Config, name: str) -> Config:
    """The options without paths, which may name people and projects, for a run called `name`."""
    return options.from_dict({"dataroot": "data", **options.without_paths(replace(config, name=name))})


def model_card(o: ExportOptions, run: TrainedRun, weights: Weights, trained: Config, path: Path) -> str:
    """What a stranger must know before using the weights, in Markdown."""
    spec, workflow = DataSpec.from_dict(weights.spec), workflow_of(trained)
    start = replace(
        options.starting_values(trained.model, trained.preset, trained.gmm.preset), name="", dataroot=Path()
    )
    found = ((i.id, i.name, " ".join(map(str, i.source)) or "made") for i in spec.labels)
    return render(
        "model_card.txt",
        o=o,
        trained=trained,
        weights=weights,
        purpose=workflow.purpose(spec),
        parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        origin=origin_line(weights.origin) if weights.origin else "",
        sha256=file_sha256(path),
        usage=workflow.usage.format(name=trained.name),
        labels=markdown_table(("id", "name", "ids in the source"), found),
        scores=_scores(run.folder, weights.images),
        memory=_memory(run.folder, run.sha256),
        changed=options.differences(options.to_dict(start), options.to_dict(trained)),
        limits=workflow.limits,
    )


def _scores(run: Path, images: int) -> str | None:
    """The evaluation of exactly these weights, where the run's log has one."""
    records = read_log(run / JSONL) if (run / JSONL).is_file() else []
    found = [r for r in records if r["kind"] == "eval" and r["images"] == images]
    if not found:
        return None
    scores = {name: f"{value:.4g}" for name, value in found[-1]["metrics"].items() if value is not None}
    return markdown_table(("metric", "value"), scores.items())


def _memory(run: Path, sha256: str) -> str | None:
    """What scripts/privacy.py found of exactly these weights, if it did."""
    path = run / FOLDER / FILE
    found = read_json(path) if path.is_file() else {}
    return "\n".join(as_lines(found)) if found.get("weights_sha256") == sha256 else None


def main() -> int:
    """Exit codes: 0 fine, 2 bad options."""
    folder = export(options_of(ExportOptions))
    print(f"released: {folder}; read {folder / 'README.md'} and complete it before you pass it on")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

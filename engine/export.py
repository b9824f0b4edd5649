"""A trained run as something to give away: weights without anybody's paths, and a model card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import config as options
from config import Config
from dataloaders.io.files import check_name, write_text
from dataloaders.io.locks import lock_place
from dataloaders.io.runlog import JSONL, read_log
from dataloaders.io.spec import DataSpec
from engine.checkpoint import Weights, load_weights, save_weights, weights_path
from engine.run import weights_folder

CARD = "README.md"
_SHA256 = "SHA-256 of the file"
LIMITS_OF_IMAGES = (
    "Images are synthetic and not for diagnosis. They follow the scanners, protocols and patients of the training",
    "data, and may repeat features of single training images: whoever releases them must judge whether that is",
    "allowed. What a label does not say (texture within an organ, small findings) is invented.",
)
LIMITS_OF_LABELS = (
    "Not for diagnosis. Scanners, protocols, ages and diseases that the training data do not show were not tested; the",
    "scores above are of the training data's own validation split.",
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the weights of a run and a model card to a folder that test.py reads as a run."""

    name: str
    """Name of the run."""
    out: Path
    """Folder of released models; this one goes to <out>/<as_name>."""
    as_name: str = ""
    """Name of the released model; that of the run unless given."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    ckpt_iter: str = "best"
    """Weights to release: best, latest, or a number of images seen."""
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
    run = weights_folder(o.checkpoints_dir, o.name)
    weights = load_weights(run, o.ckpt_iter)
    trained = shareable(options.from_dict(weights.config), check_name(o.as_name or o.name, "--as_name"))
    folder = o.out / trained.name
    if folder.is_dir() and any(folder.iterdir()) and not (o.overwrite and _is_export(folder)):
        raise ValueError(f"{folder} is not empty; choose another --out or --as_name, or --overwrite an earlier export")
    released = replace(weights, config=options.to_dict(trained))
    path = weights_path(folder, "best")
    with lock_place(folder):
        save_weights(path, released)
        write_text(folder / CARD, model_card(o, run, released, trained, path))
    return folder


def _is_export(folder: Path) -> bool:
    """Whether an export wrote the folder; others have a README.md too, and runs weights of that name."""
    card = folder / CARD
    ours = card.is_file() and _SHA256 in card.read_text(encoding="utf-8", errors="replace")
    return ours and weights_path(folder, "best").is_file()


def shareable(config: Config, name: str) -> Config:
    """The options without paths, which may name people and projects. Files in place of words are in the weights, or done."""
    given = config.gmm.priors not in ("fit", "random")
    priors = "random" if config.model == "segmenter" else "fit"
    kept = options.without_paths(
        replace(
            config,
            name=name,
            gmm=replace(config.gmm, priors=priors) if given else config.gmm,
            segmenter=replace(config.segmenter, scheme="auto"),
        )
    )
    return options.from_dict({"dataroot": "data", **kept})


def model_card(o: ExportOptions, run: Path, weights: Weights, trained: Config, path: Path) -> str:
    """What a stranger must know before using the weights, in Markdown."""
    spec = DataSpec.from_dict(weights.spec)
    parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    facts = {
        "Method": f"`{trained.model}`, preset `{trained.preset}` (medsis)",
        **_purpose(trained, spec),
        "Numbers in the file": f"{parameters:,}",
        "Images seen in training": f"{weights.images:,}",
        "Training data": o.data,
        "Licence of the weights": o.license,
        "Contact": o.contact,
        _SHA256: f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`",
    }
    segments = trained.model == "segmenter"
    changed = options.differences(_preset(trained), options.to_dict(trained))
    return "\n".join(
        [
            f"# {trained.name}",
            "",
            *_table(("", ""), facts.items()),
            "",
            "## Use",
            "",
            "```bash",
            f"python test.py --name {trained.name} --checkpoints_dir <the folder that holds this one> --dataroot <data>",
            *(
                [f"python test.py --name {trained.name} --checkpoints_dir <…> --labels <maps> --out <volumes>"]
                if trained.paints_labels
                else []
            ),
            *(["python scripts/segment.py --checkpoint <this folder> --i <scans> --o <labels>"] if segments else []),
            "```",
            "",
            "`<data>` is a folder of `scripts/prepare_data.py` with exactly these labels, channels and slice size. The file",
            "is safetensors: it holds tensors and, in its header, options and facts of the data; loading runs no code.",
            "",
            "## Labels",
            "",
            *_table(
                ("id", "name", "ids in the source"),
                ((i.id, i.name, " ".join(map(str, i.source)) or "made") for i in spec.labels),
            ),
            "",
            "## Validation",
            "",
            *_scores(run, weights.images),
            "",
            "## Options that differ from the preset",
            "",
            *([f"- `{line}`" for line in changed] or ["None."]),
            "",
            "## Limits",
            "",
            *(LIMITS_OF_LABELS if segments else LIMITS_OF_IMAGES),
            "",
        ]
    )


def _purpose(trained: Config, spec: DataSpec) -> dict[str, str]:
    """What goes in, what comes out, and on which grid."""
    images = " and ".join(f"{channel.name} ({channel.unit})" for channel in spec.channels)
    if trained.model == "segmenter":
        o = trained.segmenter
        patch = " x ".join(map(str, o.spatial_patch))
        return {"Makes": f"label maps from {images}", "Patches": f"{o.dims}-D, {patch} voxels"}
    source = "scans without lesions and lesion masks" if trained.model == "lesion" else "label maps"
    size = f"{spec.size[0]} x {spec.size[1]} pixels of {spec.spacing[0]:g} x {spec.spacing[1]:g} mm"
    return {
        "Makes": f"{images} from {source}",
        "Slices": f"{spec.axis or 'any direction'}, {size}, {spec.slice_spacing:g} mm apart",
    }


def _preset(trained: Config) -> dict[str, Any]:
    words = ["--preset", trained.preset, "--model", trained.model]
    words += ["--gmm.preset", trained.gmm.preset] if trained.model == "gmm" else []
    return options.to_dict(options.parse_train([*words, "--name", "x", "--dataroot", "x"]))


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]


def _scores(run: Path, images: int) -> list[str]:
    """The evaluation of exactly these weights, where the run's log has one."""
    records = read_log(run / JSONL) if (run / JSONL).is_file() else []
    found = [r for r in records if r["kind"] == "eval" and r["images"] == images]
    if not found:
        return ["Not evaluated on a validation split."]
    scores = {name: f"{value:.4g}" for name, value in found[-1]["metrics"].items() if value is not None}
    said = "On the validation split of the training data; docs/metrics.md says what each means."
    return [said, "", *_table(("metric", "value"), scores.items())]

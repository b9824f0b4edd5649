"""State files for resuming and weight files for using a method.

A run folder holds ``state-<images>.pt`` (everything a resumed run needs; the newest few, and older ones the more sparsely
the older they are), ``state-best-<images>.pt`` (the same at the best evaluation) and
``weights-{best,latest,<images>}.safetensors`` (what `synthesize` needs, with config and spec inside).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config import METHODS
from dataloaders.io.files import atomic_path
from dataloaders.io.weights import load_state as read_pickle

STATE_SCHEMA = "medsis-state/1"
WEIGHTS_SCHEMA = "medsis-weights/2"
KEEP_STATES = 3


class CheckpointError(ValueError):
    """A state or weight file that is missing, damaged or of another schema."""


def images_of(state: Path) -> int:
    """Images seen by a state, by the name of its file."""
    return int(state.stem.rpartition("-")[2])


def state_path(folder: Path, images: int) -> Path:
    """Path of the state after `images` images."""
    return folder / f"state-{images:010d}.pt"


def list_states(folder: Path) -> list[Path]:
    """State files, oldest first."""
    return sorted(path for path in folder.glob("state-*.pt") if re.fullmatch(r"state-\d{10}\.pt", path.name))


def best_state(folder: Path) -> Path | None:
    """The state of the best evaluation; None where none was kept."""
    found = sorted(path for path in folder.glob("state-best-*.pt") if re.fullmatch(r"state-best-\d{10}\.pt", path.name))
    return found[-1] if found else None


def keep_as_best(state: Path) -> None:
    """Keep that state file as the one of the best evaluation, in the place of the one before."""
    before, kept = best_state(state.parent), state.with_name(state.name.replace("state-", "state-best-"))
    with atomic_path(kept) as temporary:
        shutil.copyfile(state, temporary)
    if before is not None and before != kept:
        before.unlink()


def outdated(images: list[int], keep: int = KEEP_STATES) -> list[int]:
    """Of states after so many images (ascending) those to drop: all but the newest `keep` and one for each power of two.

    An older state is counted back from the newest: of those that lie 2^k to 2^(k+1) images back, the oldest stays. So
    there are never more than `keep` + log2(images), and a way back exists to every scale of time.
    """
    older, stay = images[:-keep], {}
    for number in reversed(older):
        stay[(images[-1] - number).bit_length()] = number
    return [number for number in older if number not in stay.values()]


def has_work(folder: Path) -> bool:
    """Whether a run has saved anything there."""
    return any(folder.glob("state-*.pt")) or any(folder.glob("weights-*.safetensors"))


def save_state(folder: Path, images: int, state: dict[str, Any], keep: int = KEEP_STATES) -> Path:
    """Write a state atomically, then drop `outdated` ones. OSError where the disk has no room.

    Tensors and JSON-able values only, so that it can be read with `weights_only=True`.
    """
    newest = list_states(folder)[-1:]
    needed = 2 * newest[0].stat().st_size if newest else 0
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: {free / 1e9:.1f} GB free, a state needs about {needed / 1e9:.1f} GB")
    path = state_path(folder, images)
    write(path, {"schema": STATE_SCHEMA, "images": images, **state})
    for old in outdated([images_of(old) for old in list_states(folder)], keep):
        state_path(folder, old).unlink()
    return path


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and JSON-able values atomically; OSError where they cannot be written."""
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise OSError(f"{path}: {str(error).splitlines()[0]}") from None


def go_back_to(state: Path) -> None:
    """Make it the newest state, also where it is the one of the best evaluation, which alone may be left of that moment.

    Newer ones become ``abandoned-…``: a run that goes back must not be overtaken by its other future.
    """
    folder, images = state.parent, images_of(state)
    newest = state_path(folder, images)
    if not newest.is_file():
        with atomic_path(newest) as temporary:
            shutil.copyfile(state, temporary)
    best = best_state(folder)
    for path in [*list_states(folder), *([best] if best else [])]:
        if images_of(path) > images:
            path.rename(path.with_name(f"abandoned-{path.name}"))


def load_state(path: Path) -> dict[str, Any]:
    """Read one state file without executing anything in it; CheckpointError where it is damaged."""
    try:
        state = read_pickle(path)
        with zipfile.ZipFile(path) as content:
            damaged = content.testzip()  # torch does not look at the checksums
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such state file") from None
    except Exception as error:  # zip, unpickling and EOF errors have no common base
        raise CheckpointError(f"{path}: damaged state file ({type(error).__name__})") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged state file (wrong checksum)")
    if not isinstance(state, dict) or state.get("schema") != STATE_SCHEMA:
        raise CheckpointError(f"{path}: not a state file of this version ({STATE_SCHEMA})")
    return state


@dataclass(frozen=True)
class Weights:
    """Contents of a weight file: the tensors of `Method.release()`, config and spec as plain dicts, images seen.

    windows: (low, high) by channel for images that no scan of their own lends its window; weights of earlier versions have
    them of unpaired training only.
    expected: name -> (low, high) in ml over the training scans, of a segmenter (`SegmentationTask.expected`).
    origin: the run whose weights the training began with (`engine.trained`); empty where it began with none.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    spec: dict[str, Any]
    images: int
    windows: Sequence[Sequence[float]] = ()
    expected: Mapping[str, Sequence[float]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


def weights_path(folder: Path, which: str) -> Path:
    """Path of the weights called best, latest or by a number of images."""
    return folder / f"weights-{which}.safetensors"


def save_weights(path: Path, weights: Weights) -> None:
    """Write tensors with config and spec in the file's metadata, atomically."""
    header = {"schema": WEIGHTS_SCHEMA} | {name: part for name, part in vars(weights).items() if name != "tensors"}
    header = json.loads(json.dumps(header))  # as it will be read
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.tensors.items()}
    with atomic_path(path) as temporary:
        try:
            metadata = {"medsis": json.dumps({**header, "sha256": _digest(header, tensors)})}
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # its writer's form of a full disk
            raise OSError(f"{path}: {error}") from None


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in a weight file; safetensors itself has no checksum."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(folder: Path, which: str) -> Weights:
    """Read best, latest or numbered weights; CheckpointError listing what there is where they are missing."""
    path = weights_path(folder, which)
    if not path.is_file():
        there = sorted(p.name.removeprefix("weights-").removesuffix(".safetensors") for p in folder.glob("weights-*"))
        raise CheckpointError(
            f"{folder}: no weights called {which!r}; "
            + (f"there are: {', '.join(there)}" if there else "train.py has saved none there yet")
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["medsis"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own error type, missing metadata a KeyError
        raise CheckpointError(f"{path}: damaged or foreign weight file ({type(error).__name__})") from None
    if not isinstance(header, dict) or header.get("schema") != WEIGHTS_SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else header
        raise CheckpointError(f"{path}: schema {found!r}, this version reads {WEIGHTS_SCHEMA!r}; train anew")
    if header.pop("sha256", "") != _digest(header, tensors):
        raise CheckpointError(f"{path}: damaged weight file (wrong checksum)")
    method = METHODS.get(header["config"].get("model"))
    fitted = method is not None and method.fitted  # priors of a generator are NaN where they are random
    if broken := [name for name, tensor in tensors.items() if not fitted and not bool(tensor.isfinite().all())]:
        raise CheckpointError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity ({broken[0]}): the training went astray; "
            "take other weights (--ckpt_iter)"
        )
    known = {field.name: header[field.name] for field in fields(Weights) if field.name in header}
    return Weights(tensors, **known)

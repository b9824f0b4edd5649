"""The folder that scripts/generate.py writes: records with parameters, volumes or slices, index, BIDS description.

A sample's file in ``params/`` is written after all its other files, so it is what says that the sample is whole.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from config import differences
from dataloaders.io.files import atomic_path, read_json, write_json, write_text
from dataloaders.io.geometry import plane_shape, to_ras
from dataloaders.io.intensity import Window
from dataloaders.io.locks import lock_folder
from dataloaders.io.manifest import Case, Geometry, Manifest, Slice, affine_rows, case_from_dict, slice_name
from dataloaders.io.nifti import write_volume
from dataloaders.io.schema import decode
from dataloaders.io.spec import DataSpec
from dataloaders.labelmaps.image_generator import SyntheticImage
from dataloaders.labelmaps.labels import LabelTable, id_type
from dataloaders.slice_files import Frame, write_slice
from models.gmm.params import Params

SCHEMA = "medsis-samples/1"
SETTINGS, INDEX, PARAMS = "settings.json", "samples.json", "params"
WINDOW = Window(0.0, 1.0)  # of slices: the generator's range
_LOCK_WAIT = 60.0  # seconds
_METADATA = "medsis"


def claim(
    out: Path, settings: dict[str, Any], digest: str, sums: dict[str, str], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Make the folder ours; returns the records of its whole samples by number.

    digest: of the settings. sums: SHA-256 of each map. ValueError where the folder holds samples of other settings or maps
    and must not overwrite them.
    """
    with claimed(out, SETTINGS):
        return _claim_locked(out, settings, digest, sums, overwrite)


@contextmanager
def claimed(out: Path, settings: str) -> Iterator[None]:
    """Hold the folder, which is made where there is none: of shards that start together, one writes the settings and the
    others find them. ValueError for a file, and for a folder that holds something but no file called `settings`.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose a folder")
    _check_ours(out, settings)  # first, so that no lock is left in a folder of something else
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _check_ours(out, settings)
        yield


def _check_ours(out: Path, settings: str) -> None:
    content = list(out.iterdir()) if out.is_dir() else []  # before looking for the settings, which are written first
    if any(path.name[0] != "." for path in content) and not (out / settings).is_file():
        raise ValueError(f"--out {out} is not empty and was not written by this command; choose another folder")
    if (out / settings).is_file():  # others have a settings.json too
        found = read_json(out / settings)
        if not isinstance(found, dict) or "schema" not in found or not isinstance(found.get("settings"), dict):
            raise ValueError(f"{out / settings}: was not written by this command, or is damaged; choose another --out")


def _claim_locked(
    out: Path, settings: dict[str, Any], digest: str, sums: dict[str, str], overwrite: bool
) -> dict[int, dict[str, Any]]:
    old = read_json(out / SETTINGS)["settings"] if (out / SETTINGS).is_file() else None
    if old is not None and old != settings and not overwrite:
        changed = [line if len(line) < 160 else f"{line[:157]}..." for line in differences(old, settings)]
        raise ValueError(
            f"--out {out} holds samples of other settings: {'; '.join(changed)}. "
            "Choose another folder, or give --overwrite to replace them"
        )
    whole: dict[int, dict[str, Any]] = {}
    for path, record in records(out):
        source = record["map"]
        same = record["settings"] == digest and sums.get(source["file"], source["sha256"]) == source["sha256"]
        if same and all((out / file).is_file() for file in _files(record)):
            whole[record["number"]] = record
        elif not same and not overwrite:
            raise ValueError(
                f"--out {out}: {path.name} was made of another {source['file']} or with other settings; "
                "choose another folder, or give --overwrite to replace it"
            )
        else:
            path.unlink()  # first, so that no record ever outlives its files
            for file in _files(record):
                (out / file).unlink(missing_ok=True)
    if old != settings:
        write_json(out / SETTINGS, {"schema": SCHEMA, "settings": settings})
    return whole


def records(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of params/ with their records, without parameters; damaged ones count as not written."""
    for path in sorted((out / PARAMS).glob("[!.]*")):
        try:
            record = read_record(path)
        except ValueError:
            continue
        if all(not Path(file).is_absolute() and ".." not in Path(file).parts for file in _files(record)):
            yield path, record


def _files(record: dict[str, Any]) -> list[str]:
    return [*record["images"], *record["labels"]]


def read_record(path: Path | str) -> dict[str, Any]:
    """Record of one sample: number, case, settings digest, map, files. ValueError where it is none."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {}).get(_METADATA, "null"))
        else:
            record = read_json(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    wanted = {"schema", "number", "case", "settings", "map", "images", "labels", "params"}
    if not isinstance(record, dict) or not wanted <= set(record) or record["schema"] != SCHEMA:
        raise ValueError(f"{path}: no parameters of a synthetic image of scripts/generate.py")
    kinds = {
        "number": int,
        "case": str,
        "settings": str,
        "map": dict[str, str],
        "images": list[str],
        "labels": list[str],
    }
    for key, kind in kinds.items():
        decode(kind, record[key], f"{path}: {key}")
    if not {"file", "sha256"} <= set(record["map"]):
        raise ValueError(f"{path}: map: file or sha256 missing")
    return record


def read_params(path: Path | str) -> Params:
    """Parameters of a sample from its file in params/; `ImageGenerator.replay` makes the image of them again."""
    record = read_record(path)
    if Path(path).suffix != ".safetensors":
        return Params.from_dict(record["params"])
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    return Params.from_tensors(tensors, record["params"])


def write_record(path: Path, record: dict[str, Any], params: Params) -> None:
    """Write a sample's record with its parameters, as JSON or safetensors by the file's name."""
    record = {"schema": SCHEMA, **record}
    if path.suffix != ".safetensors":
        write_json(path, {**record, "params": params.to_dict()})
        return
    tensors, rest = params.to_tensors()
    metadata = {_METADATA: json.dumps({**record, "params": rest}, allow_nan=False)}
    with atomic_path(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata)


def describe_bids(
    out: Path,
    name: str = "Synthetic images",
    ignored: Sequence[str] = (f"{PARAMS}/", SETTINGS, INDEX),
    links: Mapping[str, str] | None = None,
) -> None:
    """Say that the folder is a BIDS derivative, and which of its files (`ignored`) BIDS knows nothing about.

    links: data sets that BIDS URIs name, and where they lie, relative to `out`.
    """
    try:
        program = {"Name": "medsis", "Version": version("medsis")}
    except PackageNotFoundError:
        program = {"Name": "medsis"}
    path = out / "dataset_description.json"
    old = read_json(path) if path.is_file() else None
    fresh: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [program],
    }
    new = fresh if old is None else old
    if links:
        new = {**new, "DatasetLinks": {**new.get("DatasetLinks", {}), **links}}
    if new != old:
        write_json(path, new)
    if old is None:
        write_text(out / ".bidsignore", "".join(f"{item}\n" for item in ignored))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder, waiting for other shards."""
    end = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            handle = lock_folder(out)
            break
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    with handle:
        yield


def write_index(out: Path, digest: str, spec: DataSpec | None, config: dict[str, Any]) -> int:
    """List every whole sample of the folder; returns their number. Of several shards the last lists all.

    spec: of the slices, which get a manifest with `config`; None for volumes.
    """
    with _locked(out):
        found = {r["number"]: (path, r) for path, r in records(out) if r["settings"] == digest}
        whole = [found[number] for number in sorted(found)]
        samples = [
            {"number": r["number"], "case": r["case"], "map": r["map"]}
            | {"images": r["images"], "labels": r["labels"], "params": f"{PARAMS}/{path.name}"}
            for path, r in whole
        ]
        write_json(out / INDEX, {"schema": SCHEMA, "settings": digest, "samples": samples})
        if spec is not None:
            cases = tuple(case_from_dict(r["slices"]) for _, r in whole if r["slices"]["slices"])
            provenance = {
                "kind": "results",
                "name": out.name,
                "method": "gmm",
                "split": "test",
                "made_from": {"settings": digest},
                "config": config,
            }
            Manifest(spec, cases, provenance).save(out)
    return len(whole)


def safe_name(name: str) -> str:
    """The name as a part of a file name; numbers keep samples apart where two become equal."""
    return re.sub(r"\.{2,}|[^A-Za-z0-9._-]", "_", name).lstrip("._-")[:80] or "map"


def bids_place(path: Path, name: str) -> tuple[str, str] | None:
    """(folder, beginning of the file names) of a map in ``sub-*/[ses-*/]anat``; None elsewhere."""
    match = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)/(?:(ses-[A-Za-z0-9]+)/)?anat/[^/]+$", path.absolute().as_posix())
    if match is None:
        return None
    parts = [part for part in match.groups() if part]
    kept = [part for part in name.split("_") if re.fullmatch(r"(?!sub-|ses-|desc-)[A-Za-z0-9]+-[A-Za-z0-9]+", part)]
    return "/".join([*parts, "anat"]), "_".join([*parts, *kept])


def write_volumes(
    out: Path, sample: SyntheticImage, case: str, folder: str | None, files: dict[str, list[str]]
) -> None:
    """NIfTI files in the axes of the map; names go to `files` before their files are written."""
    channels, label = sample.volumes()
    for c, channel in enumerate(channels):
        numbered = f"ch{c}image" if len(channels) > 1 else "image"
        files["images"].append(f"{folder}/{case}_{numbered}.nii.gz" if folder else f"images/{case}_{c:04d}.nii.gz")
        write_volume(out / files["images"][-1], channel, sample.affine, np.float32, sample.codes)
    files["labels"].append(f"{folder}/{case}_dseg.nii.gz" if folder else f"labels/{case}.nii.gz")
    write_volume(out / files["labels"][0], label, sample.affine, np.int32, sample.codes)


def write_slices(
    out: Path, spec: DataSpec, sample: SyntheticImage, case: str, sha256: str, files: dict[str, list[str]]
) -> Case:
    """Slices with any foreground, as displayed, in the middle of the spec's size; names go to `files` first.

    sha256: of the sample's map.
    """
    assert spec.axis is not None
    assert sample.source.path is not None
    channels, label = sample.volumes()
    ids, grid = to_ras(LabelTable(spec.labels).apply(label).astype(id_type(spec.num_labels)), sample.affine)
    images = [to_ras(channel, sample.affine)[0] for channel in channels]
    count, *full = plane_shape(ids.shape, spec.axis)
    crop = ((full[0] - spec.size[0]) // 2, (full[1] - spec.size[1]) // 2)  # negative: the plane is padded
    frame, windows = Frame(spec.axis, crop, spec.size), (WINDOW,) * len(images)
    slices = []
    for index in range(count):
        if not frame.cut(ids, index).any():
            continue
        generated = tuple(f"generated/{slice_name(case, index, c)}" for c in range(len(images)))
        item = Slice(index, f"label/{slice_name(case, index)}", (), generated)
        files["labels"].append(item.label)
        files["images"] += generated
        slices.append(write_slice(out, item, ids, images, windows, frame))
    geometry = Geometry(affine_rows(sample.affine), label.shape, affine_rows(grid), ids.shape, crop, sample.codes)
    name = sample.source.name
    patient = re.match(r"sub-[A-Za-z0-9]+", name)
    origin = {"label": {"file": sample.source.path.name, "sha256": sha256}}
    return Case(case, patient.group() if patient else safe_name(name), "test", windows, tuple(slices), geometry, origin)

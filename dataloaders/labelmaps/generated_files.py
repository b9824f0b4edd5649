"""The files of scripts/generate.py: records with parameters.

A sample's file in ``params/`` is written after all its other files, so it is what says that the sample is whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from dataloaders.io.files import atomic_path, read_json, write_json
from dataloaders.io.find import files_below
from dataloaders.io.ledger import Ledger
from dataloaders.io.schema import decode
from models.gmm.params import Params

SCHEMA = "medsis-samples/1"
INDEX, PARAMS = "samples.json", "params"
FORMATS = (".json", ".safetensors")
_METADATA = "medsis"


class _Map(TypedDict):
    file: str
    sha256: str


_RECORD = {"number": int, "case": str, "settings": str, "map": _Map, "images": list[str], "labels": list[str]}


@dataclass(frozen=True)
class SampleLedger(Ledger):
    """Records with the parameters of the samples, in either format; `ending` is that of new ones."""

    schema: str = SCHEMA
    records: str = PARAMS
    sources: str = "map"
    outputs: tuple[str, ...] = ("images", "labels")

    def path(self, key: str) -> Path:
        """The file that is there, in whichever format, or else the one to write."""
        found = (self.folder / self.records / f"{key}{ending}" for ending in FORMATS)
        return next((path for path in found if path.is_file()), super().path(key))

    def keys(self) -> list[str]:
        """In both formats."""
        return sorted({path.stem for path in files_below(self.folder / self.records, FORMATS)})

    def load(self, path: Path) -> dict[str, Any]:
        """Without the parameters that are tensors."""
        return read_record(path)

    def save(self, path: Path, record: dict[str, Any]) -> None:
        """With the parameters, as JSON or safetensors by the file's name."""
        params: Params = record["params"]
        plain = params.to_dict()
        if path.suffix != ".safetensors":
            write_json(path, {**record, "params": plain})
            return
        tensors = {name: value.contiguous() for name, value in vars(params).items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in plain.items() if name not in tensors}
        metadata = {_METADATA: json.dumps({**record, "params": rest}, allow_nan=False)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)


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
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "params" not in record:
        raise ValueError(f"{path}: no parameters of a synthetic image of scripts/generate.py")
    for key, kind in _RECORD.items():
        decode(kind, record.get(key), f"{path}: {key}")
    return record


def read_params(path: Path | str) -> Params:
    """Parameters of a sample from its file in params/; `ImageGenerator.replay` makes the image of them again."""
    record = read_record(path)
    if Path(path).suffix != ".safetensors":
        return Params.from_dict(record["params"])
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    return Params.from_dict({**record["params"], **tensors})

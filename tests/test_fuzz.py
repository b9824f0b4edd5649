"""Random damage to everything that is read: one clear error, or what was written; never a traceback, never a third thing.

HYPOTHESIS_PROFILE=long looks twenty times as far.
"""

from __future__ import annotations

import copy
import functools
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config as options
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import VolumeError, read_volume
from dataloaders.io.png import read_png, write_png
from dataloaders.io.spec import DataSpec
from dataloaders.slices import SliceDataset
from engine import checkpoint
from engine.checkpoint import CheckpointError
from tests.toy import prepared_folder, save_nifti, toy_spec

pytestmark = pytest.mark.slow

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def fuzz(examples: int) -> Callable:
    """So many random examples, always the same ones in CI."""
    return settings(
        max_examples=examples * (20 if LONG else 1),
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(read: Callable[[], Any], allowed: type[Exception] = ValueError) -> Any:
    """What was read, or None after an error of the allowed kind in one line; any other error fails the test."""
    try:
        return read()
    except allowed as error:
        message = str(error).strip()
    assert message
    assert "\n" not in message
    return None


@st.composite
def damage(draw: st.DrawFn, content: bytes, where: slice = slice(None)) -> bytes:
    """A few bytes changed, put in, or put in place of a piece or of the whole end."""
    low, high, _ = where.indices(len(content))
    start, new = draw(st.integers(low, high - 1)), draw(st.binary(max_size=16))
    gone = draw(st.sampled_from([len(new), len(new), 0, 64, len(content)]))
    return content[:start] + new + content[start + gone :]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=6) | st.just("../../etc/passwd"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every dictionary or list of the tree with each of its keys."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


@st.composite
def tampered(draw: st.DrawFn, tree: Any) -> Any:
    """The JSON tree with one value replaced, removed or added anywhere."""
    tree = copy.deepcopy(tree)
    node, key = draw(st.sampled_from(list(places(tree))))
    action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "replace":
        node[key] = draw(JSON)
    elif action == "remove":
        del node[key]
    elif isinstance(node, dict):
        node[draw(st.text(min_size=1, max_size=8))] = draw(JSON)
    else:
        node.append(draw(JSON))
    return tree


def same_json(a: Any, b: Any) -> bool:
    """Whether a is b, but for fields that b lacks; 1 and 1.0 are the same number, 1 and true are not, a tuple is a list."""
    if isinstance(a, dict) and isinstance(b, dict):
        a = {str(k): value for k, value in a.items()}
        return all(k in a and same_json(a[k], b[k]) for k in b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# -- scans ------------------------------------------------------------------------------------------------------------

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5) * 7
AFFINE = np.diag([-1.5, 2.0, 3.0, 1.0])


def volume_bytes(tmp: Path) -> bytes:
    return save_nifti(tmp / "whole.nii", VOXELS, AFFINE).read_bytes()


@given(data=st.data())
@fuzz(150)
def test_nifti_headers(data: st.DataObject, folder: Path) -> None:
    path = folder / "scan.nii"
    content = data.draw(damage(volume_bytes(folder), slice(0, 352)))
    path.write_bytes(content)
    volume = outcome(lambda: read_volume(path), VolumeError)
    if volume is None:
        return
    assert volume.data.ndim == 3
    assert np.isfinite(np.asarray(volume.data, float)).all()
    theirs = nib.Nifti1Image.from_bytes(content)
    assert volume.data.size == np.prod(theirs.shape)
    assert np.array_equal(np.asarray(volume.data).ravel(), np.asarray(theirs.dataobj).ravel())
    assert np.array_equal(volume.affine, theirs.affine)


@given(data=st.data())
@fuzz(150)
def test_compressed_scans(data: st.DataObject, folder: Path) -> None:
    """gzip's checksum covers every voxel, so the outcome is an error or the scan."""
    path = folder / "scan.nii.gz"
    path.write_bytes(data.draw(damage(gzip.compress(volume_bytes(folder), mtime=0), slice(10, None))))
    volume = outcome(lambda: read_volume(path), VolumeError)
    if volume is not None:
        assert np.array_equal(volume.data, VOXELS)
        assert np.array_equal(volume.affine, AFFINE)


# -- slices -----------------------------------------------------------------------------------------------------------


@given(data=st.data(), sixteen=st.booleans())
@fuzz(200)
def test_png_files(data: st.DataObject, sixteen: bool, folder: Path) -> None:
    pixels = (np.arange(300).reshape(15, 20) * 100 % 60000).astype(np.uint16 if sixteen else np.uint8)
    path = folder / "slice.png"
    write_png(path, pixels)
    path.write_bytes(data.draw(damage(path.read_bytes())))
    found = outcome(lambda: read_png(path))
    if found is not None:
        assert found.dtype == pixels.dtype
        assert np.array_equal(found, pixels)


def test_a_png_that_asks_for_gigabytes(folder: Path) -> None:
    """Dimensions of 60,000² in a valid header with valid checksums."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    path = folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10000))) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"bomb\.png: 60000 x 60000 pixels"):
        read_png(path)


# -- manifests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("prepared"), patients=3, slices=2)


@given(data=st.data())
@fuzz(300)
def test_manifests(data: st.DataObject, prepared: Path, folder: Path) -> None:
    """Refused, or every value of the file stands in the manifest as it is; and its slices are refused or read."""
    tree = data.draw(tampered(json.loads((prepared / "manifest.json").read_text())))
    (folder / "manifest.json").write_text(json.dumps(tree))
    manifest = outcome(lambda: Manifest.load(folder))
    if manifest is None:
        return
    assert same_json(manifest.spec.to_dict(), tree["spec"])
    assert same_json([asdict(case) for case in manifest.cases], tree["cases"])
    assert same_json(manifest.provenance, tree["provenance"])
    dataset = outcome(lambda: SliceDataset(prepared, manifest, "train"))
    for i in range(len(dataset) if dataset is not None else 0):
        outcome(lambda i=i: dataset[i])  # type: ignore[misc]


# -- options ----------------------------------------------------------------------------------------------------------


@functools.cache
def plain_options() -> Any:
    return json.loads(json.dumps(options.to_dict(options.parse_train(["--name", "a", "--dataroot", "b"]))))


@given(data=st.data())
@fuzz(200)
def test_options_of_checkpoints(data: st.DataObject) -> None:
    changed = data.draw(tampered(plain_options()))
    config = outcome(lambda: options.from_dict(changed))
    if config is not None:
        assert same_json(options.to_dict(config), changed)


FLAGS = st.sampled_from(
    """--batch_size --num_epochs --lr_g --beta1 --model --preset --gpu_ids --cache_gb --oasis.channels_G --which_iter
 --oasis.generator --spade.num_D --gmm.preset --gmm.priors --oasis.lambda_mask --flip --no-flip --freq_print --nonsense
 --oasis.mask_threshold --precision --gmm.target_res --stop_patience""".split()
)
VALUES = st.sampled_from(["", *"0 -1 1 1e30 nan inf oasis spade gmm auto x 3.5 None True 99999999999".split()])


@given(words=st.lists(st.tuples(FLAGS, VALUES), max_size=4))
@fuzz(60)
def test_command_lines(words: list[tuple[str, str]]) -> None:
    """A run's options, which come back from a checkpoint as they are, or exit code 2 and a message."""
    arguments = ["--name", "a", "--dataroot", "b", *(word for pair in words for word in pair)]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            config = options.parse_train(arguments)
        except SystemExit as stop:
            config, code = None, stop.code
    if config is None:
        assert code == 2
        assert (out.getvalue() + err.getvalue()).strip()
        return
    assert options.from_dict(json.loads(json.dumps(options.to_dict(config)))) == config


# -- checkpoints ------------------------------------------------------------------------------------------------------


@given(data=st.data())
@fuzz(200)
def test_weight_files(data: st.DataObject, folder: Path) -> None:
    """A checksum covers options and tensors, so the outcome is an error or what was saved."""
    tensors = {"a": torch.arange(50.0), "b": torch.ones(3, 2)}
    saved = checkpoint.Weights(tensors, {"lr": 1}, toy_spec().to_dict(), 77, [(0.0, 1.0)])
    path = checkpoint.weights_path(folder, "best")
    checkpoint.save_weights(path, saved)
    path.write_bytes(data.draw(damage(path.read_bytes())))
    found = outcome(lambda: checkpoint.load_weights(folder, "best"), CheckpointError)
    if found is not None:
        assert (found.config, found.images) == (saved.config, saved.images)
        assert DataSpec.from_dict(found.spec) == toy_spec()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


@given(data=st.data())
@fuzz(200)
def test_state_files(data: st.DataObject, folder: Path) -> None:
    path = checkpoint.save_state(folder, 5, {"x": torch.arange(200.0), "step": 3})
    path.write_bytes(data.draw(damage(path.read_bytes())))
    found = outcome(lambda: checkpoint.load_state(path), CheckpointError)
    if found is not None:
        assert (found["images"], found["step"]) == (5, 3)
        assert torch.equal(found["x"], torch.arange(200.0))

"""Networks that turn images into features: pytorch-fid's Inception, EfficientNet-Lite0, any TorchScript file, any
torchvision classifier.

Every feature carries the extractor's name, the hash of its weights and how images were prepared. One extractor never
stands in for another. Files come from a path that the user gives, or with a package; nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from dataloaders.io.files import atomic_path, known_sha256
from dataloaders.io.weights import KNOWN, MissingWeights, load_state
from evaluation.metrics.feature_sets import EFFICIENTNET

BATCH = 16
SIDE = 224  # pixels that images are resized to, as torchvision's classifiers were trained


@dataclass(frozen=True)
class Extractor:
    """A network with everything that its features depend on.

    name: for reports, such as ``torchvision:resnet50``. sha256: of the weight file. dim: features of an image.
    preparation: what is done to images in [0, 1] before the network. run: the network on images (n, H, W).
    """

    name: str
    sha256: str
    dim: int
    preparation: str
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]] = field(repr=False)

    @property
    def key(self) -> str:
        """64 hex digits that change with the weights and with the preparation."""
        return hashlib.sha256(f"{self.name}\n{self.sha256}\n{self.preparation}".encode()).hexdigest()

    def features(self, images: NDArray) -> NDArray[np.float32]:
        """Features (n, dim) of images (n, H, W) in [0, 1], in batches; the grey channel is repeated three times.

        ValueError for a network that gives another shape or numbers that are not finite.
        """
        x = np.asarray(images, np.float32)
        features = np.concatenate([self.run(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])
        if features.shape != (len(x), self.dim):
            raise ValueError(f"{self.name} gave {features.shape} for {len(x)} images, not {(len(x), self.dim)}")
        if not np.isfinite(features).all():
            raise ValueError(f"{self.name} gave features that are not finite")
        return features


def extractor(text: str, device: torch.device) -> Extractor:
    """The extractor that a user names: ``torchscript:FILE``, torchvision's as ``resnet50:FILE``.

    ValueError for another text, MissingWeights for a file that is not there.
    """
    kind, path = named(text)
    return torchscript_extractor(path, device) if kind == "torchscript" else torchvision_extractor(kind, path, device)


def named(text: str) -> tuple[str, Path]:
    """Kind and file of what `extractor` takes; raises as it does."""
    kind, _, file = text.partition(":")
    if not kind or not file:
        raise ValueError(f"--extractors {text}: use torchscript:FILE or a torchvision model as NAME:FILE")
    if not Path(file).is_file():
        raise MissingWeights(f"--extractors {text}: no such file", f"weights missing: {Path(file).name}")
    return kind, Path(file)


def inception_extractor(device: torch.device, path: Path) -> Extractor:
    """pytorch-fid's Inception (2048 features), which alone may be called FID, from its published weight file.

    Its constructor fetches the file by URL; for the time of construction that one function is replaced by one that
    returns the verified local file, so the network itself is pytorch-fid's, untouched.
    """
    from pytorch_fid import inception

    with mock.patch.object(inception, "load_state_dict_from_url", return_value=load_state(path)):
        net = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    net = net.eval().to(device)

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1).to(device)
        return net(batch)[0].flatten(1).cpu().numpy()

    preparation = "three equal channels, bilinear to 299x299, [-1, 1] by the network"
    return Extractor(Path(KNOWN["inception"].filename).stem, known_sha256(path), 2048, preparation, run)


def efficientnet_extractor(device: torch.device, path: Path) -> Extractor:
    """EfficientNet-Lite0 of ImageNet (Tan & Le, ICML 2019): the 1280 numbers before its classifier.

    Images at its own 224 × 224 pixels, 0 … 255 less 127, by 128, as it was trained. Nothing of it may be called FID.
    """
    from models.efficientnet import PIXEL_MEAN, PIXEL_STD, EfficientNetLite, folded

    state, last = load_state(path), torch.channels_last
    encoder = EfficientNetLite(state).to(device).to(memory_format=last)
    head = folded(state, "_conv_head", "_bn1").to(device).to(memory_format=last)
    # On a CPU, channels last and few images at a time, which stay in its cache, take half the time of the plain way.
    few = 4 if device.type == "cpu" else BATCH

    def pooled(x: Tensor) -> Tensor:
        parts = (part.contiguous(memory_format=last) for part in x.split(few))
        return torch.cat([functional.relu6(head(encoder(part)[-1])).mean((2, 3)) for part in parts])

    return _build(EFFICIENTNET, path, pooled, device, "(x - 127/255) / (128/255)", (PIXEL_MEAN,) * 3, (PIXEL_STD,) * 3)


def torchscript_extractor(path: Path, device: torch.device) -> Extractor:
    """Any network saved by TorchScript: (n, 3, 224, 224) in [0, 1] in, one tensor with n rows out, which is flattened.

    A TorchScript file is a program: loading one runs what its author wrote. It is only ever loaded from the path a user
    gives; do not name a file that you do not trust.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            net = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a TorchScript file: {_gist(error)}") from None
    return _build(f"torchscript:{path.stem}", path, net, device, "unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def torchvision_extractor(model: str, path: Path, device: torch.device) -> Extractor:
    """A classifier of torchvision with the weights of a state dict, without its last linear layer.

    The head's weights in the file are not used and may be missing or of another number of classes; all others must
    fit. A file that holds the state dict as ``state_dict``, or from DataParallel, is understood. ValueError for an
    unknown model, a model without a linear head, or a file that does not fit.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise ValueError(f"{model!r} is no classifier of torchvision; there are {', '.join(known)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        net = torchvision.models.get_model(model, weights=None)
    head = _remove_head(net, model)
    state = _state(path)
    for key in [key for key in state if key.startswith(head)]:
        del state[key]  # in place: the dict carries version numbers that some models ask for
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        message = str(error).partition("\n")[2].strip()
        raise ValueError(f"{path} does not hold the weights of {model}: {message[:300]}") from None
    scale = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return _build(f"torchvision:{model}", path, net.eval().to(device), device, "imagenet", *scale)


# -- building -----------------------------------------------------------------------------------------------------


def _state(path: Path) -> dict[str, Any]:
    """State dict of a file, out of the wrappings it commonly comes in."""
    try:
        state = load_state(path)
    except Exception as error:  # what reading a file of another kind raises has no end
        raise ValueError(f"{path} is not a state dict that can be read safely: {_gist(error)}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: names with tensors")
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _remove_head(net: nn.Module, model: str) -> str:
    """Put an identity in place of the last linear layer; its name with a dot at the end."""
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"torchvision's {model} has no linear layer at its end that could be taken off")
    net.set_submodule(layers[-1], nn.Identity())
    return f"{layers[-1]}."


def _build(
    name: str,
    path: Path,
    net: Callable[[Tensor], Any],
    device: torch.device,
    normalisation: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Extractor:
    """Try the network on two images to learn its number of features, and wrap it.

    normalisation: name of mean and standard deviation (3,) that the network was trained with.
    """
    shift, scale = (torch.tensor(part, device=device).view(1, 3, 1, 1) for part in (mean, std))

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).unsqueeze(1)
        if x.shape[2:] != (SIDE, SIDE):
            x = functional.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        try:
            result = net((x.expand(-1, 3, -1, -1) - shift) / scale)
        except RuntimeError as error:
            raise ValueError(f"{name} does not take images {tuple(x.shape)}: {_gist(error)}") from None
        if not isinstance(result, Tensor) or result.ndim < 2 or len(result) != len(images):
            given = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{name} gave {given} for {len(images)} images; one row for each is needed")
        return result.flatten(1).float().cpu().numpy()

    dim = run(np.zeros((2, SIDE, SIDE), np.float32)).shape[1]
    prepared = f"three equal channels, bilinear with antialiasing to {SIDE}x{SIDE}, {normalisation}"
    return Extractor(name, known_sha256(path), dim, prepared, run)


def _gist(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[
        :200
    ]


# -- cache --------------------------------------------------------------------------------------------------------


def image_sha256(image: NDArray) -> str:
    """SHA-256 of an image's type, shape and pixels."""
    x = np.ascontiguousarray(image)
    return hashlib.sha256(f"{x.dtype.str} {x.shape} ".encode() + x.tobytes()).hexdigest()


def cached_features(extractor: Extractor, images: Sequence[NDArray], folder: Path | None) -> NDArray[np.float32]:
    """Features (n, dim) of images (H, W) in [0, 1] of one size, kept in a folder by the content of the images.

    The network is not run for images whose features are in the folder. One file for each extractor and image, written
    atomically, so several processes may share the folder; a damaged file is computed again. None: nothing is kept.
    """
    if folder is None:
        return extractor.features(np.stack(images))
    keys = [image_sha256(image) for image in images]
    found = {key: _read_cached(_cache_file(folder, extractor, key), extractor.dim) for key in keys}
    missing = {key: image for key, image in zip(keys, images, strict=True) if found[key] is None}
    if missing:
        for key, row in zip(missing, extractor.features(np.stack([*missing.values()])), strict=True):
            found[key] = row
            with atomic_path(_cache_file(folder, extractor, key)) as temporary, open(temporary, "wb") as handle:
                np.save(handle, row, allow_pickle=False)
    return np.stack([row for key in keys if (row := found[key]) is not None])


def _cache_file(folder: Path, extractor: Extractor, digest: str) -> Path:
    return folder / extractor.key[:32] / digest[:2] / f"{digest}.npy"


def _read_cached(path: Path, dim: int) -> NDArray[np.float32] | None:
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or not what it should be
        return None
    usable = features.dtype == np.float32 and features.shape == (dim,) and np.isfinite(features).all()
    return features if usable else None

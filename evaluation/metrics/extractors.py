"""Networks that turn images into features: pytorch-fid's Inception, any TorchScript file, any torchvision classifier.

Every feature carries the extractor's name, the hash of its weights and how images were prepared. One extractor never
stands in for another. Files come from a path that the user gives; nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from dataloaders.io.files import atomic_path
from dataloaders.io.weights import KNOWN, MissingWeights, load_state, resolve, sha256
from evaluation.metrics import networks

BATCH = 16
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # mean, standard deviation
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # [0, 1]
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # [-1, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_HEADS = ("fc", "classifier", "head", "heads")  # torchvision's names of the layers after the features


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

        ValueError for other images, and for a network that gives another shape or numbers that are not finite.
        """
        x = np.asarray(images, np.float32)
        if x.ndim != 3:
            raise ValueError(f"{self.name}: images must be (n, H, W), got {x.shape}")
        if x.size and not (x.min() >= 0 and x.max() <= 1):  # NaN fails both
            raise ValueError(f"{self.name}: images must be in [0, 1], got {x.min():g} to {x.max():g}")
        features = np.empty((len(x), self.dim), np.float32)
        for start in range(0, len(x), BATCH):
            part = x[start : start + BATCH]
            result = self.run(part)
            if result.shape != (len(part), self.dim):
                raise ValueError(f"{self.name} gave {result.shape} for {len(part)} images, not {(len(part), self.dim)}")
            if not np.isfinite(result).all():
                raise ValueError(f"{self.name} gave features that are not finite")
            features[start : start + BATCH] = result
        return features


def extractor(
    text: str,
    device: torch.device,
    weights: Path | None = None,
    *,
    size: int | None = None,
    normalisation: str | None = None,
) -> Extractor:
    """The extractor a user names: ``inception``, ``inception:FILE``, ``torchscript:FILE`` or ``resnet50:FILE``.

    weights: file or folder where Inception's weights may lie if none is named. size, normalisation: instead of what the
    extractor does by default; Inception's are its own. ValueError for another text, MissingWeights for a file that is
    not there.
    """
    kind, _, file = text.partition(":")
    options: dict[str, Any] = {"size": size, "normalisation": normalisation}
    options = {name: value for name, value in options.items() if value is not None}
    if kind == "inception":
        if options:
            raise ValueError(f"extractor {text!r} prepares images by itself: {' and '.join(options)} cannot be set")
        return inception_extractor(device, Path(file) if file else weights)
    if not kind or not file:
        wanted = "'inception', 'torchscript:FILE' or a torchvision model as 'NAME:FILE'"
        raise ValueError(f"extractor {text!r}: use {wanted}")
    if kind == "torchscript":
        return torchscript_extractor(Path(file), device, **options)
    return torchvision_extractor(kind, Path(file), device, **options)


def inception_extractor(device: torch.device, weights: Path | None = None) -> Extractor:
    """pytorch-fid's Inception (2048 features), which alone may be called FID; its file is verified by its hash."""
    path = resolve("inception", weights)
    net = networks.inception(path).to(device)
    preparation = "three equal channels, bilinear to 299x299, [-1, 1] by the network"
    return Extractor(
        Path(KNOWN["inception"].filename).stem,
        sha256(path),
        2048,
        preparation,
        lambda images: networks.inception_features(net, images, device),
    )


def torchscript_extractor(
    path: Path, device: torch.device, *, size: int | None = 224, normalisation: str = "unit"
) -> Extractor:
    """Any network saved by TorchScript: (n, 3, size, size) in, one tensor with n rows out, which is flattened.

    A TorchScript file is a program: loading one runs what its author wrote. It is only ever loaded from the path a user
    gives; do not name a file that you do not trust. size: images are resized to it, or left as they are (None).
    normalisation: one of NORMALISATIONS; the file does not say what its network was trained with, so its user must.
    """
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            net = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a TorchScript file: {_gist(error)}") from None
    return _build(f"torchscript:{path.stem}", path, net, device, size, normalisation)


def torchvision_extractor(
    model: str, path: Path, device: torch.device, *, size: int | None = 224, normalisation: str = "imagenet"
) -> Extractor:
    """A classifier of torchvision with the weights of a state dict, without its last linear layer.

    The head's weights in the file are not used and may be missing or of another number of classes; all others must
    fit. A file that holds the state dict as ``state_dict``, or from DataParallel, is understood. ValueError for an
    unknown model, a model without a linear head, or a file that does not fit.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise ValueError(f"{model!r} is no classifier of torchvision; there are {', '.join(known)}")
    _check_file(path)
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
    return _build(f"torchvision:{model}", path, net.eval().to(device), device, size, normalisation)


# -- building -----------------------------------------------------------------------------------------------------


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise MissingWeights(f"{path}: no such weight file", f"weights missing: {path.name}")


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
    """Put an identity in place of the last linear layer after the features; its name with a dot at the end."""
    for head in _HEADS:
        part = getattr(net, head, None)
        layers = (
            [name for name, layer in part.named_modules() if isinstance(layer, nn.Linear)] if part is not None else []
        )
        if layers:
            name = f"{head}.{layers[-1]}" if layers[-1] else head
            net.set_submodule(name, nn.Identity())
            return name + "."
    raise ValueError(f"torchvision's {model} has no linear layer at its end that could be taken off")


def _build(
    name: str, path: Path, net: nn.Module, device: torch.device, size: int | None, normalisation: str
) -> Extractor:
    """Try the network on two images to learn its number of features, and wrap it."""
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation {normalisation!r}: use one of {', '.join(NORMALISATIONS)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 or None, got {size}")
    mean, std = (torch.tensor(part, device=device).view(1, 3, 1, 1) for part in NORMALISATIONS[normalisation])

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).unsqueeze(1)
        if size is not None and x.shape[2:] != (size, size):
            x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
        try:
            result = net((x.expand(-1, 3, -1, -1) - mean) / std)
        except RuntimeError as error:
            raise ValueError(f"{name} does not take images {tuple(x.shape)}: {_gist(error)}") from None
        if not isinstance(result, Tensor) or result.ndim < 2 or len(result) != len(images):
            given = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{name} gave {given} for {len(images)} images; one row for each is needed")
        return result.flatten(1).float().cpu().numpy()

    side = size or 224
    dim = run(np.zeros((2, side, side), np.float32)).shape[1]
    resized = f"bilinear with antialiasing to {size}x{size}" if size is not None else "not resized"
    return Extractor(name, sha256(path), dim, f"three equal channels, {resized}, {normalisation}", run)


def _gist(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[
        :200
    ]


# -- cache --------------------------------------------------------------------------------------------------------


def image_sha256(image: NDArray) -> str:
    """SHA-256 of an image's type, shape and pixels."""
    x = np.ascontiguousarray(image)
    return hashlib.sha256(f"{x.dtype.str} {x.shape} ".encode() + x.tobytes()).hexdigest()


def cached_features(
    extractor: Extractor, images: Iterable[tuple[str, Callable[[], NDArray]]], folder: Path
) -> NDArray[np.float32]:
    """Features (n, dim) of images given as (SHA-256, how to load it as (H, W) in [0, 1]), kept in a folder.

    The hash is that of all that determines the pixels: `image_sha256`, or that of the file. An image whose features are
    in the folder is not loaded and the network not run. One file for each extractor and image, written atomically, so
    several processes may share the folder; a damaged file is computed again. Memory holds one batch of images.
    """
    found: dict[str, NDArray[np.float32]] = {}
    order: list[str] = []
    waiting: dict[str, NDArray] = {}

    def compute() -> None:
        for digest, row in zip(waiting, extractor.features(np.stack(list(waiting.values()))), strict=True):
            found[digest] = row
            with atomic_path(_cache_file(folder, extractor, digest)) as temporary, open(temporary, "wb") as handle:
                np.save(handle, row, allow_pickle=False)
        waiting.clear()

    for digest, load in images:
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is not a SHA-256 in lower-case hex digits")
        order.append(digest)
        if digest in found or digest in waiting:
            continue
        kept = _read_cached(_cache_file(folder, extractor, digest), extractor.dim)
        if kept is not None:
            found[digest] = kept
            continue
        image = load()
        if waiting and next(iter(waiting.values())).shape != image.shape:
            compute()
        waiting[digest] = image
        if len(waiting) == BATCH:
            compute()
    if waiting:
        compute()
    return np.stack([found[digest] for digest in order]) if order else np.empty((0, extractor.dim), np.float32)


def _cache_file(folder: Path, extractor: Extractor, digest: str) -> Path:
    return folder / extractor.key[:32] / digest[:2] / f"{digest}.npy"


def _read_cached(path: Path, dim: int) -> NDArray[np.float32] | None:
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or not what it should be
        return None
    usable = features.dtype == np.float32 and features.shape == (dim,) and np.isfinite(features).all()
    return features if usable else None

"""Label maps in, synthetic images out, in two lines; the doors of lab2im and SynthSeg, with names and defaults kept.

image, labels = ImageGenerator("brain_label_map.nii.gz").generate_image()
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io.files import naming, read_json
from dataloaders.io.nifti import write_volume
from dataloaders.labelmaps.anatomies import Anatomies
from dataloaders.labelmaps.fluid import Fluid
from dataloaders.labelmaps.lab2im import Lab2imAttributes, kept_outputs, list_scheme, loaded
from dataloaders.labelmaps.lesion_maps import LesionMaps, Lesions
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, Source
from dataloaders.labelmaps.schemes import read_scheme
from dataloaders.labelmaps.seed_maps import SeedMaps
from models.base import seeded_generator
from models.gmm.lab2im_options import gmm_options
from models.gmm.options import GmmConfig
from models.gmm.params import Params
from models.gmm.priors import FittedPrior, GivenPriors, default_priors, parse_prior, priors_for
from models.gmm.render import render_pair
from models.gmm.sampling import Priors, sample_params
from models.gmm.scheme import LabelScheme

MAX_GROWTH, MAX_VOXELS = 4, 2**30  # of an image: times its map's size per axis, in all
EXCLUSIVE = (
    *(("anatomies", other) for other in ("seeds", "lesions", "subjects_prob")),
    *(("priors", other) for other in ("seeds", "prior_means", "prior_stds")),  # of the labels, not of clusters
    ("seeds", "lesions"),
)


@dataclass(frozen=True)
class SyntheticImage:
    """A synthetic image and its labels; unpacks to the two: ``image, labels = sample``.

    image: (*S), or (*S, C) for several channels, float32 in [0, 1] (unclipped for the quantile range); labels: (*S) int32
    output values; both in the axes of the source map. affine (4, 4): of both. params: all that was drawn. number: which
    sample of the generator's endless sequence it is. source: the map it was made of.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    affine: NDArray[np.float64]
    params: Params
    number: int
    source: LabelMap

    def __iter__(self) -> Iterator[NDArray]:
        return iter((self.image, self.labels))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> NDArray:
        return (self.image, self.labels)[index]

    def save(self, image: Path | str, labels: Path | str) -> None:
        """Write both as compressed NIfTI files; several channels go to one file, along a fourth axis.

        ValueError for a batch.
        """
        channels, label = self.volumes()
        data, codes = channels[0] if len(channels) == 1 else np.stack(channels, -1), self.source.codes
        write_volume(image, data, self.affine, np.float32, codes)
        write_volume(labels, label, self.affine, np.int32, codes)

    def volumes(self) -> tuple[list[NDArray[np.float32]], NDArray[np.int32]]:
        """One array per channel, and the labels: all (I, J, K), also in 2-D, as `affine` counts their axes."""
        if self.labels.ndim != len(self.params.shape):
            raise ValueError(
                f"a batch of shape {self.labels.shape} is no volume to be saved: give batchsize 1, or use sample(number)"
            )
        channels = [self.image] if self.image.ndim == self.labels.ndim else list(np.moveaxis(self.image, -1, 0))
        flat = _flat_axes(self.source) if self.labels.ndim == 2 else ()
        return [np.expand_dims(channel, flat) for channel in channels], np.expand_dims(self.labels, flat)


class ImageGenerator(Lab2imAttributes):
    """An endless source of synthetic images; sample k of seed s is always the same. `next` gives what `generate_image` does.

    Positions, names and attributes of arguments are lab2im's (`BrainGenerator`: SynthSeg's); lists may be .npy files.

    labels_dir: file, folder, .txt list, array, tensor, or a list of these; maps may differ in shape, spacing, orientation.
    generation_labels, generation_classes, output_labels: lists, arrays or .npy files, as lab2im's; by default every value
    that occurs in a map is a label and a class of its own, which needs a look at every file; output_labels may also be the
    values to keep, others become 0. n_neutral_labels: how many of generation_labels have no side; by default sides are taken
    from FreeSurfer's table. scheme: all of these at once, or a text for `schemes.read_scheme`.
    prior_means, prior_stds: None, number, [a, b], (2, K), (2R, K), or .npy files of them; priors: a file of
    scripts/estimate_priors.py instead. n_channels, batchsize, subjects_prob as in lab2im.
    seeds: folder of scripts/make_seeds.py; the tissues of each sample are split by intensity, into subclasses (least, most)
    clusters each, whose means are tied (options.tie_std). Maps without seeds are left out. Not with priors.
    lesions: folder, file or list of lesion masks (0 and 1), whose voxels become one more label and class, the last, named
    lesion, with the output value max(outputs) + 1; see `lesion_maps.masks_of_maps`. Maps without a mask have none.
    fluid_margin, rim: mm of fluid around the brain that stay, and that are shared with the cortex; see `fluid.Fluid`.
    anatomies: so many new maps beside the given ones; fields: folder of what they need of each map (`anatomies.Anatomies`).
    preset, options: starting values (models.gmm.options); further keywords are options in lab2im's or SynthSeg's forms.
    seed: of the sequence, drawn where it is None (see `.seed`). device: where images are made.

    Raises ValueError naming the argument for whatever does not fit.
    """

    def __init__(
        self,
        labels_dir: Source,
        generation_labels: Any = None,
        output_labels: Any = None,
        batchsize: int = 1,
        n_channels: int = 1,
        target_res: Any = None,
        output_shape: Any = None,
        output_div_by_n: Any = None,
        generation_classes: Any = None,
        prior_distributions: str | None = None,
        prior_means: Any = None,
        prior_stds: Any = None,
        use_specific_stats_for_channel: bool | None = None,
        *,
        n_neutral_labels: int | None = None,
        scheme: LabelScheme | str | None = None,
        priors: Path | str | Priors | None = None,
        seeds: Path | str | None = None,
        subclasses: tuple[int, int | None] = (1, None),
        lesions: Lesions | None = None,
        fluid_margin: Sequence[float] = (),
        rim: float = 0.0,
        anatomies: int = 0,
        fields: Path | None = None,
        subjects_prob: Any = None,
        preset: str = "lab2im",
        options: GmmConfig | None = None,
        spacing: Sequence[float] | None = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        cache_gb: float = 1.0,
        **keywords: Any,
    ) -> None:
        for name, value in {"n_channels": n_channels, "batchsize": batchsize}.items():
            if value < 1:
                raise ValueError(f"{name} {value}: must be at least 1")
        tables = {"prior_means": prior_means, "prior_stds": prior_stds, "subjects_prob": subjects_prob}
        sources = {"seeds": seeds, "lesions": lesions, "anatomies": anatomies or None, "priors": priors} | tables
        check_exclusive({name: name for name, value in sources.items() if value is not None})
        self.maps = LabelMaps(labels_dir, cache_gb, spacing)
        keywords |= {"target_res": target_res, "output_shape": output_shape, "output_div_by_n": output_div_by_n}
        keywords |= {"prior_distributions": prior_distributions}
        keywords |= {"use_specific_stats_for_channel": use_specific_stats_for_channel}
        self.batchsize = keywords.pop("batch_size", batchsize)  # lab2im's first name of it
        self.given = {name: loaded(name, value) for name, value in (keywords | tables).items()}
        self.options = _options(preset, options, {name: self.given[name] for name in keywords})
        lists = (generation_labels, generation_classes, output_labels, n_neutral_labels)
        self.scheme = self.base_scheme = self._find_scheme(scheme, *lists)
        self.generation_labels, self.generation_classes = np.array(self.scheme.values), np.array(self.scheme.classes)
        self.output_labels = np.array(self.scheme.outputs)
        warn_unmirrored(self.options, self.scheme)
        self.maps.use(self.scheme)
        if lesions is not None:
            self.maps = LesionMaps(labels_dir, lesions, self.base_scheme, cache_gb)
        if seeds is not None:
            self.maps = SeedMaps(labels_dir, seeds, self.base_scheme, subclasses, cache_gb)
        self.seed = secrets.randbits(62) if seed is None else seed
        if anatomies:
            self.maps = Anatomies(labels_dir, self.base_scheme, anatomies, self.seed, fields, cache_gb, spacing)
        self.labels_paths = [
            str(s) if isinstance(s, Path) else self.maps.name(i) for i, s in enumerate(self.maps.sources)
        ]
        self.scheme = self.maps.drawn
        self.fluid = None if fluid_margin == () and not rim else Fluid(self.scheme, fluid_margin, rim)
        self.n_channels = n_channels
        self.device = torch.device(device)
        self.priors = self._find_priors(self.given["prior_means"], self.given["prior_stds"], priors)
        with naming("subjects_prob"):
            self.weights = map_weights(self.given["subjects_prob"], len(self.maps))

    def __iter__(self) -> Iterator[SyntheticImage]:
        return self

    def __next__(self) -> SyntheticImage:
        return self.generate_image()

    def _find_scheme(
        self, scheme: LabelScheme | str | None, labels: Any, classes: Any, outputs: Any, neutral: int | None
    ) -> LabelScheme:
        if isinstance(scheme, LabelScheme):
            return scheme
        if labels is not None:
            return list_scheme(labels, classes, outputs, neutral)
        given = {"generation_classes": classes, "n_neutral_labels": neutral}
        if alone := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(alone)} need generation_labels, whose order they follow")
        found = read_scheme(scheme or "auto", self.maps.values(), self.options.preset, "scheme", self.maps.sources)
        if outputs is None:
            return found
        kept = kept_outputs(found.values, loaded("output_labels", outputs))
        if kept is None:
            raise ValueError(
                "output_labels need generation_labels, whose order they follow, or must be among the labels"
            )
        return replace(found, outputs=kept)

    def _find_priors(self, means: Any, stds: Any, priors: Path | str | Priors | None) -> Priors | None:
        if isinstance(priors, (str, Path)):
            return read_priors(priors, self.scheme, self.n_channels)
        if priors is not None or (means is None and stds is None):
            return priors
        K, kind = self.scheme.num_classes, self.options.prior_distributions
        default = default_priors(self.options, K, kind)
        return GivenPriors(
            default.means if means is None else parse_prior(means, kind, K, name="prior_means"),
            default.stds if stds is None else parse_prior(stds, kind, K, name="prior_stds"),
        )

    def map_index(self, number: int) -> int:
        """Which of the maps sample `number` is made of; reads nothing."""
        return self._choose(seeded_generator(self.seed, number))

    def _choose(self, generator: torch.Generator) -> int:
        return int(torch.multinomial(self.weights, 1, generator=generator))

    def params(self, number: int, fixed: Mapping[str, Any] | None = None) -> tuple[LabelMap, Params]:
        """The map and the parameters of sample `number`, without making the image."""
        generator = seeded_generator(self.seed, number)
        index = self._choose(generator)
        label_map = self.maps.draw(index, generator)
        label_map = label_map if self.fluid is None else self.fluid.cut(index, label_map, generator)
        with naming(label_map.path or label_map.name):
            return label_map, self.draw(label_map.values, label_map.spacing, generator, fixed, 0 in label_map.plane)

    def draw(
        self,
        values: torch.Tensor,
        spacing: Sequence[float],
        generator: torch.Generator,
        fixed: Mapping[str, Any] | None = None,
        sided: bool = True,
    ) -> Params:
        """Parameters for a map of these values, or of a tensor of their shape on the meta device; see `sample_params`."""
        params = sample_params(
            values,
            generator,
            options=self.options,
            scheme=self.scheme,
            priors=self.priors,
            channels=self.n_channels,
            spacing=spacing,
            fixed=fixed,
            sided=sided,
        )
        _check_size(params, self.options)
        return params

    def tensors(self, number: int, fixed: Mapping[str, Any] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """SyntheticImage `number` in RAS axes on the device: image (C, *S) float32 and labels (*S) int32 output values."""
        label_map, params = self.params(number, fixed)
        return render_pair(self.maps.ready(label_map).values.to(self.device), params, self.scheme)

    def sample(self, number: int, fixed: Mapping[str, Any] | None = None) -> SyntheticImage:
        """SyntheticImage `number` of the sequence. fixed: fields of `Params` to give instead of drawing them."""
        label_map, params = self.params(number, fixed)
        return self.replay(label_map, params, number)

    def replay(
        self, label_map: LabelMap, params: Params, number: int = -1, subclasses: Sequence[int] = ()
    ) -> SyntheticImage:
        """The image of given parameters, e.g. of a file.

        label_map: a sample's `source`, or read from its file. subclasses: of the sample's record or `source`, for a map
        read from its file where the generator has seeds; ValueError without.
        """
        label_map = self.maps.ready(label_map, subclasses)
        image, labels = render_pair(label_map.values.to(self.device), params, self.scheme)
        channels_last = np.ascontiguousarray(image.movedim(0, -1).cpu().numpy())
        factor = [c / o for c, o in zip(params.crop_shape, params.out_shape, strict=True)]
        arrays, affine = label_map.to_source_axes([channels_last, labels.cpu().numpy()], params.crop_start, factor)
        squeezed = arrays[0][..., 0] if self.n_channels == 1 else arrays[0]
        if len(params.shape) == 2:
            axes = _flat_axes(label_map) if arrays[1].ndim == 3 else ()
            squeezed, arrays[1] = np.squeeze(squeezed, axes), np.squeeze(arrays[1], axes)
        return SyntheticImage(squeezed, arrays[1], affine, params, number, label_map)

    def generate_image(self) -> SyntheticImage:
        """The next sample, or a batch of the next `batchsize`, stacked along a new first axis.

        A batch's affine, params, number and source are those of its first element. Raises ValueError where the elements of
        a batch differ in shape.
        """
        samples = [self.sample(self.made + i) for i in range(self.batchsize)]
        self.made += self.batchsize
        self.written = samples[0].affine, samples[0].volumes()[1].shape
        if self.batchsize == 1:
            return samples[0]
        shapes = sorted({sample.labels.shape for sample in samples})
        if len(shapes) > 1:
            raise ValueError(f"a batch of shapes {' and '.join(map(str, shapes))}: give output_shape, or batchsize 1")
        first = samples[0]
        images, labels = (np.stack(arrays) for arrays in zip(*samples, strict=True))
        return SyntheticImage(images, labels, first.affine, first.params, first.number, first.source)

    generate_brain = generate_image  # SynthSeg's name

    @property
    def model_output_shape(self) -> list[int]:
        """Size of an image of the first map that is drawn, in RAS axes, and its channels."""
        return [*self.params(0)[1].out_shape, self.n_channels]

    @property
    def image_generator(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
        """Endless batches in RAS axes: images (B, *S, C), labels (B, *S, 1)."""
        while True:
            pairs = [self.tensors(self.made + i) for i in range(self.batchsize)]
            self.made += self.batchsize
            images = np.stack([image.movedim(0, -1).cpu().numpy() for image, _ in pairs])
            yield images, np.stack([label[..., None].cpu().numpy() for _, label in pairs])

    brain_generator = image_generator


def warn_unmirrored(options: GmmConfig, scheme: LabelScheme) -> None:
    """Say that maps whose sides are unknown are never mirrored, where the options ask for it."""
    if options.flipping and scheme.partners is None:
        warnings.warn(
            "label maps are not mirrored, as which labels are left and right is unknown: give a table or scheme "
            "of names with left and right (--scheme; n_neutral_labels in Python), or turn flipping off (--no-flipping)",
            stacklevel=1,  # once, however many generators a command makes
        )


def _check_size(params: Params, options: GmmConfig) -> None:
    """ValueError for more than 2^30 voxels where an axis is also more than 4 times as long as the map's."""
    for shape in (params.out_shape, params.crop_shape):
        long = any(size > MAX_GROWTH * old for size, old in zip(shape, params.shape, strict=True))
        if long and math.prod(shape) > MAX_VOXELS:
            given = {"output_shape": options.output_shape, "target_res": options.target_res}
            flags = " and ".join(
                f"{name} {' '.join(f'{x:g}' for x in value)}" for name, value in given.items() if value
            )
            raise ValueError(
                f"{flags or 'output_div_by_n'}: asks for {' x '.join(map(str, shape))} voxels of a map of "
                f"{' x '.join(map(str, params.shape))}; at most {MAX_GROWTH} times as many per axis, or 2^30 in all"
            )


def read_priors(path: Path | str, scheme: LabelScheme, channels: int) -> FittedPrior:
    """Priors of a file of scripts/estimate_priors.py, by class name; ValueError where they do not fit the labels."""
    with naming(path):
        return priors_for(read_json(path), scheme, channels)


def _flat_axes(label_map: LabelMap) -> tuple[int, ...]:
    """Axes of length 1 of a 2-D map, among the source's three."""
    ras = range(3) if label_map.orientation is None else label_map.orientation[:, 0].astype(int).tolist()
    return tuple(axis for axis, along in enumerate(ras) if along not in label_map.plane)


class BrainGenerator(ImageGenerator):
    """`ImageGenerator` with SynthSeg's positions and preset: ``BrainGenerator(maps).generate_brain()``."""

    POSITIONS = (
        *("generation_labels", "n_neutral_labels", "output_labels", "subjects_prob", "batchsize", "n_channels"),
        *("target_res", "output_shape", "output_div_by_n", "prior_distributions", "generation_classes"),
        *("prior_means", "prior_stds", "use_specific_stats_for_channel", "mix_prior_and_random", "flipping"),
    )

    def __init__(self, labels_dir: Source, *values: Any, **keywords: Any) -> None:
        named = dict(zip(self.POSITIONS[: len(values)], values, strict=True))
        super().__init__(labels_dir, **{"preset": "synthseg"} | named | keywords)


def check_exclusive(given: Mapping[str, str]) -> None:
    """ValueError for two arguments that say the same or do not go together. given: what those that are there are called."""
    for one, other in EXCLUSIVE:
        if one in given and other in given:
            raise ValueError(f"{given[one]} and {given[other]} cannot both be given")


def _options(preset: str, options: GmmConfig | None, keywords: dict[str, Any]) -> GmmConfig:
    """The options as they are, or those of the preset with lab2im's or SynthSeg's keywords."""
    if keywords.pop("blur_background", None) is not None:
        warnings.warn("blur_background: has no effect; see the option background", stacklevel=3)
    named = ("max_res_iso", "max_res_aniso")  # None says something
    given = {name: value for name, value in keywords.items() if value is not None or name in named}
    if options is not None and given:
        raise ValueError(f"options and {', '.join(given)} cannot both be given")
    return options or gmm_options(preset, **given)


def map_weights(given: Iterable[float] | None, count: int) -> torch.Tensor:
    """How often each of so many label maps is drawn, (count,); equally often for None. ValueError where they do not fit."""
    if given is None:
        return torch.ones(count)
    weights = torch.as_tensor(list(given), dtype=torch.float64)
    if len(weights) != count or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError(
            f"{len(weights)} values for {count} label maps; one for each, 0 or more, not all 0, is allowed"
        )
    return weights

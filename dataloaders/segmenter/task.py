"""What a segmenter is trained and validated on, found from its options: classes, grid, sources, validation scans."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import Config
from dataloaders.io.geometry import ACROSS, spacing, voxel_volume
from dataloaders.io.intensity import shown
from dataloaders.io.manifest import FILE_NAME, Case, Manifest
from dataloaders.io.spec import SYNTHETIC, Channel, DataSpec, Label, sideless
from dataloaders.labelmaps.classes import (
    CLASSES,
    MR_CONTRASTS,
    Classes,
    apart,
    contrast_means,
    inlined,
    ras_spacing,
    read_classes,
    tissue_classes,
)
from dataloaders.labelmaps.fluid import FAR, Fluid, with_rim
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, as_indices
from dataloaders.labelmaps.schemes import output_labels, scheme_of_options
from dataloaders.labelmaps.seed_maps import seeded
from dataloaders.overview import split_sizes, wrapped
from dataloaders.plain_folder import is_plain, load_manifest
from dataloaders.segmenter.case_volumes import (
    CaseFile,
    LabelledScan,
    case_labels,
    channel_numbers,
    folder_cases,
    manifest_cases,
)
from dataloaders.segmenter.patches import (
    CaseVolumes,
    GeneratedVolumes,
    MixedVolumes,
    PatchDataset,
    PatchSource,
    window_shape,
)
from dataloaders.slices import BatchLoader
from models.gmm.options import GmmConfig
from models.gmm.scheme import LabelScheme

LESION = "lesion"
EXPECTED = 8  # training scans that say how large classes are
SHOWN = "all that is shown"
HELD_OUT = 10  # of a results folder without a validation split, every tenth case validates


class SegmentationTask:
    """The data of `config`. ValueError naming the flag where folders and options do not fit.

    config: with the classes written out. data: a manifest with the network's spec (classes, inputs, voxel size, slicing
    axis) and no cases, for the run's files.
    """

    def __init__(self, config: Config) -> None:
        classes = inlined("--segmenter.classes", config.segmenter.classes, CLASSES)
        contrasts = inlined("--segmenter.contrasts", config.segmenter.contrasts, ("any", "mr", *MR_CONTRASTS))
        self.config = replace(config, segmenter=replace(config.segmenter, classes=classes, contrasts=contrasts))
        self.o = self.config.segmenter
        self.prepared = _prepared(config)
        self.maps = _label_maps(config, self.prepared)
        if self.o.real_fraction > 0 and (self.prepared is None or not self.prepared.spec.channels):
            raise ValueError(
                f"--segmenter.real_fraction {self.o.real_fraction:g}: --dataroot {config.dataroot} holds label maps "
                "without images; give 0"
            )
        if self.prepared is not None and self.prepared.spec.axis is not None:
            self.o = replace(self.o, axis=self.prepared.spec.axis)
        if self.maps is not None and len(plane := self.maps[0].plane) == 2:
            if self.o.dims == 3:
                raise ValueError(
                    f"--segmenter.dims 3: {self.maps.name(0)} is a slice, and makes networks of 2 dimensions"
                )
            across = ({0, 1, 2} - {*plane}).pop()
            self.o = replace(self.o, axis=next(axis for axis, number in ACROSS.items() if number == across))
        self.base = self._base()
        self.classes = self._classes()
        self.channels = self._channels()
        self.spacing = self._spacing()
        self.data = Manifest(self._spec(), (), {"kind": "segmentation", "expected": self._expected()})
        self.scheme = LabelScheme.from_spec(self.data.spec)

    def _base(self) -> LabelScheme | None:
        """What the labels of the label maps are; None without any."""
        lists = {name: getattr(self.o, name) for name in ("generation_labels", "generation_classes", "output_labels")}
        if self.maps is None:
            files = {"prior_means_file": self.o.prior_means_file, "prior_stds_file": self.o.prior_stds_file}
            given = [name for name, file in (lists | files).items() if file is not None]
            if given or self.o.scheme != "auto":
                raise ValueError(
                    f"--segmenter.{given[0] if given else 'scheme'}: is for label maps; give --segmenter.label_maps"
                )
            return None
        preset = self.config.gmm.preset
        return scheme_of_options(self.o, self.maps.values, preset, self.maps.sources, "--segmenter.")

    def _classes(self) -> Classes:
        if self.prepared is not None:
            return read_classes(self.o.classes, self.prepared.spec.labels)
        assert self.base is not None
        labels = output_labels(self.base)
        if self.o.lesions is not None:
            labels = (*labels, Label(len(labels), LESION))
        return read_classes(self.o.classes, labels)

    def _channels(self) -> tuple[Channel, ...]:
        if self.prepared is None or not self.prepared.spec.channels:
            names = self.o.inputs or (SYNTHETIC,)
            return tuple(Channel(name) for name in names)
        spec = self.prepared.spec
        numbers = channel_numbers(spec, self.o.inputs, len(self.o.inputs or spec.channels), "--segmenter.inputs")
        return tuple(spec.channels[number] for number in numbers)

    def _spacing(self) -> tuple[float, float, float]:
        if self.o.spacing:
            mm = self.o.spacing * 3 if len(self.o.spacing) == 1 else self.o.spacing
        elif self.prepared is not None:
            mm = ras_spacing(self.prepared.spec)
        else:
            assert self.maps is not None
            mm = tuple(round(float(value), 4) for value in spacing(self.maps[0].affine))
        return (mm[0], mm[1], mm[2])

    def _spec(self) -> DataSpec:
        axis, mm = self.o.axis, self.spacing
        window = [size for i, size in enumerate(window_shape(self.o)) if i != ACROSS[axis]]
        x, y = (size for i, size in enumerate(mm) if i != ACROSS[axis])
        return DataSpec(self.classes.labels, self.channels, (window[1], window[0]), (y, x), mm[ACROSS[axis]], axis)

    def _expected(self) -> dict[str, list[float]]:
        """Millilitres of each class and of all that is shown: the lowest and the highest of at most EXPECTED training scans.

        Of whole label maps and real scans; {} where there are none, as with slices and synthetic images from disk.
        """
        found: list[dict[str, float]] = []
        if self.maps is not None and len(self.maps[0].plane) == 3 and not self.o.results:
            assert self.base is not None
            scheme = self.classes.of_scheme(self.base)
            for i in _spread(len(self.maps)):
                found += self._of_map(self.maps[i], scheme)
        if self.o.real_fraction > 0 and self.prepared is not None and self.prepared.spec.axis is not None:
            files = self._real("train")
            for i in _spread(len(files)):
                scan = files[i].read()
                voxel = voxel_volume(scan.affine) / 1000
                classes, counts = np.unique(scan.label, return_counts=True)
                found.append(
                    self._volumes_ml(classes, counts * voxel) | {SHOWN: float(shown(scan.image).sum() * voxel)}
                )
        return {name: [f(item[name] for item in found) for f in (min, max)] for name in found[0]} if found else {}

    def _of_map(self, label_map: LabelMap, scheme: LabelScheme) -> list[dict[str, float]]:
        """Millilitres of a whole map, with the least and the most of the fluid that stripping leaves."""
        margins = (min(self.o.fluid_margin), max(self.o.fluid_margin)) if self.o.fluid_margin else (FAR,)
        fluid, indexed, found = Fluid(scheme, self.o.fluid_margin, 0), as_indices(label_map, scheme), []
        for margin in margins:
            counts = fluid.at(0, indexed, margin).values.flatten().bincount(minlength=scheme.num_labels).numpy()
            ml, classes = counts * float(np.prod(label_map.spacing)) / 1000, np.array(scheme.outputs)
            painted = classes if self.config.gmm.skull_strip_prob >= 1 else np.array(scheme.values)
            found.append(self._volumes_ml(classes, ml) | {SHOWN: float(ml[painted > 0].sum())})
        return found

    def _volumes_ml(self, classes: NDArray, ml: NDArray) -> dict[str, float]:
        return {label.name: float(ml[classes == label.id].sum()) for label in self.classes.labels if label.id}

    def overview(self) -> list[str]:
        """What was found, in lines."""
        lines = [f"data: {self.config.dataroot}"]
        if self.prepared is not None:
            lines += split_sizes(self.prepared)
        if self.maps is not None:
            lines.append(f"label maps: {len(self.maps)}, the first is {self.maps.name(0)}")
        if self.o.synthetic:
            source = "results of test.py" if self.o.results or self._from_results else "the generator"
            lines.append(f"training images: {100 * self.o.real_fraction:g} % real, the others by {source}")
        labels = self.classes.labels
        lines += wrapped(f"{len(labels)} classes: {', '.join(label.name for label in labels)}")
        size, mm = ("x".join(f"{n:g}" for n in numbers) for numbers in (window_shape(self.o), self.spacing))
        lines.append(f"input: {', '.join(c.name for c in self.channels)}; patches of {size} voxels of {mm} mm")
        return lines

    # -- sources --------------------------------------------------------------------------------------------------

    def loader(self) -> BatchLoader:
        """The training patches."""
        volumes = self._volumes(self.config.seed)
        dataset = PatchDataset(volumes, self.o, self.config.seed)
        return BatchLoader(dataset, self.config.batch_size, self.config.seed, self.config.num_workers)

    def _volumes(self, seed: int) -> PatchSource:
        real = self._real("train") if self.o.real_fraction > 0 else []
        if self.o.real_fraction > 0 and not real:
            raise ValueError(f"{self.config.dataroot}: the split 'train' has no images")
        from_disk = None if not real else self._case_volumes(real, seed)
        if not self.o.synthetic:
            assert from_disk is not None
            return from_disk
        other = self._synthetic(seed)
        return other if from_disk is None else MixedVolumes(from_disk, other, self.o.real_fraction, seed)

    def _case_volumes(self, cases: Sequence[CaseFile], seed: int) -> CaseVolumes:
        return CaseVolumes(cases, self.config.cache_gb, self.scheme, self.o, self.config.gmm, seed)

    def _real(self, split: str) -> list[CaseFile]:
        """Scans of one split that have images."""
        if self.prepared is None:
            return []
        spec = self.prepared.spec
        numbers = tuple(spec.channels.index(channel) for channel in self.channels)
        mm = self._grid(spec)
        cases = self.prepared.split(split)
        return manifest_cases(self.config.dataroot, self.prepared, cases, self.classes, numbers, mm)

    def _grid(self, spec: DataSpec) -> tuple[float, ...]:
        """The network's voxel size, () where images have it already."""
        same = all(abs(a - b) < 1e-3 for a, b in zip(ras_spacing(spec), self.spacing, strict=True))
        return () if same else self.spacing

    def _results(self) -> list[CaseFile]:
        found: list[CaseFile] = []
        names = [channel.name for channel in self.channels]
        for root in (self.config.dataroot,) if self._from_results else self.o.results:
            found += folder_cases(root, self.classes, names, len(self.channels), self.spacing)
        return found

    @property
    def _from_results(self) -> bool:
        """Whether --dataroot itself holds synthetic images."""
        return self.prepared is not None and self.prepared.provenance.get("kind") == "results"

    def _synthetic(self, seed: int) -> PatchSource:
        if results := self._results():
            held = self._from_results and not self.prepared_split("val")
            return self._case_volumes([c for i, c in enumerate(results) if not (held and i % HELD_OUT == 0)], seed)
        generators = self._generators(seed, self.o.anatomies)
        return GeneratedVolumes(generators, self.o, seed, self.classes, self._learned())

    def prepared_split(self, split: str) -> tuple[Case, ...]:
        """Cases of --dataroot's split that have images."""
        cases = self.prepared.split(split) if self.prepared is not None else ()
        return tuple(case for case in cases if any(item.images for item in case.slices))

    def _generators(self, seed: int, anatomies: int = 0) -> list[ImageGenerator]:
        """One generator for label maps with seeds, one for those without, or one of the prepared training labels."""
        options = self._options()
        common: dict[str, Any] = {
            "anatomies": anatomies,
            "fields": self.config.checkpoints_dir / self.config.name / "anatomies",
            "options": options,
            "n_channels": len(self.channels),
            "seed": seed,
            "cache_gb": self.config.cache_gb,
        }
        priors = None if options.priors == "random" else options.priors
        if self.maps is None:
            return [self._prepared_generator(options, common)]
        assert self.base is not None
        look = self._look
        scheme = self._with_rim(look.of_scheme(self.base))
        if self.o.prior_means_file is None:
            scheme = self._tied(scheme, look)
        common |= {"fluid_margin": self.o.fluid_margin, "rim": self.o.rim}
        common["prior_means"] = self.o.prior_means_file or self._means(self._with_lesion(scheme, look), look)
        common["prior_stds"] = self.o.prior_stds_file
        if self.o.seeds is None:
            return [ImageGenerator(self.maps.sources, scheme=scheme, lesions=self.o.lesions, priors=priors, **common)]
        with_seeds = seeded(self.maps.sources, self.o.seeds)
        plain = [path for path in self.maps.sources if path not in with_seeds]
        both = [ImageGenerator(list(with_seeds), scheme=scheme, seeds=self.o.seeds, **common | {"prior_means": None})]
        return both + ([ImageGenerator(plain, scheme=scheme, **common)] if plain else [])

    @property
    def _look(self) -> Classes:
        """What is painted: structures as the matter of their tissue, also those that are no class (the optic chiasm)."""
        return tissue_classes() if self.o.classes == "structures" and self.o.seeds is None else self.classes

    def _learned(self) -> LabelScheme | None:
        """The scheme whose outputs are the classes, where it is not that of what is painted."""
        if self.base is None or (self._look is self.classes and self.o.lesions is None):
            return None
        return self._with_lesion(self._with_rim(self.classes.of_scheme(self.base)), self.classes)

    def _with_lesion(self, scheme: LabelScheme, classes: Classes) -> LabelScheme:
        """The scheme with the label that the generator gives lesions, as what the classes take it for."""
        if self.o.lesions is None:
            return scheme
        return scheme.add_lesion(output=int(classes.of_labels((Label(0, "background"), Label(1, LESION)))[1]))

    def _with_rim(self, scheme: LabelScheme) -> LabelScheme:
        return with_rim(scheme) if self.o.rim > 0 and self.o.seeds is None else scheme

    def _tied(self, scheme: LabelScheme, classes: Classes) -> LabelScheme:
        return tied(scheme, apart(self.o.contrasts, classes.labels)) if self.o.tie_classes else scheme

    def _means(self, scheme: LabelScheme, classes: Classes) -> NDArray[np.float32] | None:
        low, *high = self.config.gmm.prior_means
        default = (low, high[0]) if high else (125 - low, 125 + low)
        return contrast_means(self.o.contrasts, classes.labels, scheme, default)

    def _options(self) -> GmmConfig:
        shape, mm = window_shape(self.o), self.spacing
        if self.maps is not None and len(plane := self.maps[0].plane) == 2:
            shape, mm = self.o.spatial_patch, tuple(mm[axis] for axis in plane)  # type: ignore[assignment]
        return replace(self.config.gmm, output_shape=shape, target_res=mm, output_div_by_n=1)

    def _prepared_generator(self, options: GmmConfig, common: dict[str, Any]) -> ImageGenerator:
        """Of the training labels of --dataroot, as they are prepared."""
        assert self.prepared is not None
        spec = self.prepared.spec
        arrays = [case_labels(self.config.dataroot, case, spec)[0] for case in self.prepared.split("train")]
        if not arrays:
            raise ValueError(f"{self.config.dataroot}: the split 'train' has no slices")
        flat = all(array.shape[-1] == 1 for array in arrays)  # a folder of PNG files
        if flat:
            arrays = [array[..., 0] for array in arrays]
            options = replace(options, output_shape=options.output_shape[:2], target_res=options.target_res[:2])
        table = self.classes.of_labels(spec.labels)
        scheme = LabelScheme.from_spec(spec)
        scheme = replace(scheme, outputs=tuple(int(table[value]) for value in scheme.values))
        scheme = self._tied(scheme, self.classes)
        return ImageGenerator(
            arrays,
            scheme=scheme,
            prior_means=self._means(scheme, self.classes),
            priors=None if options.priors == "random" else options.priors,
            spacing=ras_spacing(spec)[: arrays[0].ndim],
            **common | {"options": options},
        )

    # -- validation -----------------------------------------------------------------------------------------------

    def validation(self) -> list[LabelledScan]:
        """Real scans of the validation split; without one held-out results, or synthetic scans that training never sees."""
        if self.prepared_split("val"):
            return [file.read() for file in self._real("val")]
        if self._from_results:
            return [file.read() for i, file in enumerate(self._results()) if i % HELD_OUT == 0]
        if not self.o.synthetic or self.o.results or self.o.val_samples == 0:
            return []
        seed = self.config.seed
        source = GeneratedVolumes(
            self._generators(seed), replace(self.o, foreground=1.0), seed, self.classes, self._learned()
        )
        found = []
        for number in range(-self.o.val_samples, 0):  # training counts from 0
            drawn = source.draw(number)
            grid = np.diag([*self.spacing, 1.0])
            found.append(LabelledScan(f"{drawn.source}_{-number}", drawn.source, drawn.image, drawn.label, grid))
        return found


def _spread(count: int) -> list[int]:
    """At most EXPECTED numbers below `count`, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, EXPECTED))})


def tied(scheme: LabelScheme, apart: Collection[str] = ()) -> LabelScheme:
    """The scheme with the intensity classes of one output tied together; those of no output stay apart.

    apart: structures whose classes, left and right, are tied to each other alone.
    """
    first = {k: scheme.classes.index(k) for k in range(scheme.num_classes)}
    names = {name: -1 - i for i, name in enumerate(sorted(apart))}
    groups = [names.get(sideless(scheme.names[i]), scheme.outputs[i]) or f"class {k}" for k, i in first.items()]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return replace(scheme, ties=tuple(numbers[group] for group in groups))


def _prepared(config: Config) -> Manifest | None:
    """The manifest of a prepared or results folder; None for a folder or file of label maps."""
    dataroot = config.dataroot
    if not ((dataroot / FILE_NAME).is_file() or is_plain(dataroot)):
        if config.patient_regex is not None:
            raise ValueError(f"--patient_regex: goes with a folder of PNG slices, --dataroot {dataroot} is none")
        if config.only_patients:
            raise ValueError(f"--only_patients: goes with a prepared folder, --dataroot {dataroot} holds label maps")
        return None
    manifest = load_manifest(dataroot, patient_regex=config.patient_regex).only("train", config.only_patients)
    for split in ("train", "val"):
        manifest.refuse_bare(dataroot, split, "label map")
    return manifest


def _label_maps(config: Config, prepared: Manifest | None) -> LabelMaps | None:
    """Label maps to synthesise from; None where the prepared folder's own labels are used, or none at all."""
    o = config.segmenter
    source = o.label_maps or (config.dataroot if prepared is None else None)
    if source is None:
        return None
    try:
        return LabelMaps(source, config.cache_gb)
    except ValueError as error:
        flag = "--segmenter.label_maps" if o.label_maps else "--dataroot"
        raise ValueError(f"{flag} {error}") from None

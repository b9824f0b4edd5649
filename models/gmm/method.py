"""The generator as a method of train.py and test.py: priors fitted to the training slices, images painted on given labels.

Priors as in SynthSeg (Billot et al., Med. Image Anal. 2023; `build_intensity_stats` of lab2im), in the window of the data
instead of percentiles of each image: per subject a median and 1.4826·MAD for each label, then mean and standard deviation
of those over subjects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from config import Config
from dataloaders.io.spec import DataSpec
from models.base import Batch, Method, SampleRandom
from models.collectives import sums_by_key
from models.gmm.intensity import FULL_SCALE
from models.gmm.priors import (
    BINS,
    FittedPrior,
    histogram_moments,
    label_histograms,
    pool_subjects,
    priors_for,
)
from models.gmm.render import render
from models.gmm.sampling import draw_intensities, sample_params
from models.gmm.scheme import LabelScheme

PRIOR_FIELDS = tuple(FittedPrior.__dataclass_fields__)


class Gmm(Method):
    """Paints the given label maps: everything of the generator but its deformations, so that image and label stay a pair.

    Buffers: the fields of `FittedPrior` on 0-255, which stands for [-1, 1] of the model; (C, N), and (S, C, N) for the
    deviations of S subjects. Where priors are random they stay NaN. fixed: fields of `Params` that are given, not drawn.
    """

    fixed: Mapping[str, Any]

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec, self.fixed = config.gmm, spec, {}
        self.scheme = LabelScheme.from_spec(spec)
        shape = (spec.num_channels, spec.num_labels)
        for name in PRIOR_FIELDS:
            part = (1, *shape) if name.endswith("deviations") else shape
            self.register_buffer(name, torch.full(part, float("nan")))

    @property
    def prior(self) -> FittedPrior | None:
        """The fitted prior; None where intensities are drawn at random."""
        if self.config.priors == "random":
            return None
        return FittedPrior(**{name: getattr(self, name).cpu() for name in PRIOR_FIELDS})

    def fit(self, batches: Iterable[Batch]) -> None:
        """One pass over the training slices, unless the priors are random or given; ranks share the slices."""
        if self.config.priors != "fit":
            return
        slices = (item for batch in batches for item in zip(batch.patients, batch.label, batch.real, strict=True))
        shape = (self.spec.num_channels, self.spec.num_labels, BINS)
        histograms: dict[str, csr_array] = {}  # of (C, N · BINS), mostly zeros, or many patients would not fit
        for patient, own in groupby(slices, key=lambda item: item[0]):
            each = (label_histograms(label, image, self.spec.num_labels) for _, label, image in own)
            counts = csr_array(sum(each, start=torch.zeros(shape, dtype=torch.long)).flatten(1).cpu().numpy())
            histograms[patient] = histograms[patient] + counts if patient in histograms else counts
        whole = (torch.from_numpy(counts.toarray()).view(shape) for counts in sums_by_key(histograms).values())
        moments = [histogram_moments(counts, self.config.robust) for counts in whole]
        half = FULL_SCALE / 2
        centers = torch.stack([(center + 1) * half for center, _ in moments])
        spreads = torch.stack([spread * half for _, spread in moments])
        self._keep(pool_subjects(centers, spreads, self.scheme.names, what="training slice"))

    def load_priors(self, data: Any) -> None:
        """Priors of scripts/estimate_priors.py, matched to the labels by name; ValueError where they do not fit.

        HU have a fixed window, which the priors must have too; images in arbitrary units have percentiles of their own.
        """
        scale = data.get("scale", {}) if isinstance(data, dict) else None
        if not isinstance(scale, dict):
            raise ValueError("priors must be an object, as estimate_priors.py writes it")
        fixed = "window" in scale
        physical = self.spec.channels[0].unit == "HU"
        if fixed != physical:
            found, needed = (
                ("a fixed window", "percentiles") if fixed else ("each image's percentiles", "--window LOW HIGH")
            )
            raise ValueError(f"priors on the scale of {found}; for these data estimate them with {needed}")
        self._keep(priors_for(data, self.scheme, self.spec.num_channels))

    def _keep(self, prior: FittedPrior) -> None:
        for name in PRIOR_FIELDS:
            setattr(self, name, getattr(prior, name).to(getattr(self, name).device))

    @torch.no_grad()
    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]: the case's stream gives the style, the slice's stream the grain."""
        prior = self.prior
        images = [self._paint(label, random, prior) for label, random in zip(batch.label, randoms, strict=True)]
        return torch.stack(images).mul_(2).sub_(1).clamp_(-1, 1)

    def _paint(self, label: Tensor, random: SampleRandom, prior: FittedPrior | None) -> Tensor:
        params = sample_params(
            label,
            random.case,
            options=self.config,
            scheme=self.scheme,
            priors=prior,
            channels=self.spec.num_channels,
            spacing=self.spec.spacing,
            fixed=self.fixed,
            spatial=False,
        )
        for resampled, stream in random.labels.items():
            means, stds = draw_intensities(self.config, self.scheme, prior, self.spec.num_channels, stream)
            params.means[:, resampled], params.stds[:, resampled] = means[:, resampled], stds[:, resampled]
        seed = int(torch.randint(2**62, (), generator=random.slice))
        return render(label, replace(params, seed=seed))

    @property
    def resamples(self) -> bool:
        """Labels have priors of their own to draw from, unless the prior's centre is used."""
        return self.config.vary or self.config.priors == "random"

    def release(self) -> dict[str, Tensor]:
        """The prior tensors."""
        return self.state_dict()

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load the prior tensors, of any number of subjects."""
        self.load_state_dict(tensors)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """The deviations' first axis is the number of subjects of the training, which this object cannot know."""
        for name in ("mean_deviations", "std_deviations"):
            if name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[name], device=getattr(self, name).device))
        return super().load_state_dict(state_dict, *args, **kwargs)

"""The lesion generator as a method of train.py and test.py: scans without lesions in, the same scans with lesions out.

Legend: B batch, C image channels (modalities), K condition maps, S spatial axes: (H, W), in 3-D (D, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from config import Config
from dataloaders.io.spec import LESION, DataSpec
from models.base import Batch, Method, Player, SampleRandom, adam, seeded_generator
from models.ema import ema_copy, ema_update
from models.gmm.resampling import blurred
from models.lesion.conditions import (
    DEPTHS,
    ZERO,
    band_masks,
    blend_weights,
    error_weights,
    latent_variance,
    measure_profile,
    soft_maps,
    weighted_mae,
    z_scores,
)
from models.lesion.network import LesionNetwork
from models.lesion.patches import Corner, cut, grid_corners, random_corners


class LesionUnet(Method):
    """Encoder per modality, maximum fusion, decoder per modality (Salem et al., IEEE Access 2019), on slices or volumes.

    Batches need `source`, the scan with its lesions filled; the brightness of lesions comes from `level`, or from the
    real image where there is one. `composite` may be turned off to get the network's own image everywhere.
    profile: (3, DEPTHS) buffer, what brightness lesions had in training; see `profile_of`.
    """

    profile: Tensor

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.options, self.spec = config, config.lesion, spec
        self.lesion, self.level_channel = spec.label_id(LESION), spec.level_channel
        self.composite = self.options.composite
        o = self.options
        conditions = 2 if o.levels == "soft" else len(o.alphas) + (not o.everywhere)
        self.net = LesionNetwork(spec.num_channels, conditions, o)
        self.average = ema_copy(self.net)
        self.register_buffer("profile", torch.zeros(3, DEPTHS))

    def players(self) -> dict[str, Player]:
        """The one network."""
        return {"generator": Player(self.net, adam(self.net, self.config.lr_g, self.config), self.losses)}

    def calibrate(self, batches: Iterable[Batch]) -> str:
        """Measure how bright lesions are, for masks that come without intensities."""
        stacks = ((batch.real[:, self.level_channel], batch.label == self.lesion) for batch in batches)
        self.profile.copy_(measure_profile(stacks))
        return ""

    # -- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted MAE of every decoded image (one modality's latent alone, and fused) and the latents' variance."""
        o = self.options
        source, real, lesion, level, grey = self.patches(batch)
        if o.levels == "soft" and o.level_blur > 0:
            sigma = o.level_blur * float(torch.rand((), generator=batch.rng))
            level = blurred(level, [sigma] * o.dims)
        images, latents = self.net(source - ZERO, self.conditions(level, lesion, grey), every=o.branches == "all")
        weights = error_weights(lesion, o.lesion_weight)
        result = {"fused": weighted_mae(images[-1], real - ZERO, weights)}
        if len(images) > 1:
            alone = [weighted_mae(image, real - ZERO, weights) for image in images[:-1]]
            result["alone"] = torch.stack(alone).sum()
        if o.lambda_variance > 0 and len(latents) > 1:
            result["variance"] = o.lambda_variance * latent_variance(latents)
        return result

    def patches(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Patches of a batch: source and real (P, C, *S), lesion and level (P, *S), grey (P, 2).

        Where they lie depends on the step and the sample, not on the batch or the process that the sample is in.
        """
        o, (source, lesion, level, grey) = self.options, self.inputs(batch)
        chosen: list[tuple[int, Corner]] = []
        step = int(torch.randint(2**62, (), generator=batch.rng))
        for i, (spots, label) in enumerate(zip(lesion.cpu(), batch.label.cpu(), strict=True)):
            body, rng = label > 0, seeded_generator(step, batch.cases[i], batch.indices[i])
            if o.sampling == "grid":
                corners = grid_corners(body, o.patches, o.patch, o.stride, rng)
            else:
                corners = random_corners(spots, body, o.patches, o.patch, o.lesion_share, rng)
            chosen += [(i, corner) for corner in corners]

        def patches_of(whole: Tensor) -> Tensor:
            return torch.stack([cut(whole[i], corner, o.patch) for i, corner in chosen])

        source, real, lesion, level = (patches_of(whole) for whole in (source, batch.real, lesion, level))
        return source, real, lesion, level, grey[[i for i, _ in chosen]]

    # -- inputs ---------------------------------------------------------------------------------------------------

    def conditions(self, level: Tensor, lesion: Tensor, grey: Tensor) -> Tensor:
        """Condition maps (B, K, *S) from intensity level and mask (B, *S), and mean and deviation of grey matter (B, 2)."""
        if self.options.levels == "soft":
            return soft_maps(level, lesion)
        bands = band_masks(z_scores(level, grey), self.options.alphas)
        if self.options.everywhere:
            return bands
        mask = lesion[:, None].to(bands.dtype)
        return torch.cat([mask, bands * mask], 1)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Source (B, C, H, W), lesions (B, H, W) bool, level (B, H, W), mean and deviation of grey matter (B, 2)."""
        if batch.source is None:
            raise ValueError(
                "--model lesion needs scans with their lesions filled: prepare the data with --fill lesion"
            )
        level = batch.level if batch.level is not None else batch.real[:, self.level_channel]
        grey = batch.grey
        if grey is None:
            assert self.options.levels == "soft", "bands need the grey matter's mean and deviation"
            grey = batch.label.new_zeros((len(batch), 2), dtype=torch.float32)
        return batch.source, batch.label == self.lesion, level, grey

    # -- synthesis ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Sources (B, C, H, W) with the lesions of the label map; nothing random. In 3-D all slices of a case count."""
        return self._synthesize(self.average, batch)

    @torch.no_grad()
    def current(self, batch: Batch) -> Tensor:
        """The same by the weights in training."""
        return self._synthesize(self.net, batch)

    def _synthesize(self, net: nn.Module, batch: Batch) -> Tensor:
        parts, body = self.inputs(batch), batch.label > 0
        if self.options.dims == 2:
            return self._painted(net, *parts, body)
        out = torch.empty_like(parts[0])
        for case in dict.fromkeys(batch.cases):  # slices of one case -> one volume of depth D
            rows = [i for i, name in enumerate(batch.cases) if name == case]
            x, mask, level, grey = (part[rows] for part in parts)
            volume = self._painted(net, x.movedim(0, 1)[None], mask[None], level[None], grey[:1], body[rows][None])
            out[rows] = volume[0].movedim(0, 1)
        return out

    def _painted(
        self, net: nn.Module, source: Tensor, lesion: Tensor, level: Tensor, grey: Tensor, body: Tensor
    ) -> Tensor:
        o = self.options
        conditions = self.conditions(level, lesion, grey)

        def paint(both: Tensor) -> Tensor:
            return net(both[:, : source.shape[1]] - ZERO, both[:, source.shape[1] :])[0][-1]

        image = torch.cat([source, conditions], 1)
        if o.windows:
            from monai.inferers import sliding_window_inference  # seconds to import

            overlap = max(0.0, 1 - (o.window_stride + 0.5) / o.patch)  # half a pixel, lest rounding take one
            found = sliding_window_inference(image, o.patch, len(image), paint, overlap, padding_mode="replicate")
            assert isinstance(found, Tensor)
            image = found
        else:
            image = paint(image)
        image = (image.float() + ZERO).clamp(-1, 1)
        if not self.composite:
            return torch.where(body[:, None], image, source)
        weights = blend_weights(lesion, o.reach, o.feather)[:, None]
        return source + weights * (image - source)

    # -- life -----------------------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Move the average towards the network."""
        ema_update(self.average, self.net, self.options.ema_decay, step)

    def release(self) -> dict[str, Tensor]:
        """The moving average's tensors and the brightness of the training lesions."""
        return {**self.average.state_dict(), "profile": self.profile}

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load them."""
        rest = dict(tensors)
        self.profile.copy_(rest.pop("profile"))
        self.average.load_state_dict(rest)

    def start_from(self, tensors: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
        """Network and average begin with the other run's average."""
        self.load_release(tensors)
        self.net.load_state_dict(self.average.state_dict())
        return []

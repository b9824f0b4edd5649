"""What adversarial methods share: a generator with its moving average and noise, and the losses that judge its images.

Legend: B batch, C channels, N labels, Z noise length, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from config import Config
from dataloaders.io.spec import DataSpec
from models.base import Batch, Method, Player, SampleRandom, adam, seeded_generator
from models.ema import ema_copy, ema_update, recalibrate_batchnorm
from models.gan import losses, mask_loss
from models.gan.generator import GRAIN_LEVELS, SpadeGenerator, check_size
from models.gan.losses import label_l1
from models.gan.norms import NormOptions
from models.gan.options import PAIRED_LOSSES, GanConfig


class Gan(Method):
    """Base of OASIS and SPADE.

    mask_threshold: buffer, intensity in [-1, 1] above which a pixel is body. feature_spread: buffer, only with
    `lambda_lite`, deviation of each channel of EfficientNet's maps over training slices.
    """

    mask_threshold: Tensor
    feature_spread: Tensor
    generator: SpadeGenerator
    average: nn.Module
    discriminator: nn.Module

    def __init__(
        self, config: Config, options: GanConfig, spec: DataSpec, z_dim: int, middle_block: bool = False
    ) -> None:
        super().__init__()
        self.config, self.options, self.spec, self.noise_length = config, options, spec, z_dim
        check_size(spec.size)
        norms = NormOptions(options, spec.num_labels, z_dim + int(options.slice_position), config.tuned)
        self.generator = SpadeGenerator(norms, spec.num_channels, options.crop or spec.size, middle_block)
        self.average = ema_copy(self.generator)
        self.register_buffer("mask_threshold", torch.zeros(()))
        self._perceptual: dict[str, Any] = {}  # networks that are neither saved nor trained with the method
        if options.lambda_lite > 0:
            from models.efficientnet import WIDTHS

            self.register_buffer("feature_spread", torch.ones(sum(WIDTHS)))

    # -- preparation ----------------------------------------------------------------------------------------------

    def load_pretrained(self, key: str, tensors: dict[str, Tensor]) -> None:
        """A network of the perceptual losses, as a state dict. key: vgg19 or efficientnet_lite1."""
        from models.gan.perceptual import LiteFeatures, load_vgg

        net = load_vgg(tensors) if key == "vgg19" else LiteFeatures(tensors)
        self._perceptual[key] = net.to(self.mask_threshold.device)

    def calibrate(self, batches: Iterable[Batch]) -> str:
        """Find what some training batches tell: the spread of perceptual features, the mask loss's body threshold.

        Says where that threshold does not separate bodies.
        """
        if self.options.lambda_lite > 0:
            batches = list(batches)
            self.feature_spread.copy_(self._perceptual["efficientnet_lite1"].spread(batch.real for batch in batches))
        return self._calibrate_mask(batches)

    def _calibrate_mask(self, batches: Iterable[Batch]) -> str:
        given = self.options.mask_threshold
        if given is not None:
            self.mask_threshold.fill_(given)
        if self.options.lambda_mask == 0 or (given is not None and not self.paired):
            return ""
        seen = list(batches)
        images = torch.cat([batch.image for batch in seen if batch.image is not None])
        own = self.config.model
        if given is None and images.max() == images.min():
            raise ValueError(
                f"--{own}.lambda_mask {self.options.lambda_mask:g}: the first {len(images)} training images are all of one "
                f"intensity, so there is no body in them; give --{own}.mask_threshold or other data"
            )
        labels = torch.cat([batch.label for batch in seen])
        if given is None:
            threshold = (
                mask_loss.paired_threshold(images, labels) if self.paired else mask_loss.unpaired_threshold(images)
            )
            self.mask_threshold.fill_(threshold)
        if not self.paired:
            return ""
        dice = mask_loss.agreement(images, labels, self.mask_threshold.item())
        if dice >= mask_loss.LEAST_AGREEMENT:
            return ""
        what = f"--{own}.mask_threshold {given:g}" if given is not None else "the best threshold"
        return (
            f"{what} separates the bodies of the first {len(images)} training images from their background at a Dice of "
            f"{dice:.2f} with the label maps, so --{own}.lambda_mask would teach wrong outlines; is "
            "the background not the darkest (invert the images), or is much of the body unlabelled (prepare with "
            "--split_background)?"
        )

    @property
    def resamples(self) -> bool:
        """Whether labels can be given noise of their own."""
        return self.noise_length > 0

    @property
    def paired(self) -> bool:
        """Whether image and label of a batch belong together."""
        return True

    @property
    def taught_by_pairs(self) -> bool:
        """Whether any loss of generated against real images has a weight."""
        return self.paired and any(getattr(self.options, name) > 0 for name in PAIRED_LOSSES)

    # -- images ---------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """Training images of the batch with fresh noise from its stream; remembered in the batch without gradients."""
        z = self.noise_length
        noise = None
        if z:  # drawn for the whole batch, so that an image's noise does not depend on the number of ranks
            noise = batch.own_draws(lambda count: torch.randn(count, z, generator=batch.rng))
            noise = noise.to(batch.label.device, non_blocking=True)
        fake = self.generator(self.label_stack(batch), self.with_position(noise, batch), self._training_grain(batch))
        batch.fake = fake.detach()
        return fake

    def _training_grain(self, batch: Batch) -> Tensor | None:
        """(B, L, H, W), drawn on the device, since there are many; for the whole batch of all ranks. See `grain`."""
        if not self.options.grain:
            return None
        device = batch.label.device
        seed = int(torch.randint(2**62, (), generator=batch.rng))
        stream, shape = torch.Generator(device).manual_seed(seed), (GRAIN_LEVELS, *batch.label.shape[1:])

        def drawn(*count: int) -> Tensor:
            return torch.randn((*count, *shape), generator=stream, device=device)

        def in_rows(count: int) -> Tensor:
            own = drawn(-(-count // row), row + 2)  # those of a preview may end in the midst of one
            return ((own[:, :-2] + 2 * own[:, 1:-1] + own[:, 2:]) / 6**0.5).flatten(0, 1)[:count]

        if (row := self.options.row) == 1:
            return batch.own_draws(drawn)
        grain = batch.own_draws(in_rows)
        slices = list(zip(batch.cases, batch.indices, strict=True))
        for i in range(1, len(slices)):
            # One that stands for a neighbour that is not there must not differ from itself.
            if i % row and slices[i] == slices[i - 1]:
                grain[i] = grain[i - 1]
        return grain

    def grain(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor | None:
        """(B, L, H, W) noise for single pixels by slice; what neighbouring slices have in common (0.67) goes on in both."""
        if not self.options.grain:
            return None
        shape = (GRAIN_LEVELS, *batch.label.shape[1:])

        def drawn(random: SampleRandom) -> Tensor:
            total = 2 * torch.randn(shape, generator=random.slice)
            for stream in random.beside:
                total += torch.randn(shape, generator=stream)
            return total / (4 + len(random.beside)) ** 0.5

        return torch.stack([drawn(random) for random in randoms]).to(batch.label.device)

    def fake_for_discriminators(self, batch: Batch) -> Tensor:
        """The generator's own images of this step, or new ones where reuse is off; no gradients."""
        if self.options.reuse_fake and batch.fake is not None:
            return batch.fake
        with torch.no_grad():
            return self.generate(batch)

    def label_stack(self, batch: Batch) -> Tensor:
        """(B, 1 + 2k, H, W) labels: the slice itself, then its neighbours."""
        label = batch.label[:, None]
        if self.options.neighbours == 0:
            return label
        assert batch.neighbours is not None
        return torch.cat([label, batch.neighbours], dim=1)

    def with_position(self, noise: Tensor | None, batch: Batch) -> Tensor | None:
        """Noise (B, Z) or (B, N, Z) with the slice position as one more value, where asked for."""
        if not self.options.slice_position:
            return noise
        assert batch.position is not None
        position = batch.position.to(batch.label.device)[:, None]
        if noise is None:
            return position
        return torch.cat([noise, position if noise.ndim == 2 else position[:, None].expand(-1, noise.shape[1], 1)], -1)

    def noise(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor | None:
        """(B, Z) noise, one vector per sample from its case stream; (B, N, Z) where labels have streams of their own."""
        z, device = self.noise_length, batch.label.device
        if z == 0:
            return None
        noise = torch.stack([torch.randn(z, generator=random.case) for random in randoms])
        if any(random.labels for random in randoms):
            noise = noise[:, None].repeat(1, self.spec.num_labels, 1)
            for row, random in zip(noise, randoms, strict=True):
                for label, stream in random.labels.items():
                    row[label] = torch.randn(z, generator=stream)
        return noise.to(device)

    @torch.no_grad()
    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] by the moving average of the generator."""
        return self._by_average(batch, randoms)

    def _by_average(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        noise = self.with_position(self.noise(batch, randoms), batch)
        return self.average(self.label_stack(batch), noise, self.grain(batch, randoms)).float()

    @torch.no_grad()
    def current(self, batch: Batch) -> Tensor:
        """Images by the generator in training, with the batch's own statistics; its buffers stay as they are."""
        buffers = [buffer.clone() for buffer in self.generator.buffers()]
        images = self.generate(batch)
        for buffer, before in zip(self.generator.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return images.float()

    # -- players and losses ---------------------------------------------------------------------------------------

    def players(self) -> dict[str, Player]:
        """Generator first, then discriminator, as published."""
        c = self.config
        return {
            "generator": Player(self.generator, adam(self.generator, c.lr_g, c), self.generator_losses),
            "discriminator": Player(self.discriminator, adam(self.discriminator, c.lr_d, c), self.discriminator_losses),
        }

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """What the generator is judged by, weighted."""
        raise NotImplementedError

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Likewise of the discriminator."""
        raise NotImplementedError

    def class_weights(self, batch: Batch, max_weight: float = 0.0) -> Tensor:
        """Class weights (N,) of the step's batch, of which this may be a part."""
        label = batch.label if batch.whole_label is None else batch.whole_label
        return losses.class_weights(label, self.spec.num_labels, max_weight)

    def image_losses(self, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses of the generated images (B, C, H, W) beside the adversarial ones, weighted; only those with a weight."""
        o, nets = self.options, self._perceptual
        terms: list[tuple[str, float, Callable[[], Tensor]]] = [
            ("mask", o.lambda_mask, lambda: mask_loss.mask_loss(fake, batch.label, self.mask_threshold, o.mask_loss)),
            ("l1", o.lambda_l1, lambda: l1_loss(fake.float(), batch.real.float())),
            ("label_l1", o.lambda_label_l1, lambda: label_l1(fake, batch.real, batch.label, self.class_weights(batch))),
            ("edge", o.lambda_edge, lambda: losses.edge(fake, batch.real)),
            ("spectrum", o.lambda_spectrum, lambda: losses.spectrum(fake, batch.real)),
            ("vgg", o.lambda_vgg, lambda: nets["vgg19"].loss(fake, batch.real)),
            ("lite", o.lambda_lite, lambda: nets["efficientnet_lite1"].loss(fake, batch.real, self.feature_spread)),
        ]
        return {name: weight * loss() for name, weight, loss in terms if weight > 0}

    # -- life -----------------------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Move the average towards the generator."""
        ema_update(self.average, self.generator, self.options.ema_decay, step)

    @torch.no_grad()
    def before_synthesis(self, batches: Iterable[Batch]) -> None:
        """Give the average batch statistics of its own, from the given training batches with seeded noise."""

        def forward(batch: Batch) -> None:
            keys = zip(batch.cases, batch.indices, strict=True)
            self._by_average(batch, [_calibration_random(*key) for key in keys])

        recalibrate_batchnorm(self.average, (lambda batch=batch: forward(batch) for batch in batches))  # type: ignore[misc]

    def release(self) -> dict[str, Tensor]:
        """The moving average's tensors."""
        return self.average.state_dict()

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load the moving average."""
        self.average.load_state_dict(tensors)

    def start_from(self, tensors: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
        """Generator and average begin with the other run's average; discriminators of the same shape with its own."""
        self.load_release(tensors)
        self.generator.load_state_dict(tensors)
        taken = []
        for name, net in self.networks().items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            shapes = {key: value.shape for key, value in net.state_dict().items()}
            if net is not self.generator and shapes == {key: value.shape for key, value in own.items()}:
                net.load_state_dict(own)
                taken.append(name)
        return taken


def _calibration_random(case: str, index: int) -> SampleRandom:
    stream = seeded_generator("batch statistics", case, index)
    return SampleRandom(stream, stream)

"""The published layer table: sizes, widths, parameter counts."""

from __future__ import annotations

import pytest
import torch

from models.lesion.network import Encoder, Layers, LesionNetwork

# Salem et al. 2019, fig. 3, for 64×64 patches: layer -> (channels, side).
ENCODER = {
    "c1": (32, 64),
    "c2": (64, 32),
    "c3": (128, 16),
    "c4": (256, 8),
    "u1": (128, 16),
    "c5": (128, 16),
    "c6": (128, 16),
    "u2": (64, 32),
    "c7": (64, 32),
    "u3": (32, 64),
    "last": (32, 64),
}


def test_encoder_has_the_published_sizes() -> None:
    encoder = Encoder(Layers(2, "channel", 64), 9, 32)
    seen: dict[str, tuple[int, int]] = {}
    for name in ENCODER:
        layer = getattr(encoder, name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: (out.shape[1], out.shape[2])}))
    assert encoder(torch.zeros(1, 9, 64, 64)).shape == (1, 32, 64, 64)
    assert seen == ENCODER


@pytest.mark.parametrize(("prelu", "millions"), [("channel", 2.06), ("element", 4.59)])
def test_published_parameter_counts(prelu: str, millions: float) -> None:
    network = LesionNetwork(2, 8, 32, 2, prelu, 64)  # type: ignore[arg-type]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_fusion_is_the_maximum_and_decoders_share_their_weights_over_latents() -> None:
    network = LesionNetwork(2, 2, 4)
    images, latents = network(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16), every=True)
    assert len(images) == 3  # T1w alone, FLAIR alone, fused: six images for two modalities
    for z, image in zip([*latents, latents.amax(0)], images, strict=True):
        assert torch.equal(image, torch.cat([decoder(z) for decoder in network.decoders], 1))
    (fused,), _ = network(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16))
    assert fused.shape == (1, 2, 16, 16)


@pytest.mark.parametrize(("modalities", "dims", "size"), [(1, 2, (13, 50)), (3, 2, (8, 17)), (2, 3, (9, 16, 11))])
def test_any_modalities_dimensions_and_sizes(modalities: int, dims: int, size: tuple[int, ...]) -> None:
    network = LesionNetwork(modalities, 2, 2, dims)
    images, latents = network(torch.rand(2, modalities, *size), torch.rand(2, 2, *size), every=True)
    assert all(image.shape == (2, modalities, *size) for image in images)
    assert latents.shape == (modalities, 2, 2, *size)
    assert all(torch.isfinite(image).all() for image in images)


def test_a_residual_network_starts_at_its_source() -> None:
    source = torch.rand(1, 2, 16, 16)
    (image,), _ = LesionNetwork(2, 2, 4, residual=True)(source, torch.rand(1, 2, 16, 16))
    assert torch.equal(image, source)

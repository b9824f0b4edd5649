"""Statistics beneath the conditioned norms."""

from __future__ import annotations

import torch
from torch import nn

from models.gan.norms import InstanceNorm
from models.layers import SyncedBatchNorm3d, with_synced_norms


def test_instance_norm_equals_torchs() -> None:
    x = torch.randn(2, 3, 8, 9) * 4 + 7
    for layout in (torch.contiguous_format, torch.channels_last):
        y = InstanceNorm()(x.contiguous(memory_format=layout))
        torch.testing.assert_close(y, nn.InstanceNorm2d(3)(x), atol=1e-5, rtol=1e-5)


def test_batch_norms_of_a_foreign_network_are_replaced_in_place() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3, eps=0.5)), nn.BatchNorm3d(3, affine=False))
    net(torch.randn(2, 2, 4, 4, 4))  # so that running statistics are not those of the start
    x, names = torch.randn(2, 2, 3, 3, 3), list(net.state_dict())
    expected = net.eval()(x)
    synced = with_synced_norms(net)
    assert [type(m) for m in synced.modules() if isinstance(m, nn.BatchNorm3d)] == [SyncedBatchNorm3d] * 2
    assert list(synced.state_dict()) == names
    assert torch.equal(synced.eval()(x), expected)

"""Statistics beneath the conditioned norms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from models.gan.norms import InstanceNorm
from models.layers import SyncedBatchNorm2d, SyncedBatchNorm3d, with_synced_norms


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


def affine_3d(channels: int, kind: type[nn.BatchNorm3d]) -> nn.BatchNorm3d:
    norm = kind(channels)
    nn.init.constant_(norm.weight, 1.5)
    nn.init.constant_(norm.bias, -0.5)
    return norm


def normalise_a_part(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    whole = torch.load(f"{folder}/x.pt", weights_only=True)
    part = whole.chunk(ranks)[rank].clone().requires_grad_()
    norm = SyncedBatchNorm2d(whole.shape[1], affine=False)
    y = norm(part)
    (y.sin() * part.detach()).sum().backward()
    volumes = affine_3d(whole.shape[1], SyncedBatchNorm3d)(part.detach().unflatten(2, (2, 3)))
    torch.save({"y": y.detach(), "3d": volumes.detach(), "grad": part.grad, **norm.state_dict()}, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads abort the process now and then when the interpreter ends in the usual way


@pytest.mark.slow
def test_two_ranks_normalise_as_one(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics of two processes equal those of one with both halves of the batch."""
    x = torch.randn(4, 3, 6, 5) * torch.tensor([1.0, 5.0, 0.2])[:, None, None] + 3
    torch.save(x, tmp_path / "x.pt")
    mp.spawn(normalise_a_part, (2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole, norm = x.clone().requires_grad_(), nn.BatchNorm2d(3, affine=False)
    y = norm(whole)
    (y.sin() * whole.detach()).sum().backward()
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y.detach(), atol=1e-5, rtol=1e-5)
    volumes = affine_3d(3, nn.BatchNorm3d)(x.unflatten(2, (2, 3))).detach()
    torch.testing.assert_close(torch.cat([part["3d"] for part in parts]), volumes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), whole.grad, atol=1e-4, rtol=1e-4)
    for part in parts:
        torch.testing.assert_close(part["running_mean"], norm.running_mean)
        torch.testing.assert_close(part["running_var"], norm.running_var)

"""Layers of networks that others have built, exchanged for our own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_modules(net: nn.Module, instead: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The network, each module below it replaced by what `instead` makes of it; None keeps it. Names stay."""
    for parent in net.modules():
        for name, child in parent.named_children():
            if (new := instead(child)) is not None:
                setattr(parent, name, new)
    return net

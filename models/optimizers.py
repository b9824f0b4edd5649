"""Optimisers of the players."""

from __future__ import annotations

import torch
from torch import nn

from config import Config


def adam(net: nn.Module, lr: float, config: Config, lazy: int = 0) -> torch.optim.Adam:
    """Adam with the run's betas, in its fused form where `tuned`.

    lazy: a penalty joins every so many steps as a step of its own. Rate and memory are then scaled by
    c = lazy / (lazy + 1), so that a period of lazy + 1 steps moves as far as one of `lazy` without the extra step
    (StyleGAN2; Karras et al., CVPR 2020, appendix B). 0 for none.
    """
    c = lazy / (lazy + 1) if lazy else 1.0
    betas = (config.beta1**c, config.beta2**c)
    return torch.optim.Adam(net.parameters(), lr=lr * c, betas=betas, fused=config.tuned)

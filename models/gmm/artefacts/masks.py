"""The regions that artefacts refer to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Masks:
    """Regions of one label map, all (*S) bool and on the image's device; each may be empty.

    cortex: where blurred patches are centred. white_matter: where smooth weights are centred. brain: what artefacts act in,
    and what stays when the background is removed.
    """

    cortex: Tensor
    white_matter: Tensor
    brain: Tensor

    def cropped(self, box: tuple[slice, ...]) -> Masks:
        """The masks within a box, one slice per axis."""
        return Masks(self.cortex[box], self.white_matter[box], self.brain[box])

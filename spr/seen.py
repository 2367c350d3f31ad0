"""The images as all stages of a run see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.data import ImageStack
from common.noise import NoiseModel, ParticleExtent


@dataclass(frozen=True)
class Seen:
    """The images as all stages see them.

    stack : raw, atoms bright or as the optics make them. white : whitened. noise, extent : of these.
    fitted, left_out : rows that are fitted, and rows that only score the result.
    warnings : what was noticed.
    """

    stack: ImageStack
    white: ImageStack
    noise: NoiseModel
    extent: ParticleExtent
    fitted: Tensor
    left_out: Tensor
    warnings: tuple[str, ...]

    def part(self, rows: Tensor) -> tuple[ImageStack, ImageStack, NoiseModel]:
        """Raw images, whitened images and noise of some rows."""
        return self.stack[rows], self.white[rows], self.noise[rows]

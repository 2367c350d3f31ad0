"""How atoms are refined against the counts of a tilt series."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.data import InputError


@dataclass(frozen=True)
class SpotSettings:
    """How atoms are refined against the images of a tilt series.

    b_factor : angstrom^2, first guess of all blur of an atom; 0: from the images.
    b_factors : shared (one for each group of atoms), or each (one for each atom).
    b_factor_sigma : relative, how much the B factors of single atoms vary within their group.
    angle_sigma : degrees, how far the angles may be off before the images say; 0 keeps them.
    shift_sigma : angstrom, how far the shifts may be off; 0 keeps them.
    scale_sigma : relative, how much the dose varies between images; 0 keeps it.
    blur_sigma : angstrom^2, how much the blur's variance varies between images; 0 keeps it the same for all.
    background_order : of the cosines along x and y that make up each image's background; 0: a constant.
    learn_spread : the four sigmas shrink to what the images show.
    misfit : tell what the model leaves out from counting noise.
    max_steps : most steps.
    products : most products with the normal matrix in a step.
    tolerance : the refinement ends when atoms move by less than this share of their sigmas (rms).
    batch_size : images at a time.
    """

    b_factor: float = 0.0
    b_factors: str = "shared"
    b_factor_sigma: float = 0.15
    angle_sigma: float = 0.3
    shift_sigma: float = 0.3
    scale_sigma: float = 0.1
    blur_sigma: float = 0.02
    background_order: int = 0
    learn_spread: bool = True
    misfit: bool = True
    max_steps: int = 20
    products: int = 25
    tolerance: float = 0.03
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.b_factors not in ("shared", "each"):
            raise InputError(f"b_factors is {self.b_factors!r}, expected shared or each")
        for name in ("b_factor", "angle_sigma", "shift_sigma", "scale_sigma", "blur_sigma"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} is {getattr(self, name)}, expected a number >= 0")
        if not 0 <= self.background_order <= 4:
            raise InputError(f"the background order is {self.background_order}, expected 0 to 4")

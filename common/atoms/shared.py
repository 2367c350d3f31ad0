"""What all images share: the atoms, their shape and the focus; how it is laid out in one vector, and what is known of
it.

The vector, in this order: positions (3 n), heights (n), B factors (n, if refined), logs of the widths (c), logits of
the
fractions after the first (c - 1), log of the focal spread, defocus shift, contrast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.likelihood import Measurement, Parameters
from common.atoms.pose_fit import Priors


@dataclass(frozen=True)
class RefinementSettings:
    """How atoms are refined against images.

    resolution : angstrom, finest detail that is compared; cut at Nyquist.
    coarse_resolution : angstrom, for the first fit of the poses.
    margin : angstrom of the image kept around the particle, for the tails of the point spread.
    widths : angstrom, starting standard deviations of the Gaussians of the atoms' shape; empty: those of the element
        (two)
        for phase objects, one of 0.4 for projections.
    fractions : starting shares of these, sum 1.
    width_sigma : relative, how well the widths are known for phase objects.
    focal_spread : angstrom, rms, starting value where the file gives none.
    focal_spread_sigma : relative, how well that is known.
    defocus_shift_sigma : angstrom, how far the file's defocus may be off for all images alike.
    defocus_sigma : angstrom, how far it may be off from image to image.
    gain_sigma : relative, how much the contrast may vary from image to image.
    contrast_sigma : relative, how well the vacuum level is known.
    refine_b_factors : each atom has its own B factor.
    b_factor_sigma : angstrom^2, how much these may vary.
    curvature_images : images from which the curvature is taken.
    pose_steps : iterations of the pose fit before atoms move.
    max_steps : most joint iterations.
    tolerance : the refinement ends when the atoms' next step is smaller than this share of their sigmas (rms).
    seed : of the choice of images for the curvature.
    batch_size : images at a time.
    """

    resolution: float = 0.85
    coarse_resolution: float = 2.0
    margin: float = 3.5
    widths: tuple[float, ...] = ()
    fractions: tuple[float, ...] = ()
    width_sigma: float = 0.3
    focal_spread: float = 40.0
    focal_spread_sigma: float = 0.5
    defocus_shift_sigma: float = 50.0
    defocus_sigma: float = 10.0
    gain_sigma: float = 0.05
    contrast_sigma: float = 0.02
    refine_b_factors: bool = False
    b_factor_sigma: float = 1.0
    curvature_images: int = 48
    pose_steps: int = 3
    max_steps: int = 30
    tolerance: float = 0.05
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Layout:
    """Which shared parameters there are: atoms n, Gaussians c of their shape, whether B factors are refined."""

    atoms: int
    components: int
    b_factors: bool

    @property
    def per_atom(self) -> int:
        return 5 if self.b_factors else 4

    @property
    def size(self) -> int:
        return self.per_atom * self.atoms + 2 * self.components - 1 + 3

    def heights(self) -> slice:
        return slice(3 * self.atoms, 4 * self.atoms)


def layout_of(parameters: Parameters, b_factors: bool) -> Layout:
    return Layout(len(parameters.heights), len(parameters.widths), b_factors)


def rigid_motions(positions: Tensor) -> Tensor:
    """Orthonormal basis (3 n, 6) of the translations and small rotations of all atoms together, which no image sees."""
    n = len(positions)
    axes = torch.eye(3, dtype=positions.dtype, device=positions.device)
    centred = positions - positions.mean(0)
    turns = [torch.linalg.cross(axis.expand(n, 3), centred).flatten() for axis in axes]
    basis = torch.stack([axis.repeat(n) for axis in axes] + turns, 1)
    left, sizes, _ = torch.linalg.svd(basis, full_matrices=False)
    return left[:, sizes > 1e-9 * sizes[0]]


def apply_step(parameters: Parameters, step: Tensor, layout: Layout) -> Parameters:
    """Shared parameters moved by ``step`` (p,)."""
    n, c = layout.atoms, layout.components
    sizes = [3 * n, n, n if layout.b_factors else 0, c, c - 1, 1, 1, 1]
    place, height, b_factor, width, fraction, spread, defocus, contrast = torch.split(step, sizes)
    logits = torch.log(parameters.fractions)
    logits = logits - logits[0] + torch.cat((step.new_zeros(1), fraction))
    return replace(
        parameters,
        positions=parameters.positions + place.reshape(n, 3),
        heights=parameters.heights + height,
        b_factors=parameters.b_factors + b_factor if layout.b_factors else parameters.b_factors,
        widths=parameters.widths * torch.exp(width),
        fractions=torch.softmax(logits, 0),
        focal_spread=parameters.focal_spread * torch.exp(spread[0]),
        defocus_shift=parameters.defocus_shift + defocus[0],
        contrast=parameters.contrast + contrast[0],
    )


def priors_of(settings: RefinementSettings) -> Priors:
    return Priors(settings.gain_sigma, settings.defocus_sigma)


def shared_precision(parameters: Parameters, settings: RefinementSettings, layout: Layout, data: Measurement) -> Tensor:
    """Diagonal (p,) of the prior's precision on the shared parameters."""
    phase_object = data.optics is not None
    n, c = layout.atoms, layout.components
    precision = parameters.positions.new_zeros(layout.size)
    if layout.b_factors:
        precision[4 * n : 5 * n] = settings.b_factor_sigma**-2
    start = layout.per_atom * n
    precision[start : start + c] = settings.width_sigma**-2 if phase_object else 1.0
    precision[start + c : start + 2 * c - 1] = 1.0
    contrast = settings.contrast_sigma if data.vacuum_known else 3.0
    known = (settings.focal_spread_sigma, settings.defocus_shift_sigma, contrast)
    # without a lens these have no effect, and the contrast is that of the heights
    precision[-3:] = precision.new_tensor([s**-2 for s in known] if phase_object else [1.0, 1.0, 1e12])
    return precision


def shared_offset(parameters: Parameters, first: Parameters, layout: Layout) -> Tensor:
    """How far (p,) the shared parameters are from where the prior expects them; zero where there is no prior."""
    n = layout.atoms
    offset = [parameters.positions.new_zeros(4 * n)]
    if layout.b_factors:
        offset.append(parameters.b_factors)
    offset.append(torch.log(parameters.widths / first.widths))
    logits, expected = torch.log(parameters.fractions), torch.log(first.fractions)
    offset.append((logits - logits[0] - expected + expected[0])[1:])
    offset.append(torch.log(parameters.focal_spread / first.focal_spread)[None])
    offset += [parameters.defocus_shift[None], parameters.contrast[None]]
    return torch.cat(offset)


def step_between(new: Parameters, old: Parameters, layout: Layout) -> Tensor:
    """The step (p,) that leads from ``old`` to ``new``."""
    parts = [(new.positions - old.positions).flatten(), new.heights - old.heights]
    if layout.b_factors:
        parts.append(new.b_factors - old.b_factors)
    return torch.cat(
        (
            *parts,
            shared_offset(new, old, layout)[layout.per_atom * layout.atoms :][: 2 * layout.components],
            (new.defocus_shift - old.defocus_shift)[None],
            (new.contrast - old.contrast)[None],
        )
    )
